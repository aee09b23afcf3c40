"""The `train` stage: one adapter on one base, with the proof of how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bitrank import adapters, data, environment, identity, models, paths, prompts, records, weights
from bitrank.artifacts import whole_folder
from bitrank.checkpoints import Checkpoints
from bitrank.config import (
    AdapterConfig,
    DataConfig,
    PrecisionConfig,
    RuntimeConfig,
    SeedsConfig,
    TrainConfig,
)
from bitrank.trainer import AdapterTrainer


def train_adapter(
    config: TrainConfig,
    adapter: AdapterConfig,
    precision: PrecisionConfig,
    seeds: SeedsConfig,
    runtime: RuntimeConfig,
    data_config: DataConfig,
    base_folder: Path = paths.QUANTIZED,
    prepared: Path = paths.PREPARED,
    target: Path = paths.ADAPTER,
    checkpoints: Path = paths.CHECKPOINTS,
) -> records.Record:
    """Train and write the adapter; go on where an interrupted run of the same training stopped.

    Raises:
        UserError: a base not held as configured, an unknown layer, a loss that is no number.
    """
    device = environment.prepare_runtime(runtime)
    tokenizer = models.load_tokenizer(base_folder)
    rows = _encode(prepared, tokenizer, data_config.max_sequence_tokens)
    base = weights.load_base(base_folder, precision, device)
    model = adapters.attach_adapter(base, adapter, seeds.init)
    first_weights_hash = adapters.hash_first_weights(model)
    stamp = adapters.Stamp(
        base_hash=identity.hash_weights(base_folder), data_hash=identity.hash_files(prepared)
    )
    sections = (config, adapter, seeds, runtime)
    kept = _checkpoints(stamp, data_config.max_sequence_tokens, sections, checkpoints)
    trainer = AdapterTrainer(model, tokenizer, rows, config, seeds, runtime, kept)
    trainer.run()
    with whole_folder(target) as folder:
        saved = {
            "adapter_hash": adapters.save_adapter(model, folder, stamp),
            "adapter_bytes": models.weight_bytes(folder),
        }
    kept.remove()
    live = {**adapters.describe_adapter(model), "alpha_per_rank": adapter.alpha_per_rank,
            "dropout": adapter.dropout}  # fmt: skip
    held = {"precision": {"name": precision.name, **weights.describe_precision(base)}}
    num_trainable = live["num_trainable_parameters"]
    return records.Record(
        stage="train",
        treatment={**vars(stamp), **held, "adapter": live, **trainer.describe()},
        result={
            **saved,
            "first_weights_hash": first_weights_hash,
            "num_trainable_parameters": num_trainable,
            "trainable_share": num_trainable / (num_trainable + weights.count_weights(base)),
            **trainer.outcome(),
        },
        observation=trainer.observe(),
    )


def _checkpoints(
    stamp: adapters.Stamp, max_tokens: int, sections: Sequence[Any], parent: Path
) -> Checkpoints:
    """Under a name of everything that this training's result depends on."""
    configured = {type(section).__name__: asdict(section) for section in sections}
    return Checkpoints({**vars(stamp), "max_tokens": max_tokens, **configured}, parent)


def _encode(
    prepared: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> dict[str, list[prompts.Encoded]]:
    return {
        split: data.encode_split(paths.split(split, prepared), tokenizer, max_tokens)
        for split in ("train", "validation")
    }
