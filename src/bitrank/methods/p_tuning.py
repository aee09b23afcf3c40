"""P-tuning: embeddings before each row, made by a small network that is trained with them.

Liu et al. 2021, with three layers in the place of the recurrent ones. The network is not kept: what
it makes at the end is what is saved.
"""

from __future__ import annotations

from typing import Any

from peft import PromptEncoderConfig
from transformers import PreTrainedModel

from bitrank.adapter_config import PTuningAdapter
from bitrank.virtual_tokens import VirtualTokens


class PTuning(VirtualTokens):
    def config(self, base: PreTrainedModel, adapter: PTuningAdapter) -> PromptEncoderConfig:
        return PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=adapter.num_virtual_tokens,
            encoder_reparameterization_type="MLP",
            encoder_hidden_size=adapter.hidden_size,
        )

    def describe_setting(self, adapter: PTuningAdapter) -> dict[str, Any]:
        return {"hidden_size": adapter.hidden_size}


METHOD = PTuning("p_tuning")
