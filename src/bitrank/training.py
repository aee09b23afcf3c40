"""The `train` stage: one adapter on one base, with the proof of how it was trained."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

from bitrank import adapters, data, environment, identity, models, paths, prompts, records, weights
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
        UserError: a base not held as configured, an unknown layer, a loss that is no number.
    """
    device = environment.prepare_runtime(runtime)
    tokenizer = models.load_tokenizer(base_folder)
    rows = _encode(prepared, tokenizer, data_config.max_sequence_tokens)
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
        adapter_bytes = models.weight_bytes(folder)
    held = {"precision": {"name": precision.name, **weights.describe_precision(base)}}
    live = {**adapters.describe_adapter(model), "alpha_per_rank": adapter.alpha_per_rank,
            "dropout": adapter.dropout}  # fmt: skip
    num_trainable = live["num_trainable_parameters"]
    return records.Record(
        stage="train",
        treatment={**vars(stamp), **held, "adapter": live, **trainer.describe()},
        result={
            "adapter_hash": adapter_hash,
            "first_weights_hash": first_weights_hash,
            "num_trainable_parameters": num_trainable,
            "trainable_share": num_trainable / (num_trainable + weights.count_weights(base)),
            "adapter_bytes": adapter_bytes,
            **trainer.outcome(),
        },
        observation={"train_seconds": seconds, "tokens_per_second": trainer.speed(seconds)},
    )


def _encode(
    prepared: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> dict[str, list[prompts.Encoded]]:
    return {
        split: data.encode_split(paths.split(split, prepared), tokenizer, max_tokens)
        for split in ("train", "validation")
    }
