"""LoftQ: LoRA that begins with what quantization took from the weight (Li et al. 2023).

One step of the paper's alternation, on the base as it is: dq(W4) + s * B A is the nearest to W that
a product of this rank can bring it. The codes stay, so the base is the one that every other method
is trained on.
"""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from bitrank import lora, models, weights
from bitrank.errors import UserError
from bitrank.lora import Lora
from bitrank.residuals import split_by_values


class Loftq(Lora):
    def begin(self, model: PeftModel, original: Path) -> None:
        layers = dict(self.adapted_layers(model))
        if next(model.parameters()).is_meta:
            return  # other values, of the same sizes
        if not original.is_dir():
            raise UserError(
                f"`adapter.method` loftq needs the weights before quantization, and {original} "
                "does not exist; `dvc repro fetch` makes it"
            )
        before = weights.linear_layers(models.load_model(original))
        for name, layer in layers.items():
            held = layer.get_base_layer()
            wanted = before[name].weight.data.float().to(held.weight.device)
            error = wanted - weights.dequantized_weight(held)
            lora.set_factors(layer, *split_by_values(error, layer.r["default"]))


METHOD = Loftq("loftq")
