"""sha256 identities of weights, rows and texts: what makes a hand-over checkable.

Weights are hashed by content (name, type, shape, bytes of every tensor in order of name), so that
sharding, file names and metadata do not matter, and packed 4-bit codes with their scales count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bitrank import records
from bitrank.errors import UserError

if TYPE_CHECKING:
    import torch


def hash_json(value: object) -> str:
    return hash_text(records.canonical_json(value))


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(folder: Path) -> str:
    """One hash of the names and contents of a folder's files."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return hash_json([[name, hash_file(folder / name)] for name in names])


def hash_tensor(tensor: torch.Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def hash_weights(folder: Path) -> str:
    """Raises UserError: the folder holds no safetensors file."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no *.safetensors file")
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(files), key=lambda pair: pair[0]):
        header = records.canonical_json([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(header.encode("utf-8"))
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    # The tensors are views of the mapped file: nothing is read before it is hashed.
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, stream.get_tensor(name)


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch  # seconds to import: stages that hash files alone do without

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data  # a view: nothing is copied
