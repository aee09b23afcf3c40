"""One contestant of `trl_speed.py` in this process: build its trainer, time it, meter it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bitrank import (
    adapters,
    batches,
    config,
    environment,
    identity,
    meters,
    models,
    paths,
    prompts,
    records,
    weights,
)
from bitrank.arguments import to_arguments
from bitrank.checkpoints import Checkpoints
from bitrank.errors import UserError
from bitrank.trainer import AdapterTrainer
from bitrank.tuning import TrainConfig

NEVER = 10**9
COMPARED = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
            "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "num_train_epochs", "bf16",
            "per_device_train_batch_size", "gradient_accumulation_steps")  # fmt: skip
"""The arguments of both trainers, which are transformers', that decide what is computed."""
Rows = list[dict[str, Any]]


def work(contestant: str, warmup: int, steps: int) -> dict[str, Any]:
    """Train `warmup + steps` steps; return `matched`, `measured`, `environment`.

    All training rows are there to draw from: how well batches of one length can be made depends on
    their number, TRL's above all.
    """
    if contestant != "bitrank":
        import trl  # noqa: F401 - its imports count as imports, not as memory of the training
        from trl import SFTTrainer  # noqa: F401 - and this is where they happen
    run = config.load()
    device = environment.prepare_runtime(run.runtime, run.precision)
    after_import = meters.process_memory()["resident_bytes"]
    size, micro = run.train.global_batch_size, run.train.micro_batch_size
    rows = records.read_jsonl(paths.split("train"))
    if len(rows) < size * (warmup + steps):
        raise UserError(f"{len(rows)} training rows are too few for {warmup + steps} steps")
    watch = _Watch(warmup, steps, device)
    with TemporaryDirectory() as scratch, meters.ProcessMeter(after_import) as process:
        base = weights.load_base(paths.QUANTIZED, run.precision, device)
        model = adapters.attach_adapter(base, run.adapter, run.seeds.init)
        trainer = BUILDERS[contestant](model, rows, run, scratch)
        first_hash = adapters.hash_first_weights(model)
        first_loss = _loss(trainer, range(micro))
        watch.follow(trainer)
        trainer.run() if isinstance(trainer, AdapterTrainer) else trainer.train()
        # Inside: few steps need not meet the longest rows, and those set the process's peak.
        tensor_peak = meter_tensors(trainer, _batch(trainer, longest(trainer.train_dataset, micro)))
    cut = slice(warmup * (size // micro), (warmup + steps) * (size // micro))
    counted = sum((Counter(count) for count in watch.tokens[cut]), Counter[str]())
    return {
        "environment": {**environment.describe(), "contestant_packages": _versions(contestant)},
        "matched": _matched(trainer, first_hash, len(watch.clock.seconds)),
        "measured": {
            "tokens_per_second": counted["non_padding"] / sum(watch.clock.seconds),
            "adapter_forward": _forward_of(model),
            "tokens_per_step": counted["non_padding"] / steps,
            "padding_share": 1 - counted["non_padding"] / counted["padded"],
            "step_seconds": watch.clock.summary(),
            "first_loss": first_loss,
            "train_loss": trainer.state.log_history[-1]["train_loss"],
            "peak_above_import_bytes": process.peak_above_baseline,
            "tensor_peak_bytes": tensor_peak,
        },
    }


def _matched(trainer: Trainer, first_weights_hash: str | None, timed: int) -> dict[str, Any]:
    """What must be equal in all contestants, as it was in this one."""
    base = trainer.model.get_base_model()
    return {
        "base_hash": identity.hash_weights(paths.QUANTIZED),
        "rows_hash": hash_rows(trainer.train_dataset),
        "first_weights_hash": first_weights_hash,
        "adapter": adapters.describe_adapter(trainer.model),
        "arguments": {name: _plain(getattr(trainer.args, name)) for name in COMPARED},
        "activation_checkpointing": bool(base.is_activation_checkpointing),
        "attention": base.config._attn_implementation,
        "steps": trainer.state.global_step,
        "timed_steps": timed,
        "threads": torch.get_num_threads(),
        "device": trainer.args.device.type,
        "packages": {name: metadata.version(name) for name in environment.PACKAGES[:5]},
    }


def _bitrank(model: Any, rows: Rows, run: config.RunConfig, scratch: str) -> Trainer:
    tokenizer = models.load_tokenizer(paths.QUANTIZED)
    encoded = [
        prompts.encode(tokenizer, row["prompt"], row["answer"], run.data.max_sequence_tokens)
        for row in rows
    ]
    # One validation row, before the first step, which is no timed one.
    split = {"train": encoded, "validation": encoded[:1]}
    kept = Checkpoints({}, Path(scratch))
    return AdapterTrainer(model, tokenizer, split, _plan(run), run.seeds, run.runtime, kept)


def _plan(run: config.RunConfig) -> TrainConfig:
    """One epoch as configured, with nothing in it but steps."""
    return dataclasses.replace(
        run.train,
        epochs=1,
        validation_steps=NEVER,
        early_stopping_patience=None,
        gradient_checkpointing=False,
    )


def _trl(model: Any, rows: Rows, run: config.RunConfig, scratch: str, **settings: Any) -> Trainer:
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    tokenizer: PreTrainedTokenizerBase = models.load_tokenizer(paths.QUANTIZED)
    ours = to_arguments(_plan(run), run.seeds, run.runtime, scratch)
    arguments = SFTConfig(
        output_dir=scratch,
        **{name: _plain(getattr(ours, name)) for name in COMPARED},
        max_length=run.data.max_sequence_tokens,
        gradient_checkpointing=False,
        seed=ours.seed,
        use_cpu=ours.use_cpu,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    pairs = [{"prompt": row["prompt"], "completion": row["answer"]} for row in rows]
    for _, layer in adapters.adapted_layers(model):
        layer.lora_variant.clear()  # bitrank's own forward pass; a user of TRL has PEFT's
    trainable = [p for p in model.parameters() if p.requires_grad]
    kept = [parameter.detach().clone() for parameter in trainable]
    trainer = SFTTrainer(model, arguments, train_dataset=datasets.Dataset.from_list(pairs),
                         processing_class=tokenizer)  # fmt: skip
    for parameter, first in zip(trainable, kept, strict=True):
        parameter.data = first  # SFTTrainer has cast it to bf16; no optimizer exists yet
    return trainer


def _trl_grouped(model: Any, rows: Rows, run: config.RunConfig, scratch: str) -> Trainer:
    return _trl(model, rows, run, scratch, train_sampling_strategy="group_by_length")


BUILDERS: dict[str, Callable[[Any, Rows, config.RunConfig, str], Trainer]] = {
    "bitrank": _bitrank,
    "trl": _trl,
    "trl-grouped": _trl_grouped,
}


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Times the steps of any Trainer, counts the tokens of its batches, and ends the run."""

    def __init__(self, warmup: int, steps: int, device: torch.device) -> None:
        self._last = warmup + steps
        self.clock = meters.StepClock(warmup, device)
        self.tokens: list[dict[str, int]] = []

    def follow(self, trainer: Trainer) -> None:
        collate = trainer.data_collator

        def counted(picked: Sequence[Any]) -> Mapping[str, torch.Tensor]:
            batch: Mapping[str, torch.Tensor] = collate(picked)
            self.tokens.append(batches.count_tokens(batch))
            return batch

        trainer.data_collator = counted
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.clock.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.clock.tick()
        if state.global_step == self._last:
            control.should_training_stop = True


def meter_tensors(trainer: Trainer, batch: Mapping[str, torch.Tensor]) -> int:
    """Peak bytes of the tensors alive in one more step, forward to optimizer."""
    trainable = [p for p in trainer.model.parameters() if p.requires_grad]
    meter = meters.TensorMeter()
    for part in (trainer.optimizer.state, trainer.model, batch):
        meter.register("held", meters.reachable_tensors(part))
    meter.watch_gradients(trainable)
    with meter:
        trainer.training_step(trainer.model, dict(batch))
        torch.nn.utils.clip_grad_norm_(trainable, trainer.args.max_grad_norm)
        trainer.optimizer.optimizer.step()
        trainer.optimizer.optimizer.zero_grad()
    return meter.peak_bytes


def longest(dataset: Sequence[Any], count: int) -> list[int]:
    """Indices of the `count` longest rows; of equal ones, the first."""
    order = sorted(range(len(dataset)), key=lambda index: -len(_ids(dataset[index])[0]))
    return order[:count]


def hash_rows(dataset: Sequence[Any]) -> str:
    """One hash of the token ids and labels of all rows, in their order before any sampler's."""
    return identity.hash_json([_ids(dataset[index]) for index in range(len(dataset))])


def _loss(trainer: Trainer, indices: Sequence[int]) -> float:
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model.train(), dict(_batch(trainer, indices)))
    return float(loss)


def _batch(trainer: Trainer, indices: Sequence[int]) -> Mapping[str, torch.Tensor]:
    picked = [trainer.train_dataset[index] for index in indices]
    batch = trainer.data_collator(picked)
    return {name: tensor.to(trainer.args.device) for name, tensor in batch.items()}


def _ids(row: Any) -> tuple[list[int], list[int]]:
    """Token ids and labels of a row of bitrank's or of TRL's data set."""
    if isinstance(row, prompts.Encoded):
        return row.input_ids, row.labels
    return row["input_ids"], row["labels"]


def _forward_of(model: Any) -> str:
    """What computes the adapters' updates: a variant's name, or PEFT's own."""
    _, layer = next(adapters.adapted_layers(model))
    return next((type(held).__name__ for held in layer.lora_variant.values()), "PEFT")


def _plain(value: Any) -> Any:
    """An enumeration's value, or the value itself."""
    return getattr(value, "value", value)


def _versions(contestant: str) -> dict[str, str]:
    return {} if contestant == "bitrank" else {"trl": metadata.version("trl")}
