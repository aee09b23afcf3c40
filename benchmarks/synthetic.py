"""Treatments and batches for measurements that need no rows: memory and speed hang on shapes only.

Nothing here needs DVC, Hydra, MLflow or lm-eval: the scripts that use it run with the core alone.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import torch

from bitrank import batches, prompts
from bitrank.adapter_config import LoraAdapter
from bitrank.config import PrecisionConfig
from bitrank.tuning import TrainConfig
from bitrank.workload import GlobalBatch

Dtype = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]


def plain(dtype: Dtype) -> PrecisionConfig:
    """Not quantized."""
    return PrecisionConfig(
        name=dtype, quant_type=None, double_quant=False, block_size=None, quant_storage=None,
        weight_dtype=dtype, compute_dtype=dtype,
    )  # fmt: skip


def nf4(dtype: Dtype) -> PrecisionConfig:
    """QLoRA's: double quantization, block size 64; the rest of the base in `dtype`."""
    return PrecisionConfig(
        name="nf4", quant_type="nf4", double_quant=True, block_size=64, quant_storage="uint8",
        weight_dtype=dtype, compute_dtype=dtype,
    )  # fmt: skip


def lora(rank: int) -> LoraAdapter:
    """All linear layers of all blocks."""
    return LoraAdapter(
        method="lora", rank=rank, alpha_per_rank=2.0, alpha_per_sqrt_rank=None, dropout=0.0,
        use_dora=False, use_rslora=False, target_modules=["all-linear"], layers=None,
    )  # fmt: skip


def training(optimizer: Optimizer, checkpointing: bool, rows: int) -> TrainConfig:
    """One micro-batch of `rows` a step."""
    return TrainConfig(
        epochs=1, learning_rate=1e-4, optimizer=optimizer, schedule="constant", warmup_steps=0,
        weight_decay=0.0, max_grad_norm=1.0, micro_batch_size=rows, global_batch_size=rows,
        gradient_checkpointing=checkpointing, validation_steps=1, early_stopping_patience=None,
    )  # fmt: skip


def make_batch(rows: int, columns: int, supervised: int, vocabulary: int) -> GlobalBatch:
    """Random tokens without padding; the last `supervised` of each row are trained."""
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows, columns), generator=drawn)
    labels = ids.clone()
    labels[:, : columns - supervised] = prompts.IGNORED
    micro = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return GlobalBatch([micro], Counter(batches.count_tokens(micro)))
