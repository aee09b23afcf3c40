"""The `fetch` stage: the base model and its tokenizer, from a pinned source, as safetensors."""

from __future__ import annotations

from pathlib import Path

from bitrank import identity, models, paths, records, sources
from bitrank.artifacts import whole_folder
from bitrank.config import ModelConfig


def fetch_base(
    model: ModelConfig,
    original: Path = paths.ORIGINAL,
    tokenizer_folder: Path = paths.TOKENIZER,
    downloads: Path = paths.DOWNLOADS,
) -> records.Record:
    """Write the base model, and its tokenizer once more alone, for the stages that need no weights.

    Raises:
        UserError: what the source says is missing, damaged, gated or unsafe.
    """
    fetched = sources.load(model.source, downloads)
    base = fetched.model
    with whole_folder(original) as folder:
        models.save_model(base, fetched.tokenizer, folder)
        size = models.weight_bytes(folder)
        base_hash = identity.hash_weights(folder)
    with whole_folder(tokenizer_folder) as folder:
        fetched.tokenizer.save_pretrained(folder)
    return records.Record(
        stage="fetch",
        treatment={
            "name": model.name,
            "source": fetched.resolved,
            "provenance": model.provenance,
            "license": model.license,
        },
        result={
            "base_hash": base_hash,
            "architecture": type(base).__name__,
            "num_parameters": sum(parameter.numel() for parameter in base.parameters()),
            "dtype": str(base.get_input_embeddings().weight.dtype).removeprefix("torch."),
            "size_bytes": size,
            "vocabulary_size": base.get_input_embeddings().num_embeddings,
        },
        observation={},
    )
