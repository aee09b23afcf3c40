"""transformers' Trainer with our batches, our loss and our eyes on it.

Trainer runs the loop (accumulation, clipping, schedule, several devices); the batches and the loss
are ours, because Trainer's compute logits where nothing is learned and leave the order of
length-grouped rows to a seed that they share with dropout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bitrank import batches, prompts, weights
from bitrank.config import RuntimeConfig, SeedsConfig, TrainConfig
from bitrank.errors import UserError
from bitrank.progress import Progress, progress

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class _BucketedSampler(torch.utils.data.Sampler[int]):
    """Row indices in length buckets, in another order each epoch."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        # A hundred thousand epochs of one seed never meet the orders of the next seed.
        seed = self._seed * 100_000 + self._epoch
        return iter(batches.bucketed_order(self._lengths, self._batch_size, seed))


class AdapterTrainer(Trainer):
    """Trainer with our batches and loss; keeps the losses unrounded and counts tokens."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        rows: Mapping[str, list[prompts.Encoded]],
        config: TrainConfig,
        seeds: SeedsConfig,
        runtime: RuntimeConfig,
        scratch: str,
    ) -> None:
        self._config, self._seeds, self._runtime = config, seeds, runtime
        self._rows = rows
        pad_id = tokenizer.pad_token_id
        self._pad_id = tokenizer.eos_token_id if pad_id is None else pad_id
        self.tokens: Counter[str] = Counter()
        self.losses: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []
        super().__init__(
            model=model,
            args=_to_arguments(config, seeds, runtime, scratch),
            train_dataset=rows["train"],
            data_collator=lambda picked: batches.collate(picked, self._pad_id),
            callbacks=[_Watch(self)],
        )
        self.remove_callback(PrinterCallback)  # our lines show the same, with speed and time left
        # Our loss divides by the targets of the whole global batch, which Trainer then hands over.
        self.model_accepts_loss_kwargs = True

    def run(self) -> float:
        """Train; return the seconds of the loop, validation included."""
        start = perf_counter()
        self.train()
        return perf_counter() - start

    def validate(self, step: int) -> None:
        """Mean loss over the supervised tokens of the validation rows."""
        total, count = 0.0, 0
        size = self._config.micro_batch_size
        rows = sorted(self._rows["validation"], key=lambda row: len(row.input_ids))
        with weights.evaluating_as_trained(self.model):
            for start in range(0, len(rows), size):
                batch = batches.collate(rows[start : start + size], self._pad_id)
                supervised = batches.count_tokens(batch)["supervised"]
                moved = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
                total += float(batches.supervised_loss(self.model, moved, 1))
                count += supervised
        self.validations.append({"step": step, "loss": total / count})

    def outcome(self) -> dict[str, Any]:
        """What the loop saw: losses by step, validation losses, tokens by kind."""
        return {
            "losses": self.losses,
            "validation": self.validations,
            "tokens": dict(self.tokens),
        }

    def speed(self, seconds: float) -> float:
        """Non-padding tokens per second."""
        return self.tokens["non_padding"] / seconds

    def describe(self) -> dict[str, Any]:
        """How the live trainer trained."""
        arguments, config = self.args, self._config
        return {
            "optimizer": {
                "name": type(self.optimizer.optimizer).__name__,
                "learning_rate": arguments.learning_rate,
                "schedule": config.schedule,
                "warmup_steps": arguments.warmup_steps,
                "weight_decay": arguments.weight_decay,
                "max_grad_norm": arguments.max_grad_norm,
            },
            "epochs": config.epochs,
            "num_rows": len(self._rows["train"]),
            "num_steps": self.state.global_step,
            "micro_batch_size": arguments.per_device_train_batch_size,
            "global_batch_size": config.global_batch_size,
            "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
            "gradient_checkpointing": bool(self.model.is_activation_checkpointing),
            "seeds": vars(self._seeds),
            "device": arguments.device.type,
            "threads": torch.get_num_threads(),
        }

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        self.tokens.update(batches.count_tokens(inputs))
        return batches.supervised_loss(model, inputs, num_items_in_batch)

    def _get_train_sampler(self, train_dataset: Any = None) -> _BucketedSampler:
        lengths = [len(row.input_ids) for row in self._rows["train"]]
        return _BucketedSampler(lengths, self._config.micro_batch_size, self._seeds.order)


class _Watch(TrainerCallback):
    """Keeps losses, shows progress, takes validation losses, stops at a loss that is no number."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self._trainer = trainer
        self._shown: Progress
        self._start = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer.validate(0)
        self._context = progress("train", state.max_steps, "steps")
        self._shown = self._context.__enter__()
        self._start = perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        step, loss = state.global_step, float(logs["loss"])
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {step}: lower `train.learning_rate` (now "
                f"{args.learning_rate:g}) or raise `train.warmup_steps`"
            )
        self._trainer.losses.append(
            {
                "step": step,
                "loss": loss,
                "learning_rate": float(logs["learning_rate"]),
                "gradient_norm": float(logs["grad_norm"]),
            }
        )
        rate = self._trainer.speed(perf_counter() - self._start)
        self._shown.advance(loss=f"{loss:.3f}", speed=f"{rate:.0f} tokens/s")
        if step % self._trainer._config.validation_steps == 0 or step == state.max_steps:
            self._trainer.validate(step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._context.__exit__(None, None, None)


def _to_arguments(
    config: TrainConfig, seeds: SeedsConfig, runtime: RuntimeConfig, scratch: str
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=SCHEDULES[config.schedule],
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.global_batch_size // config.micro_batch_size,
        optim="adamw_torch",
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
