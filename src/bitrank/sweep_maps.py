"""The figures of what each configuration of a sweep costs and gives at a glance: heat maps, rates.

A place of the grid without a number tells what became of its points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from bitrank.charts import Rate, Tile, draw_rates, draw_tiles
from bitrank.evidence import peak_of
from bitrank.projection import METRICS as PATHS
from bitrank.study import Configuration, Study
from bitrank.sweep_figures import MEANT, MEMORY, QUALITY
from bitrank.sweep_places import Drawn, Place, gather, label_of, series_of
from bitrank.sweep_tables import over_seeds
from bitrank.swept_runs import SweptRun
from bitrank.tables import Kind, format_value


def heat_maps(study: Study) -> Drawn:
    """Rank by precision, one for each of accuracy, NLL, memory and speed."""
    return gather(study, _heat_maps)


def _heat_maps(place: Place) -> Drawn:
    by_tile: dict[tuple[str, str], list[Configuration]] = {}
    for configuration in place.configurations:
        by_tile.setdefault(_tile_of(configuration), []).append(configuration)
    several = [names for names, found in by_tile.items() if len(found) > 1]
    if several:
        shown = ", ".join(" ".join(names) for names in several[:3])
        return Drawn(absent=[
            f"No heat maps on {place.setting}: more than rank and precision was varied, and there "
            f"are several configurations of {shown}."
        ])  # fmt: skip
    rows = list(dict.fromkeys(row for row, _ in by_tile))
    columns = sorted({column for _, column in by_tile}, key=_by_rank)
    if len(rows) < 2 and len(columns) < 2:
        return Drawn(
            absent=[f"No heat maps on {place.setting}: there is one rank and one precision."]
        )
    figures, absent = [], []
    for name, what, kind, read in _MAPS:
        tiles = {
            (row, column): _tile(place, (row, column), by_tile.get((row, column)), kind, read)
            for row in rows for column in columns
        }  # fmt: skip
        if all(tile.value is None for tile in tiles.values()):
            absent.append(f"No heat map of {what} on {place.setting}: it is not known of any run.")
            continue
        told = ", ".join(f"{' '.join(names)}: {tile.shown}" for names, tile in tiles.items())
        figures.append(place.figure(
            f"heat_{name}", f"{what} by precision and rank. {told}",
            draw_tiles(rows, columns, tiles, "rank of the adapter" + _AND_FULL[_FULL in columns]),
            f"{what[0].upper()}{what[1:]}: rows are precisions of the base, darker is more",
            *_heat_note(place, name),
        ))  # fmt: skip
    return Drawn(figures=figures, absent=absent)


_FULL = "full"
_AND_FULL = {True: "; full: every weight", False: ""}


def _tile_of(configuration: Configuration) -> tuple[str, str]:
    params = configuration.params
    method, rank = params.get("adapter.method", "lora"), params.get("adapter.rank")
    column = rank or "?" if method == "lora" else f"{method} r{rank}" if rank else method
    return params.get("precision.name", "?"), column


def _by_rank(column: str) -> tuple[bool, int, str]:
    return not column.isdigit(), int(column) if column.isdigit() else 0, column


def _tile(
    place: Place,
    names: tuple[str, str],
    found: Sequence[Configuration] | None,
    kind: Kind,
    read: Callable[[Configuration], float | None],
) -> Tile:
    if not found:
        points = place.study.sweep.points
        fates = {point.key: point.status for point in points if _is_at(point.values, names)}
        fates |= {left.key: left.status for left in place.study.left_out if left.key in fates}
        return Tile(value=None, shown=", ".join(sorted(set(fates.values()) - {"done"})) or "–")
    value = read(found[0])
    shown = "unknown" if value is None else format_value(value, kind)
    if value is not None and kind != "rate":
        shown = f"{value / 2**20:,.0f} MiB" if kind == "bytes" else f"{value:.3f}"
    return Tile(value=value, shown=shown.removesuffix(" tokens/s"))


def _is_at(values: Mapping[str, str], names: tuple[str, str]) -> bool:
    method = values.get("adapter", "lora")
    rank = _FULL if method == "full" else values.get("adapter.rank")
    return (values.get("precision"), rank) == names


def _heat_note(place: Place, name: str) -> Iterator[str]:
    if name in QUALITY:
        yield MEANT[name]
        yield place.seeds.partition(",")[0]
    elif name == "memory":
        yield MEMORY
    else:
        yield RATES["train"]


def _score_reader(metric: str) -> Callable[[Configuration], float | None]:
    def read(configuration: Configuration) -> float | None:
        found = over_seeds(configuration, metric)
        return None if found is None else found.mean

    return read


def measured_run(configuration: Configuration) -> SweptRun | None:
    """The run whose measurement stands for the configuration."""
    return next((run for run in configuration.runs if "measure" in run.run.records), None)


def _rate(configuration: Configuration, phase: str) -> float | None:
    run = measured_run(configuration)
    found = None if run is None else run.run.find(*PATHS[f"speed/{phase}_tokens_per_second"])
    return None if found is None else float(found)


RATES = {
    "train": "Training: tokens a second without padding, one measurement alone on the device; how "
    "it differs from day to day is not in it",
    "decode": "Decoding: new tokens a second at batch 1, one measurement alone on the device; how "
    "it differs from day to day is not in it",
}
_MAPS: tuple[tuple[str, str, Kind, Callable[[Configuration], float | None]], ...] = (
    ("acc", "mean accuracy", "plain", _score_reader("acc")),
    ("nll", "mean NLL (nats)", "plain", _score_reader("nll")),
    ("memory", "peak memory of a training step", "bytes", peak_of),
    ("speed", "training speed (tokens/s)", "rate", lambda found: _rate(found, "train")),
)
"""(name, what, kind, how it is read)."""


def rates(study: Study) -> Drawn:
    """Tokens a second of training and of decoding."""
    return gather(study, _rates)


def _rates(place: Place) -> Drawn:
    figures, absent = [], []
    for phase, caption in RATES.items():
        known = [(c, run, rate) for c in place.configurations
                 if (run := measured_run(c)) is not None
                 and (rate := _rate(c, phase)) is not None]  # fmt: skip
        if not known:
            verb = {"train": "training", "decode": "decoding"}[phase]
            absent.append(f"No figure of {verb} speed on {place.setting}: no run measured it.")
            continue
        bars = [
            Rate(series=series_of(c), value=rate, is_disturbed=run.is_disturbed,
                 label=f"{c.params.get('precision.name', '?')} {label_of(c, place)}")
            for c, run, rate in known
        ]  # fmt: skip
        told = ", ".join(f"{bar.label} {bar.value:.4g}" for bar in bars)
        busy = any(bar.is_disturbed for bar in bars)
        without = [
            c.name for c in place.configurations if c.name not in {k.name for k, *_ in known}
        ]
        figures.append(place.figure(
            f"{phase}_speed", f"Tokens a second. {told}",
            draw_rates(bars, place.series, "tokens a second"),
            caption,
            *(["Pale: the machine had something else to do meanwhile"] if busy else []),
            *([f"Not measured: {', '.join(without)}"] if without else []),
        ))  # fmt: skip
    return Drawn(figures=figures, absent=absent)
