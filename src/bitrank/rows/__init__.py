"""Where rows come from: one module a kind, so that adding one leaves the others cached.

Each module has `load(rows, downloads) -> list[RawRow]`. It is found by the source's `kind`, and
`dvc.yaml` names exactly that module among the dependencies of `prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from bitrank.pins import Icd10Rows, JsonlRows


@dataclass(frozen=True)
class RawRow:
    fields: Mapping[str, Any]
    group: str
    """Rows of one group never straddle two splits."""
    where: str
    """File and line, or code: what an error message names."""


def load(rows: Icd10Rows | JsonlRows, downloads: Path) -> list[RawRow]:
    module = import_module(f"bitrank.rows.{rows.kind}")
    loaded: list[RawRow] = module.load(rows, downloads)
    return loaded
