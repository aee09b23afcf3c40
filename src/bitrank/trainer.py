"""transformers' Trainer with our batches, our loss and our eyes on it.

Trainer runs the loop (accumulation, clipping, schedule, several devices); the batches and the loss
are ours, because Trainer's compute logits where nothing is learned and leave the order of
length-grouped rows to a seed that they share with dropout.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch
from accelerate.utils import broadcast
from safetensors import SafetensorError
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bitrank import batches, processes, prompts, steps, weights
from bitrank.arguments import to_arguments
from bitrank.checkpoints import Checkpoints, Clock
from bitrank.config import RuntimeConfig, SeedsConfig
from bitrank.early_stopping import EarlyStopping, best_validation
from bitrank.errors import UserError
from bitrank.progress import Progress, progress
from bitrank.tuning import TrainConfig

LOG = logging.getLogger(__name__)

TOKENS = ("padded", "non_padding", "supervised")


class AdapterTrainer(Trainer):
    """Trainer with our batches and loss; keeps the losses unrounded and counts tokens."""

    optimizer: Any  # None, then ours, then ours as accelerate wraps it

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        rows: Mapping[str, list[prompts.Encoded]],
        config: TrainConfig,
        seeds: SeedsConfig,
        runtime: RuntimeConfig,
        checkpoints: Checkpoints,
    ) -> None:
        self._config, self._seeds = config, seeds
        self._rows, self.checkpoints = rows, checkpoints
        pad_id = tokenizer.pad_token_id
        self._pad_id = tokenizer.eos_token_id if pad_id is None else pad_id
        self.tokens: Counter[str] = Counter()
        self.losses: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []
        self.resumed_at_steps: list[int] = []
        self._clock = Clock()
        super().__init__(
            model=model,
            args=to_arguments(config, seeds, runtime, str(checkpoints.folder)),
            train_dataset=rows["train"],
            data_collator=lambda picked: batches.collate(picked, self._pad_id),
        )
        self.remove_callback(PrinterCallback)  # our lines show the same, with speed and time left
        # Our loss divides by the targets of the whole global batch, which Trainer then hands over.
        self.model_accepts_loss_kwargs = True

    @property
    def seconds(self) -> float:
        """Of the loop, validation included; in a resumed run, without what was lost."""
        return self._clock.seconds

    def run(self) -> None:
        """Train, from the newest checkpoint if there is one.

        Raises:
            UserError: a loss that is no number.
            KeyboardInterrupt: the person's, with the step after which the next run goes on.
        """
        found = self.checkpoints.newest()
        if found is not None:
            self._restore(found[1])
        with ExitStack() as shown:
            self.add_callback(_Watch(self, shown))
            if self._config.early_stopping_patience is not None:  # after what it looks at
                patience = self._config.early_stopping_patience
                self.add_callback(EarlyStopping(patience, self.validations))
            self._clock.start()
            try:
                self.train(resume_from_checkpoint=None if found is None else str(found[0]))
            except KeyboardInterrupt:
                kept = self.checkpoints.newest()
                step = 0 if kept is None else kept[1]["losses"][-1]["step"]
                raise KeyboardInterrupt(f"the next run goes on after step {step}") from None
        self._clock.stop()

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.losses, self.validations = state["losses"], state["validation"]
        # What all processes have counted goes on with the first one's.
        self.tokens = Counter(state["tokens"] if processes.is_first() else {})
        self._clock.before = state["seconds"]
        self.resumed_at_steps = [*state["resumed_at_steps"], self.losses[-1]["step"]]
        LOG.info("train: going on after step %d of an interrupted run", self.resumed_at_steps[-1])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers does, then sealed; a full disk costs this checkpoint, nothing else."""
        step, start = self.state.global_step, perf_counter()
        state = {
            **self.outcome(),
            "seconds": self.seconds,
            "resumed_at_steps": self.resumed_at_steps,
        }
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.checkpoints.seal(step, state)
        except (OSError, RuntimeError, SafetensorError) as error:
            LOG.warning("train: no checkpoint at step %d, training goes on: %s", step, error)
            self.checkpoints.discard(step)
        self._clock.note_checkpoint(perf_counter() - start)

    def is_checkpoint_due(self) -> bool:
        """The first process decides for all: they must write it together."""
        due = torch.tensor(int(self._clock.is_checkpoint_due()), device=self.args.device)
        return bool(broadcast(due))

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
        """What the loop saw: losses by step, validation losses, tokens by kind on all devices."""
        best = self._config.early_stopping_patience is not None
        kept = best_validation(self.validations)["step"] if best else self.state.global_step
        return {
            "losses": self.losses,
            "validation": self.validations,
            "tokens": self._all_tokens(),
            "kept_step": kept,
        }

    def gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """All weights on the first process, where each has only a part of them (FSDP).

        None where every process has the whole model. To be called by all of them.
        """
        if not self.is_fsdp_enabled:
            return None
        state: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
        return state

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        self.accelerator.wait_for_everyone()

    def speed(self) -> float:
        """Non-padding tokens per second, so far."""
        return self.tokens["non_padding"] / self.seconds

    def observe(self) -> dict[str, Any]:
        """Time and speed; of a resumed run, the steps after which it went on."""
        return {
            "train_seconds": self.seconds,
            "tokens_per_second": self.speed(),
            "resumed_at_steps": self.resumed_at_steps,
        }

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
            "planned_steps": self.state.max_steps,
            "num_steps": self.state.global_step,
            "micro_batch_size": arguments.per_device_train_batch_size,
            "global_batch_size": config.global_batch_size,
            "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
            "num_processes": arguments.world_size,
            "distributed": self.accelerator.distributed_type.value,
            "early_stopping": _describe_patience(config.early_stopping_patience),
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
        # The targets are those of all processes, whose gradients are then averaged and not summed.
        loss = batches.supervised_loss(model, inputs, num_items_in_batch)
        return loss * self.args.world_size if self.args.world_size > 1 else loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> Any:
        if self.optimizer is None:
            self.optimizer = steps.make_optimizer(model or self.model, self._config)
        return self.optimizer

    def _all_tokens(self) -> dict[str, int]:
        counts = torch.tensor([self.tokens[kind] for kind in TOKENS], device=self.args.device)
        summed = self.accelerator.reduce(counts, "sum").tolist()
        return dict(zip(TOKENS, summed, strict=True))

    def _get_train_sampler(self, train_dataset: Any = None) -> batches.BucketedSampler:
        lengths = [len(row.input_ids) for row in self._rows["train"]]
        return batches.BucketedSampler(lengths, self._config.micro_batch_size, self._seeds.order)


def _describe_patience(patience: int | None) -> str:
    return "off" if patience is None else f"after {patience} validations without a lower loss"


class _Watch(TrainerCallback):
    """Keeps losses, shows progress, takes validation losses, stops at a loss that is no number."""

    def __init__(self, trainer: AdapterTrainer, shown: ExitStack) -> None:
        self._trainer, self._open = trainer, shown
        self._shown: Progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self._trainer.validations:
            self._trainer.validate(0)
        self._shown = self._open.enter_context(
            progress("train", state.max_steps, "steps", done=state.global_step)
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save = self._trainer.is_checkpoint_due()

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
        self._shown.advance(loss=f"{loss:.3f}", speed=f"{self._trainer.speed():.0f} tokens/s")
        if step % self._trainer._config.validation_steps == 0 or step == state.max_steps:
            self._trainer.validate(step)
