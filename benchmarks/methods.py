"""Every adapter method on every precision: what works, what is refused, and because of what.

Each point goes through the stages on a tiny model of random weights: quantize, two steps of
training, merge, evaluation of both; the adapter is loaded from its folder for each. What is refused
must be refused when it is composed. The page `docs/methods.md` follows from the configuration
alone, and is written when everything went as it says.

    make methods                                                        # all points, and the page
    PYTHONPATH=src python benchmarks/methods.py --only vera oft         # some methods, no page
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from omegaconf import OmegaConf

from bitrank import (
    composition,
    config,
    evaluation,
    merging,
    methods,
    models,
    paths,
    preparation,
    quantization,
    training,
)
from bitrank.config import RunConfig
from bitrank.errors import ConfigError, UserError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
SHORT = ("experiment=smoke", "train.global_batch_size=24", "train.micro_batch_size=24")
"""48 rows make two steps."""
TURNS = (
    ("merge=dequantized", "merge=original"),
    ("train.optimizer=adamw", "train.optimizer=adamw_8bit"),
    ("train.gradient_checkpointing=false", "train.gradient_checkpointing=true"),
)
"""What else is varied, one value after another: each pair of a method and one of these occurs."""


@dataclass(frozen=True, kw_only=True)
class Point:
    method: str
    precision: str
    others: tuple[str, ...]
    run: RunConfig | None
    refused: str | None
    """What the composition says against it."""

    @property
    def name(self) -> str:
        return f"{self.method} on {self.precision}"


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (ROOT / "conf" / group).glob("*.yaml"))


def compose_points(chosen: Sequence[str] = ()) -> list[Point]:
    """Each method on each precision, with the other settings in turns."""
    points = []
    with composition.composing(ROOT / "conf") as compose:
        for row, method in enumerate(options("adapter")):
            at = row
            for precision in options("precision"):
                if chosen and method not in chosen:
                    continue
                picks = (at, at // 2, at + at // 2)
                turns = [values[pick % 2] for values, pick in zip(TURNS, picks, strict=True)]
                points.append(_compose_point(compose, method, precision, turns))
                at += points[-1].run is not None
    return points


def _compose_point(compose: Any, method: str, precision: str, turns: list[str]) -> Point:
    asked = [*SHORT, f"adapter={method}", f"precision={precision}"]
    try:
        text, others = compose([*asked, *turns]), turns
    except ConfigError:
        try:
            text, others = _without_refused(compose, asked, turns)
        except ConfigError as error:
            told = " ".join(str(error).partition(":\n")[2].split())
            return Point(method=method, precision=precision, others=(), run=None, refused=told)
    parsed = config.parse(OmegaConf.to_container(OmegaConf.create(text)))
    source = cast(Any, parsed.data.rows)
    rows = dataclasses.replace(source, path=str(ROOT / "tests/fixtures/colours.jsonl"))
    run = dataclasses.replace(parsed, data=dataclasses.replace(parsed.data, rows=rows))
    return Point(method=method, precision=precision, others=tuple(others), run=run, refused=None)


def _without_refused(compose: Any, asked: list[str], turns: list[str]) -> tuple[str, list[str]]:
    """What else a method refuses is not the question here. Raises ConfigError: it is refused."""
    kept: list[str] = []
    text = compose(asked)
    for turn in turns:
        try:
            text = compose([*asked, *kept, turn])
        except ConfigError:
            continue
        kept.append(turn)
    return text, kept


@contextmanager
def project(run: RunConfig) -> Iterator[None]:
    """A folder of its own to work in, with the tiny model and its rows."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            model, tokenizer = models.build_tiny(64, 2, 0)
            models.save_model(model, tokenizer, paths.ORIGINAL)
            preparation.prepare_data(run.data, paths.ORIGINAL, paths.PREPARED,
                                     Path("audit"), Path("downloads"))  # fmt: skip
            yield
        finally:
            os.chdir(before)


def run_point(point: Point) -> dict[str, Any]:
    """The results of its stages by name, in the current project."""
    run = point.run
    assert run is not None
    quantized = quantization.quantize_base(run.precision, run.runtime)
    trained = training.train_adapter(run.train, run.adapter, run.precision, run.seeds, run.runtime,
                                     run.data.max_sequence_tokens)  # fmt: skip
    merged = merging.merge_adapter(run.merge, run.runtime)
    scored = {
        subject: evaluation.evaluate_model(subject, run.evaluate, run.runtime)
        for subject in ("adapter", "merged")
    }
    stages = {"quantize": quantized, "train": trained, "merge": merged, **scored}
    return {name: record.result for name, record in stages.items()}


def write_page(points: Sequence[Point]) -> str:
    """The page, from the configuration alone."""
    precisions = options("precision")
    by_name = {(point.method, point.precision): point for point in points}
    reasons: list[str] = []
    lines = [
        "# Methods",
        "",
        "`adapter=` chooses what is added to the base and trained, `precision=` how the base is "
        "held. This",
        "page is written by `make methods`, which tries every cell on a tiny model: quantize, "
        "train, load,",
        "merge, evaluate. *yes*: trained and merged; *not merged*: trained and evaluated beside "
        "the base, and",
        "the records of `merge` and `evaluate-merged` say why there is no merged model; a number: "
        "refused when",
        "it is composed, with the reason below.",
        "",
        f"| `adapter=` | {' | '.join(precisions)} | what is trained |",
        f"|---|{'---|' * (len(precisions) + 1)}",
    ]
    for method in options("adapter"):
        cells = [_cell(by_name[method, precision], reasons) for precision in precisions]
        lines.append(f"| `{method}` | {' | '.join(cells)} | {_describe(method)} |")
    lines += ["", "Refused, because:", ""]
    lines += [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    lines += ["", "Not merged, because:", ""]
    told: dict[str, list[str]] = {}
    for method in options("adapter"):
        why_not = methods.of(_method_of(by_name, method)).not_merged
        if why_not is not None:
            told.setdefault(why_not, []).append(f"`{method}`")
    lines += [f"- {', '.join(names)}: {why_not}." for why_not, names in told.items()]
    return "\n".join([*lines, ""])


def _method_of(by_name: dict[tuple[str, str], Point], option: str) -> str:
    runs = (point.run for (name, _), point in by_name.items() if name == option)
    return next(run.adapter.method for run in runs if run is not None)


def _cell(point: Point, reasons: list[str]) -> str:
    if point.run is not None:
        return "yes" if methods.of(point.run.adapter.method).not_merged is None else "not merged"
    assert point.refused is not None
    reason = re.sub(r"\w+( weights cannot| codes)", r"quantized\1", point.refused)
    if reason not in reasons:
        reasons.append(reason)
    return str(reasons.index(reason) + 1)


def _describe(option: str) -> str:
    """The comment above its configuration, up to the first colon's sentence."""
    comment = []
    for line in (ROOT / "conf" / "adapter" / f"{option}.yaml").read_text("utf-8").splitlines():
        if not line.startswith("# "):
            break
        comment.append(line[2:])
    return " ".join(comment).partition(". ")[0].rstrip(".")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="METHOD")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.only) - set(options("adapter")))
    if unknown:
        raise UserError(f"there is no method {', '.join(unknown)}; there are: "
                        f"{', '.join(options('adapter'))}")  # fmt: skip
    points = compose_points(chosen.only)
    failed = 0
    first = next(point.run for point in points if point.run is not None)
    with project(first):
        for point in points:
            failed += not _try(point)
    if failed:
        print(f"{failed} of {len(points)} points did not do what they should")
        return 1
    if not chosen.only:
        PAGE.write_text(write_page(points), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


def _try(point: Point) -> bool:
    if point.run is None:
        print(f"{point.name}: refused: {point.refused}")
        return True
    try:
        found = run_point(point)
    except Exception as error:  # whatever it is, the other points are still to be tried
        print(f"{point.name} {' '.join(point.others)}: FAILED: {type(error).__name__}: {error}")
        return False
    kl = (found["merge"]["check"] or {}).get("mean_kl")
    merged = "not merged" if kl is None else f"merged, KL {kl:.1e}"
    trained = f"{found['train']['num_trainable_parameters']:,} parameters trained"
    print(f"{point.name} {' '.join(point.others)}: {trained}, {merged}")
    return True


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
