"""The `train` stage: one adapter on one base, with the proof of how it was trained."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from bitrank import adapters, data, environment, identity, models, paths, records, weights
from bitrank.artifacts import whole_folder
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
) -> records.Record:
    """Train and write the adapter.

    Raises:
        UserError: the base is not held as configured, a target layer is unknown, an answer does
            not fit, or the loss is no number any more.
    """
    device = environment.prepare_runtime(runtime)
    tokenizer = models.load_tokenizer(base_folder)
    rows = {
        split: data.encode_split(
            paths.split(split, prepared), tokenizer, data_config.max_sequence_tokens
        )
        for split in ("train", "validation")
    }
    base = models.load_model(base_folder, device)
    weights.check_precision(base, precision)
    model = adapters.attach_adapter(base, adapter, seeds.init)
    first_weights_hash = adapters.hash_first_weights(model)
    stamp = adapters.Stamp(
        base_hash=identity.hash_weights(base_folder), data_hash=identity.hash_files(prepared)
    )
    with TemporaryDirectory() as scratch:
        trainer = AdapterTrainer(model, tokenizer, rows, config, seeds, runtime, scratch)
        seconds = trainer.run()
    with whole_folder(target) as folder:
        adapter_hash = adapters.save_adapter(model, folder, stamp)
        adapter_bytes = (folder / "adapter_model.safetensors").stat().st_size
    described = adapters.describe_adapter(model)
    num_trainable = described["num_trainable_parameters"]
    return records.Record(
        stage="train",
        treatment={
            **vars(stamp),
            "precision": {"name": precision.name, **weights.describe_precision(base)},
            "adapter": {
                **described,
                "alpha_per_rank": adapter.alpha_per_rank,
                "dropout": adapter.dropout,
            },
            **trainer.describe(),
        },
        result={
            "adapter_hash": adapter_hash,
            "first_weights_hash": first_weights_hash,
            "num_trainable_parameters": num_trainable,
            "trainable_share": num_trainable / (num_trainable + weights.count_weights(base)),
            "adapter_bytes": adapter_bytes,
            "losses": trainer.losses,
            "validation": trainer.validations,
            "tokens": dict(trainer.tokens),
        },
        observation={
            "train_seconds": seconds,
            "tokens_per_second": trainer.tokens["non_padding"] / seconds,
        },
    )
