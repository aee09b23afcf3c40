"""A Llama of random weights with a byte tokenizer: nothing is downloaded, everything runs."""

from __future__ import annotations

from pathlib import Path

from bitrank import models
from bitrank.pins import TinyModel
from bitrank.sources import Fetched


def load(source: TinyModel, downloads: Path) -> Fetched:
    model, tokenizer = models.build_tiny(source.hidden_size, source.num_layers, source.init_seed)
    return Fetched(model, tokenizer, {"kind": "tiny", "init_seed": source.init_seed})
