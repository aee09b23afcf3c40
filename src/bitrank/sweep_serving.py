"""What a sweep's adapters keep of their gain, by the way in which they are served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from bitrank.resampling import Estimate, mean_interval
from bitrank.serving_tables import LABELS, SYMBOLS, label_of_way, ways_of
from bitrank.statistics import Z
from bitrank.study import Configuration, Study
from bitrank.sweep_tables import estimate_cell, keys_cell, name_of
from bitrank.tables import Cell, Column, Table, show


def kept_of(
    configuration: Configuration, way: str, metric: Literal["nll", "acc"]
) -> Estimate | str:
    """Share of the gain over the untrained base that is kept, or in words why there is none.

    Over seeds; of one seed, over its items.
    """
    found = [ways_of(run.run).get(way, {}).get("retained", {}).get(metric)
             for run in configuration.runs]  # fmt: skip
    kept = [of for of in found if of is not None]
    if len(kept) < len(found):
        return "the records do not have it"
    undefined = [str(of.get("reason") or "unknown") for of in kept if of.get("share") is None]
    if undefined:
        return f"undefined: {undefined[0]}"
    shares = [float(of["share"]) for of in kept]
    error = kept[0].get("stderr")
    if len(shares) > 1 or error is None:
        return mean_interval(shares)
    return Estimate(mean=shares[0], low=shares[0] - Z * error, high=shares[0] + Z * error)


def served_ways(configuration: Configuration) -> Iterator[tuple[str, str]]:
    """Each way that any run was served in, with its label."""
    for way in LABELS:
        runs = [run.run for run in configuration.runs if way in ways_of(run.run)]
        if runs:
            yield way, label_of_way(runs[0], way)


def serving_table(study: Study) -> Table:
    rows = []
    for configuration in study.configurations:
        for way, label in served_ways(configuration):
            kept = [kept_of(configuration, way, metric) for metric in ("nll", "acc")]
            rows.append([
                Cell(name_of(configuration), configuration.name), Cell(label, way),
                *(Cell(of) if isinstance(of, str) else estimate_cell(of, "share") for of in kept),
                show(len(configuration.runs)),
                keys_cell(configuration.keys, f"{len(configuration.keys)}"),
            ])  # fmt: skip
    return Table(
        name="serving",
        title="What is kept of the gain, by the way to serve",
        columns=[
            Column("configuration", "Configuration"),
            Column("way", "Served"),
            Column("nll_kept", "Gain kept, NLL", with_interval=True),
            Column("acc_kept", "Gain kept, accuracy", with_interval=True),
            Column("num_seeds", "Seeds"),
            Column("runs", "Runs"),
        ],
        rows=rows,
        notes=[
            SYMBOLS,
            "Of the gain over the untrained base, on the same items; base + adapter keeps all. "
            "Mean over seeds and its 95 % interval (t); of one seed, over its items.",
        ],
    )
