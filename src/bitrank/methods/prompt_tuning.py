"""Prompt tuning: trained embeddings before each row (Lester et al. 2021)."""

from __future__ import annotations

from typing import Any

from peft import PromptTuningConfig
from transformers import PreTrainedModel

from bitrank.adapter_config import PromptTuningAdapter
from bitrank.virtual_tokens import VirtualTokens

INITS = {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM"}


class PromptTuning(VirtualTokens):
    def config(self, base: PreTrainedModel, adapter: PromptTuningAdapter) -> PromptTuningConfig:
        return PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=adapter.num_virtual_tokens,
            prompt_tuning_init=INITS[adapter.first_tokens],
        )

    def describe_setting(self, adapter: PromptTuningAdapter) -> dict[str, Any]:
        return {"first_tokens": adapter.first_tokens}


METHOD = PromptTuning("prompt_tuning")
