"""What a device can hold and do: GPUs known by name, sizes as one writes them, and this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bitrank import hardware
from bitrank.architectures import read_yaml
from bitrank.errors import UserError

GPUS = Path("conf") / "plan" / "gpus.yaml"
MIB, GIB = 2**20, 2**30
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": MIB, "GIB": GIB, "TIB": 2**40}  # fmt: skip
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
FIELDS = ("name", "memory_mib", "tflops", "gb_per_second", "dtype")
HERE = "here"


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    name: str
    kind: Literal["cpu", "gpu"]
    memory_bytes: int | None
    """None: any."""
    flops_per_second: float | None
    """Dense matrix operations in the 16-bit type; None where it is not known."""
    bytes_per_second: float | None
    dtype: Literal["bfloat16", "float16", "float32"]
    """The type to compute in."""


def read_gpus(file: Path = GPUS) -> list[Accelerator]:
    """All that are known by name, the smallest first.

    Raises:
        UserError: an entry without one of the fields.
    """
    found = []
    for entry in read_yaml(file):
        missing = [name for name in FIELDS if name not in entry]
        if missing:
            raise UserError(f"{file}: {entry.get('name', entry)} has no {', '.join(missing)}")
        found.append(
            Accelerator(
                name=str(entry["name"]),
                kind="gpu",
                memory_bytes=int(entry["memory_mib"]) * MIB,
                flops_per_second=float(entry["tflops"]) * 1e12,
                bytes_per_second=float(entry["gb_per_second"]) * 1e9,
                dtype=entry["dtype"],
            )
        )
    return sorted(found, key=lambda gpu: gpu.memory_bytes or 0)


def find_gpu(name: str, known: Sequence[Accelerator]) -> Accelerator:
    """The one of this name, however it is written: `rtx4090`, `NVIDIA GeForce RTX 4090`.

    A name that several have, such as A100, means the one with least memory.

    Raises:
        UserError: none of them; the message lists all.
    """
    wanted = _plain(name)
    exact = [gpu for gpu in known if _plain(gpu.name) == wanted]
    begins = [gpu for gpu in known if _plain(gpu.name).startswith(wanted)]
    if wanted and (exact or begins):
        return (exact or begins)[0]
    listed = ", ".join(gpu.name for gpu in known)
    raise UserError(
        f"no GPU {name!r} is known; known are {listed}, and here (this machine). For another one "
        f"give --memory, such as --memory 24GiB, or add it to {GPUS}"
    )


def parse_size(text: str) -> int:
    """Bytes of `24GiB`, `80 GB`, `46068MiB`.

    Raises:
        UserError: it is no size, or none that anything fits in.
    """
    match = SIZE.fullmatch(text)
    unit = UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None:
        raise UserError(f"{text!r} is no size of memory: write 24GiB (2^30 bytes) or 24GB (10^9)")
    size = int(float(match.group(1)) * unit)
    if size < MIB:
        raise UserError(f"{text!r} is {size} bytes: write the unit too, such as 24GiB")
    return size


def this_cpu() -> Accelerator:
    """This machine, for runs on its CPU. What it does a second only a measurement tells."""
    machine = hardware.fingerprint()
    cpu = machine["cpu"]
    name = f"this machine, {cpu['cores']} cores of {cpu['model'] or cpu['architecture']}"
    return Accelerator(name=name, kind="cpu", memory_bytes=machine["memory_bytes"],
                       flops_per_second=None, bytes_per_second=None, dtype="float32")  # fmt: skip


def this_gpu(known: Sequence[Accelerator]) -> Accelerator | None:
    """The smallest GPU of this machine; its speed as the table has it; None without one."""
    gpus = hardware.gpus()
    if not gpus:
        return None
    gpu = min(gpus, key=lambda found: int(found["memory_bytes"]))
    best = recognize(gpu["name"], known)
    return Accelerator(
        name=f"this machine's {gpu['name']}",
        kind="gpu",
        memory_bytes=int(gpu["memory_bytes"]),
        flops_per_second=best.flops_per_second if best else None,
        bytes_per_second=best.bytes_per_second if best else None,
        dtype=best.dtype if best else "bfloat16",
    )


def recognize(name: str, known: Sequence[Accelerator]) -> Accelerator | None:
    """The entry whose words all stand in what nvidia-smi calls a GPU; of several the longest."""
    words = set(_words(name))
    fitting = [gpu for gpu in known if set(_words(gpu.name)) <= words]
    return max(fitting, key=lambda gpu: len(gpu.name), default=None)


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())
