"""The `train` stage: one adapter on one base, with the proof of how it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bitrank import (
    adapters,
    chain,
    data,
    determinism,
    environment,
    identity,
    models,
    paths,
    processes,
    prompts,
    records,
    steps,
    treatment,
    weights,
)
from bitrank.adapter_config import AdapterConfig
from bitrank.artifacts import whole_folder
from bitrank.checkpoints import Checkpoints
from bitrank.config import PrecisionConfig, RuntimeConfig, SeedsConfig
from bitrank.trainer import AdapterTrainer
from bitrank.tuning import TrainConfig


def train_adapter(
    config: TrainConfig,
    adapter: AdapterConfig,
    precision: PrecisionConfig,
    seeds: SeedsConfig,
    runtime: RuntimeConfig,
    max_tokens: int,
    base_folder: Path = paths.QUANTIZED,
    prepared: Path = paths.PREPARED,
    target: Path = paths.ADAPTER,
    checkpoints: Path = paths.CHECKPOINTS,
    original: Path = paths.ORIGINAL,
) -> records.Record:
    """Train and write the adapter; go on where an interrupted run of the same training stopped.

    `max_tokens` of a row are kept.

    Raises:
        UserError: a base not held as configured, changed since, or too short for the rows; an
            unknown layer; a global batch that the processes cannot share; a loss that is no number.
    """
    device = environment.prepare_runtime(runtime, precision)
    source = chain.check_base(base_folder)
    tokenizer = models.load_tokenizer(base_folder)
    rows = _encode(prepared, tokenizer, max_tokens)
    base = weights.load_base(base_folder, precision, device)
    models.check_positions(base, max_tokens)
    model = adapters.attach_adapter(base, adapter, seeds.init, original)
    steps.keep_activations(base, config)
    # Told before training, which may spread the weights over several devices.
    held, known = treatment.describe(model, precision, adapter), _describe_size(model)
    of = chain.name_inputs(source, prepared)
    kept = _checkpoints(of, max_tokens, (config, adapter, seeds, runtime), checkpoints)
    trainer = AdapterTrainer(model, tokenizer, rows, config, seeds, runtime, kept)
    with kept.alone(), determinism.watching() as seen:
        trainer.run()
        stamp = chain.Stamp(**of, first_weights_hash=known["first_weights_hash"])
        adapter_hash = _write(trainer, model, stamp, target)
    repeats = {"determinism": determinism.describe(device, seen)}
    return records.Record(
        stage="train",
        treatment={**of, **held, **trainer.describe(), **repeats},
        result={
            "adapter_hash": adapter_hash,
            "adapter_bytes": models.weight_bytes(target),
            **known,
            **trainer.outcome(),
        },
        observation=trainer.observe(),
    )


def _checkpoints(
    of: Mapping[str, Any], max_tokens: int, sections: Sequence[Any], parent: Path
) -> Checkpoints:
    """Under a name of everything that this training's result depends on."""
    configured = {type(section).__name__: asdict(section) for section in sections}
    known = {**of, "max_tokens": max_tokens, "num_processes": processes.count()}
    return Checkpoints({**known, **configured}, parent)


def _write(trainer: AdapterTrainer, model: adapters.Tuned, stamp: chain.Stamp, target: Path) -> str:
    """Return the hash of the adapter, which the first process writes; all others wait for it."""
    state, written = trainer.gathered_weights(), None
    if processes.is_first():
        with whole_folder(target) as folder:
            stamp = replace(stamp, stopped_at_step=trainer.state.global_step)
            written = adapters.save_adapter(model, folder, stamp, state)
        trainer.checkpoints.remove()
    trainer.wait_for_all()
    return written or identity.hash_weights(target)


def _describe_size(model: adapters.Tuned) -> dict[str, Any]:
    """What the record's result tells of the model that is about to be trained."""
    live = adapters.describe_adapter(model)
    return {
        "first_weights_hash": adapters.hash_first_weights(model),
        "num_trainable_parameters": live["num_trainable_parameters"],
        "trainable_share": adapters.trainable_share(model),
    }


def _encode(
    prepared: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> dict[str, list[prompts.Encoded]]:
    return {
        split: data.encode_split(paths.split(split, prepared), tokenizer, max_tokens)
        for split in ("train", "validation")
    }
