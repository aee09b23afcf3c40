"""Prefix tuning: trained keys and values before each row, in every block (Li & Liang 2021)."""

from __future__ import annotations

from peft import PrefixTuningConfig
from transformers import PreTrainedModel

from bitrank.adapter_config import PrefixTuningAdapter
from bitrank.virtual_tokens import VirtualTokens


class PrefixTuning(VirtualTokens):
    in_the_input = False

    def config(self, base: PreTrainedModel, adapter: PrefixTuningAdapter) -> PrefixTuningConfig:
        return PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=adapter.num_virtual_tokens,
            prefix_projection=False,
        )


METHOD = PrefixTuning("prefix_tuning")
