"""Meters: what a block of code takes in tensor memory, process memory, device memory and time.

Pure mechanism, without knowledge of models, and each tested against known quantities. Tensor memory
is counted from torch's own operations: the same block gives the same number of bytes in every run,
which the memory of a process never does, because the allocator keeps what was freed. Bytes and
seconds; what a platform does not tell is None.
"""

# mypy: allow-untyped-calls
# because the base class of torch's dispatch modes has no types.
from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REST = "activations"
"""What was made inside the block and is no gradient: activations and temporary results."""
PROC = Path("/proc/self")
CEILING_SIZE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrix product that stands for what a device can do."""


class TensorMeter(TorchDispatchMode):
    """Counts the bytes of all tensor storages that are alive while the block runs.

    A storage counts once, however many views it has, from the operation that returned it until it
    is freed. What existed before must be registered, each part under its category: otherwise it
    counts as made here at the first view of it, or never. Scratch memory that a kernel takes and
    gives back within one operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_by_category: Counter[str] = Counter()
        self.peak_by_category: Counter[str] = Counter()
        self._known: dict[int, tuple[weakref.ref[Any], int, str]] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def live_bytes(self) -> int:
        return self.live_by_category.total()

    @property
    def peak_bytes(self) -> int:
        return self.peak_by_category.total()

    def register(self, category: str, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors made outside; a storage stays in the category that named it first."""
        for tensor in tensors:
            self._see(tensor, category)

    def watch_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """From its accumulation on, the gradient of each of these is of category "gradients"."""
        for parameter in parameters:
            hook = parameter.register_post_accumulate_grad_hook(self._see_gradient)
            self._hooks.append(hook)

    def __enter__(self) -> TensorMeter:
        # Tensors in reference cycles would be freed whenever the collector happens to run.
        gc.collect()
        self._collects = gc.isenabled()
        gc.disable()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()
        if self._collects:
            gc.enable()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf, REST)
        return out

    def _see(self, tensor: torch.Tensor, category: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            reference, counted, category = self._known[key]
        else:
            reference, counted = weakref.ref(storage, partial(self._forget, key)), 0
        self._known[key] = (reference, size, category)
        self.live_by_category[category] += size - counted  # not 0: made now, or resized in place
        if self.live_bytes > self.peak_bytes:
            self.peak_by_category = self.live_by_category.copy()

    def _see_gradient(self, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        self._see(gradient, REST)
        key = gradient.untyped_storage()._cdata
        reference, size, category = self._known[key]
        self._known[key] = (reference, size, "gradients")
        self.live_by_category[category] -= size
        self.live_by_category["gradients"] += size

    def _forget(self, key: int, _: object) -> None:
        _, size, category = self._known.pop(key)
        self.live_by_category[category] -= size


def reachable_tensors(root: object) -> Iterator[torch.Tensor]:
    """Each tensor that `root` holds, through attributes and containers, however deep.

    A walk over parameters misses what quantized layers hang on them: block scales and code tables
    are attributes of the weight, int8 scales of the layer's state.
    """
    seen: set[int] = set()
    waiting: list[object] = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type | ModuleType):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple | set):
            waiting.extend(item)
        waiting.extend(getattr(item, "__dict__", {}).values())


class StepClock:
    """Seconds of each step, the device's pending work included; drops the warm-up.

    `start` begins the first step, and begins anew after work that is not to be timed.
    """

    def __init__(self, warmup_steps: int, device: torch.device) -> None:
        self._warmup_steps, self._device = warmup_steps, device
        self._all: list[float] = []
        self._last = 0.0

    def start(self) -> None:
        self._last = self._now()

    def tick(self) -> None:
        """The step that began at the last tick, or at `start`, ends here."""
        now = self._now()
        self._all.append(now - self._last)
        self._last = now

    @property
    def seconds(self) -> list[float]:
        """Of each step after the warm-up."""
        return self._all[self._warmup_steps :]

    def summary(self) -> dict[str, Any]:
        """Median, 10th and 90th percentile (linearly interpolated), and the raw seconds."""
        p10, median, p90 = quantiles(self.seconds, (0.1, 0.5, 0.9))
        return {"median": median, "p10": p10, "p90": p90, "all": self.seconds}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter()


def quantiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    at = torch.tensor(list(shares), dtype=torch.float64)
    found: list[float] = torch.tensor(list(values), dtype=torch.float64).quantile(at).tolist()
    return found


def measure_ceiling(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations a second of the fastest of the square matrix products of `seconds` seconds."""
    size = CEILING_SIZE[device.type]
    left, right = torch.rand(2, size, size, device=device).to(dtype)
    clock = StepClock(1, device)
    clock.start()
    end = perf_counter() + seconds
    while not clock.seconds or perf_counter() < end:
        left @ right
        clock.tick()
    return 2 * size**3 / min(clock.seconds)


class ProcessMeter:
    """Peak resident memory of this process inside the block, above what it held at `baseline`.

    Linux tells it as VmHWM. `ru_maxrss` would be wrong: a child inherits it from its parent.
    """

    def __init__(self, baseline: int | None) -> None:
        self._baseline = baseline
        self.peak_above_baseline: int | None = None

    def __enter__(self) -> ProcessMeter:
        self._reset = reset_process_peak()
        return self

    def __exit__(self, *_: object) -> None:
        peak = process_memory()["peak_bytes"] if self._reset else None
        if peak is not None and self._baseline is not None:
            self.peak_above_baseline = max(0, peak - self._baseline)


def process_memory() -> dict[str, int | None]:
    """Resident bytes now (VmRSS) and at their highest (VmHWM); None where there is no /proc."""
    try:
        lines = (PROC / "status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {"resident_bytes": None, "peak_bytes": None}
    kib = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines)
           if name in ("VmRSS", "VmHWM")}  # fmt: skip
    return {
        "resident_bytes": int(kib["VmRSS"]) * 1024,
        "peak_bytes": int(kib["VmHWM"]) * 1024,
    }


def reset_process_peak() -> bool:
    """Let VmHWM begin again at the present VmRSS; False where the platform does not allow it."""
    try:
        (PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


class CudaMeter:
    """Peaks of CUDA memory inside the block; `peaks` stays None on any other device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peaks: dict[str, int] | None = None

    def __enter__(self) -> CudaMeter:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type != "cuda":
            return
        torch.cuda.synchronize(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        self.peaks = {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(self._device),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(self._device),
            "device_used_bytes": total - free,
        }
