"""What can be computed here, found out by trying it.

A machine is not judged by its name: each precision computes one small layer forwards and backwards,
each kind of link is made once between the data and DVC's cache. bfloat16 on a CPU without the
instructions is correct and, backwards, a hundred times slower, which no version number tells.
"""

from __future__ import annotations

import configparser
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from bitrank import config, hardware, paths, schema
from bitrank.errors import ConfigError, UserError

Status = Literal["ok", "slow", "no", "unknown"]
CONSTRAINTS = (Path("constraints.txt"), Path("constraints-numeric.txt"))
PRECISIONS = Path("conf") / "precision"
DVC = Path(".dvc")
SLOW, UNUSABLE = 4.0, 30.0
"""Times as long as fp32 needs, from which a precision is called slow, and no use at all."""
TOKENS = 64
HIDDEN_SIZE = 512
MAX_CALLS, SECONDS_A_PROBE = 200, 0.1
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    name: str
    status: Status
    detail: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one layer: forward alone, and forward with the gradient of its input."""

    forward: float
    step: float


def examine() -> Iterator[Finding]:
    """Yield the findings one by one; all take about ten seconds, most of them for torch."""
    yield from _machine()
    yield from _disk()
    yield from _packages()
    yield from _precisions()


def _machine() -> Iterator[Finding]:
    machine = hardware.fingerprint()
    cpu = machine["cpu"]
    features = ", ".join(cpu["features"]) or "none that matter"
    detail = f"{cpu['model'] or cpu['architecture']}, {cpu['cores']} cores; {features}"
    yield Finding(name="cpu", status="ok", detail=detail)
    memory = machine["memory_bytes"]
    yield Finding(
        name="memory",
        status="unknown" if memory is None else "ok",
        detail="the system does not tell" if memory is None else f"{memory / GIB:.1f} GiB",
    )
    for gpu in machine["gpus"]:
        detail = f"{gpu['name']}, {gpu['memory_bytes'] / GIB:.1f} GiB, driver {gpu['driver']}"
        yield Finding(name="gpu", status="ok", detail=detail)
    if not machine["gpus"]:
        yield Finding(
            name="gpu", status="no", detail="none: all stages run with runtime.device=cpu"
        )


def _disk() -> Iterator[Finding]:
    data = paths.DATA if paths.DATA.is_dir() else Path(".")
    free = shutil.disk_usage(data).free
    yield Finding(name="disk", status="ok", detail=f"{free / GIB:.1f} GiB free for {paths.DATA}/")
    if not DVC.is_dir():
        yield Finding(name="dvc cache", status="unknown", detail="no .dvc here: not a DVC project")
        return
    try:
        kinds = find_links(data, cache_folder())
    except (ImportError, OSError) as error:
        yield Finding(name="dvc cache", status="unknown", detail=f"cannot be tried: {error}")
        return
    works = ", ".join(kind for kind, possible in kinds.items() if possible)
    yield Finding(
        name="dvc cache",
        status="ok" if works else "slow",
        detail=f"{works} between data and cache: nothing is stored twice"
        if works
        else "only copies between data and cache: everything is stored twice",
    )


def cache_folder(dvc: Path = DVC) -> Path:
    """Where DVC keeps objects: `cache.dir` of its configuration, local before shared."""
    parser = configparser.ConfigParser()
    parser.read([dvc / "config", dvc / "config.local"])
    return dvc / parser.get("cache", "dir", fallback="cache")


def find_links(data: Path, cache: Path) -> dict[str, bool]:
    """Which kinds of link work from `cache` to `data`, each made and removed again.

    Raises:
        ImportError: DVC is not installed.
        OSError: one of the folders cannot be written.
    """
    from dvc_objects.fs import system

    while not cache.is_dir():  # not made yet: its parent is on the same filesystem
        cache = cache.parent
    makers: dict[str, Callable[[str, str], None]] = {
        "reflink": system.reflink,
        "hardlink": system.hardlink,
        "symlink": system.symlink,
    }
    found = {}
    with (
        tempfile.TemporaryDirectory(dir=cache) as here,
        tempfile.TemporaryDirectory(dir=data) as there,
    ):
        source = Path(here).resolve() / "object"
        source.write_bytes(b"bitrank")
        for kind, make in makers.items():
            link = Path(there) / kind
            try:
                make(str(source), str(link))
                found[kind] = link.read_bytes() == b"bitrank"
            except OSError:
                found[kind] = False
    return found


def _packages() -> Iterator[Finding]:
    for file in CONSTRAINTS:
        if not file.is_file():
            yield Finding(name="packages", status="unknown", detail=f"{file} does not exist")
            continue
        pinned, wrong = compare_versions(file.read_text(encoding="utf-8"))
        detail = f"all {pinned} as in {file}" if not wrong else f"{file}: {'; '.join(wrong)}"
        yield Finding(name="packages", status="no" if wrong else "ok", detail=detail)


def compare_versions(constraints: str) -> tuple[int, list[str]]:
    """How many packages of a constraints file are installed here, and those that differ from it.

    A package that is not installed differs from nothing: extras are optional.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    installed, wrong = 0, []
    for line in constraints.splitlines():
        try:
            pin = Requirement(line.split("#")[0].strip())
            version = metadata.version(pin.name)
        except (InvalidRequirement, metadata.PackageNotFoundError):
            continue
        installed += 1
        if not pin.specifier.contains(version, prereleases=True):
            wrong.append(f"{pin.name} is {version}, not {str(pin.specifier).lstrip('=')}")
    return installed, wrong


def _precisions() -> Iterator[Finding]:
    import torch

    from bitrank import models

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = models.build_tiny(HIDDEN_SIZE, 1, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # ratios then hold on a busy machine too
    try:
        with tempfile.TemporaryDirectory() as folder:
            models.save_model(model, tokenizer, Path(folder))
            baseline: Timing | None = None
            for name, precision in read_precisions(PRECISIONS):
                finding, timing = _probe(name, precision, Path(folder), device, baseline)
                baseline = baseline or timing
                yield finding
    finally:
        torch.set_num_threads(threads)


def read_precisions(folder: Path) -> list[tuple[str, config.PrecisionConfig]]:
    """The precisions of `conf/`, fp32 first as the measure of the others; then bf16 compute.

    Raises:
        UserError: no `conf/precision/fp32.yaml` here.
        ConfigError: a file with faults.
    """
    from omegaconf import OmegaConf

    if not (folder / "fp32.yaml").is_file():
        raise UserError(f"{folder}/fp32.yaml does not exist: run this in the project's root")
    faults: list[str] = []
    found: dict[str, config.PrecisionConfig] = {}
    for file in sorted(folder.glob("*.yaml"), key=lambda f: (f.stem != "fp32", f.stem)):
        values = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
        precision = schema.build(config.PrecisionConfig, values, "precision", faults)
        if precision is not None:
            found[file.stem] = precision
    if faults:
        raise ConfigError(faults)
    for name in [name for name, p in found.items() if p.quant_type in ("fp4", "nf4")]:
        if found[name].compute_dtype != "bfloat16":
            found[f"{name}, bf16 compute"] = dataclasses.replace(
                found[name], compute_dtype="bfloat16"
            )
    return list(found.items())


def _probe(
    name: str,
    precision: config.PrecisionConfig,
    folder: Path,
    device: Any,
    baseline: Timing | None,
) -> tuple[Finding, Timing | None]:
    """One linear layer on `TOKENS` tokens, against `baseline`, what fp32 took."""
    from bitrank import weights

    try:
        model = weights.quantize_model(folder, precision, device)
        layer = next(iter(weights.linear_layers(model).values()))
        timing = _time_layer(layer, precision.weight_dtype, device)
    except Exception as error:  # whatever a kernel raises here is the finding
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding(name=name, status="no", detail=f"not possible here: {reason}"), None
    if baseline is None:
        size = f"{HIDDEN_SIZE} x {HIDDEN_SIZE} layer, {TOKENS} tokens, {device}"
        spent = f"forward {timing.forward * 1e3:.2f} ms, with backward {timing.step * 1e3:.2f} ms"
        return Finding(name=name, status="ok", detail=f"{spent} ({size})"), timing
    forward, step = timing.forward / baseline.forward, timing.step / baseline.step
    status: Status = "ok" if step < SLOW else "slow" if step < UNUSABLE else "no"
    verdict = {"ok": "", "slow": ": slow", "no": ": unusably slow"}[status]
    detail = f"forward {forward:.1f}, with backward {step:.1f} times the time of fp32{verdict}"
    return Finding(name=name, status=status, detail=detail), timing


def _time_layer(layer: Any, dtype: str, device: Any) -> Timing:
    """Evaluation and a training step of a frozen layer, whose input needs a gradient."""
    import torch

    inputs = torch.randn(TOKENS, HIDDEN_SIZE, device=device, dtype=getattr(torch, dtype))

    def evaluate() -> None:
        with torch.inference_mode():
            layer(inputs)

    def train() -> None:
        output = layer(inputs.detach().requires_grad_())
        output.backward(torch.ones_like(output))

    forward = _shortest(evaluate, device)
    layer.train()
    return Timing(forward=forward, step=_shortest(train, device))


def _shortest(work: Callable[[], None], device: Any) -> float:
    """The shortest of several calls, in seconds; a slow one is not called often."""
    import torch

    best = spent = float("inf")
    for call in range(MAX_CALLS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        best, spent = (min(best, took), spent + took) if call else (took, 0.0)  # first: warm-up
        if spent > SECONDS_A_PROBE:
            break
    return best
