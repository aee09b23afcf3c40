"""Methods that put trained vectors before each row: prompt tuning, p-tuning, prefix tuning.

PEFT holds and saves what is trained. The forward pass is ours, so that such a model answers as any
other does: the logits are those of the row's own tokens, `logits_to_keep` counts these only, and
where there is a cache, the vectors are in it and not put before the row again. A mask of all pairs
is refused, since it knows nothing of them: rows are then read one beside another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bitrank import environment, method
from bitrank.errors import UserError
from bitrank.method import Method, Tuned

ENCODER = "prompt_encoder.safetensors"
"""In a checkpoint: what makes the vectors, of which PEFT keeps the result only."""


class Preceded(PeftModelForCausalLM):  # type: ignore[misc]
    """A base with vectors before each row; in the place of PEFT's own class."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: int | torch.Tensor = 0,
        **given: Any,
    ) -> Any:
        """Logits of shape (rows, kept tokens, vocabulary), as from a model without vectors."""
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("a mask of all pairs does not go with vectors before each row")
        count, (rows, width) = self.num_vectors, input_ids.shape
        if past_key_values is not None and past_key_values.get_seq_length():
            return self.base_model(
                input_ids=input_ids, past_key_values=past_key_values,
                logits_to_keep=logits_to_keep, **given,
            )  # fmt: skip
        if attention_mask is not None:
            before = attention_mask.new_ones(rows, count)
            attention_mask = torch.cat([before, attention_mask], dim=1)
        given |= {"attention_mask": attention_mask}
        if self.active_peft_config.peft_type == "PREFIX_TUNING":
            cache = self.get_prompt(rows)
            return self.base_model(
                input_ids=input_ids, past_key_values=cache, logits_to_keep=logits_to_keep, **given
            )
        if isinstance(logits_to_keep, torch.Tensor):
            logits_to_keep = logits_to_keep + count
        elif not logits_to_keep:
            logits_to_keep = torch.arange(count, count + width, device=input_ids.device)
        own = self.get_base_model().get_input_embeddings()(input_ids)
        vectors = self.get_prompt(rows).to(own.dtype)
        return self.base_model(
            inputs_embeds=torch.cat([vectors, own], dim=1), logits_to_keep=logits_to_keep, **given
        )

    @property
    def num_vectors(self) -> int:
        return int(self.active_peft_config.num_virtual_tokens)

    def save_pretrained(self, save_directory: str, *given: Any, **options: Any) -> None:
        """A checkpoint also keeps the network that makes the vectors."""
        super().save_pretrained(save_directory, *given, **options)
        encoder = self.prompt_encoder["default"].state_dict()
        if set(encoder) != {"embedding.weight"}:
            save_file(encoder, Path(save_directory) / ENCODER)

    def load_adapter(self, model_id: str, *given: Any, **options: Any) -> Any:
        found = super().load_adapter(model_id, *given, **options)
        file = Path(model_id) / ENCODER
        if file.is_file():
            self.prompt_encoder["default"].load_state_dict(load_file(file))
        return found


class VirtualTokens(Method):
    not_merged = (
        "vectors before a row are added to no weight of the base: no plain model does the same; "
        "adapter=lora can be merged"
    )
    copies_results = False
    in_the_input = True
    """Whether they pass through the base's layers as tokens do."""

    def config(self, base: PreTrainedModel, adapter: Any) -> PeftConfig:
        raise NotImplementedError

    def attach(self, base: PreTrainedModel, adapter: Any, init_seed: int, original: Path) -> Tuned:
        room = getattr(base.config, "max_position_embeddings", None)
        if room is not None and adapter.num_virtual_tokens >= room:
            raise UserError(
                f"`adapter.num_virtual_tokens` {adapter.num_virtual_tokens} leaves no room for a "
                f"row: the base has {room} positions"
            )
        environment.seed_everything(init_seed)
        config = self.config(base, adapter)
        return Preceded(base, config, autocast_adapter_dtype=True)

    def load(self, base: PreTrainedModel, folder: Path) -> Tuned:
        model = super().load(base, folder)
        model.__class__ = Preceded  # PEFT decides by itself on another one
        return cast(Any, model.requires_grad_(False))

    def save(self, model: Tuned, folder: Path, state: Mapping[str, torch.Tensor] | None) -> None:
        super().save(model, folder, state)
        (folder / ENCODER).unlink(missing_ok=True)  # what it makes is saved
        method.make_repeatable(folder)

    def describe(self, model: Tuned) -> dict[str, Any]:
        count = cast(Any, model).num_vectors
        found = super().describe(model)
        for key in ("num_adapted_layers", "target_modules", "blocks"):
            del found[key]
        return {
            **found,
            "num_virtual_tokens": count,
            "num_input_vectors": count if self.in_the_input else 0,
        }
