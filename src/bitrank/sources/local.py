"""A base model in a folder of the user's: safetensors only, no code of the folder runs."""

from __future__ import annotations

from pathlib import Path

from bitrank import models
from bitrank.errors import UserError
from bitrank.pins import LocalModel
from bitrank.sources import Fetched


def load(source: LocalModel, downloads: Path) -> Fetched:
    """Raises UserError: no such folder, or one without `config.json` or safetensors weights."""
    folder = Path(source.path)
    if not (folder / "config.json").is_file():
        raise UserError(f"`model.source.path`: {source.path} holds no config.json of a model")
    if not list(folder.glob("*.safetensors")):
        found = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
        also = f" ({', '.join(found)} is a pickle, which can run code: convert it)" if found else ""
        raise UserError(f"`model.source.path`: {source.path} holds no *.safetensors{also}")
    model = models.load_model(folder, keep_dtype=True)
    # A path may hold a user's name: what identifies the model is its hash, in the record.
    return Fetched(model, models.load_tokenizer(folder), {"kind": "local", "name": folder.name})
