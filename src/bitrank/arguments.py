"""Our configuration in the words of transformers' Trainer."""

from __future__ import annotations

from transformers import TrainingArguments

from bitrank import processes
from bitrank.config import RuntimeConfig, SeedsConfig
from bitrank.errors import UserError
from bitrank.tuning import TrainConfig

SCHEDULES = {"constant": "constant_with_warmup"}
"""Our names of schedules where they are not transformers'."""


def to_arguments(
    config: TrainConfig, seeds: SeedsConfig, runtime: RuntimeConfig, scratch: str
) -> TrainingArguments:
    """Raises UserError: the global batch does not divide into micro-batches of all processes."""
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=SCHEDULES.get(config.schedule, config.schedule),
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=_accumulated(config, processes.count()),
        seed=seeds.init,
        use_cpu=runtime.device == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _accumulated(config: TrainConfig, num_processes: int) -> int:
    """Forward passes of one process in an optimizer step."""
    at_once = config.micro_batch_size * num_processes
    if config.global_batch_size % at_once:
        raise UserError(
            f"`train.global_batch_size` is {config.global_batch_size}, which {num_processes} "
            f"processes of `train.micro_batch_size` {config.micro_batch_size} cannot share: make "
            f"it a multiple of {at_once}"
        )
    return config.global_batch_size // at_once
