"""A base model in a folder of the user's: safetensors only, no code of the folder runs."""

from __future__ import annotations

from pathlib import Path

from bitrank import models
from bitrank.errors import UserError
from bitrank.pins import LocalModel
from bitrank.sources import Fetched


def load(source: LocalModel, downloads: Path) -> Fetched:
    """Raises UserError: no such folder, or no checkpoint in it that can be used."""
    folder = Path(source.path)
    if not (folder / "config.json").is_file():
        raise UserError(f"`model.source.path`: {source.path} holds no config.json of a model")
    model = models.load_checkpoint(folder, "model.source.path")
    # A path may hold a user's name: what identifies the model is its hash, in the record.
    return Fetched(model, models.load_tokenizer(folder), {"kind": "local", "name": folder.name})
