"""Where the figures of a sweep belong: one set for each hardware, and how they are named.

What has no evidence is not drawn, and a sentence says why. Configurations that another learning
rate beats are left to the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitrank.charts import Ends
from bitrank.figures import Drawing
from bitrank.pages import Figure
from bitrank.resampling import Estimate
from bitrank.study import Configuration, Study


@dataclass(frozen=True, kw_only=True)
class Drawn:
    figures: Sequence[Figure] = ()
    absent: Sequence[str] = ()
    """Why there is no figure, or what is not in it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The chosen configurations of one setting, and how figures of it are named."""

    study: Study
    setting: str
    suffix: str
    configurations: Sequence[Configuration]

    @property
    def series(self) -> list[str]:
        return list(
            dict.fromkeys(series_of(configuration) for configuration in self.configurations)
        )

    @property
    def seeds(self) -> str:
        """How the noise of a dot is told."""
        counts = sorted({len(configuration.runs) for configuration in self.configurations})
        if counts == [1]:
            return "One seed: the noise between seeds is not known"
        several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        return f"Mean over {several} seeds, with its 95 % interval (t)"

    def figure(self, name: str, alt: str, drawing: Drawing, *caption: str) -> Figure:
        told = ". ".join([*caption, f"Hardware: {self.setting}"]) + "."
        return Figure(f"{name}{self.suffix}", alt, drawing, told)


def places_of(study: Study) -> list[Place]:
    several = len(study.settings) > 1
    chosen = [configuration for configuration in study.configurations if configuration.is_chosen]
    series = list(dict.fromkeys(series_of(configuration) for configuration in chosen))
    ordered = sorted(chosen, key=lambda c: (series.index(series_of(c)), _rank_of(c)))
    return [
        Place(
            study=study,
            setting=setting,
            suffix=f"_{number}" if several else "",
            configurations=[found for found in ordered if found.setting == setting],
        )
        for number, setting in enumerate(study.settings, 1)
    ]


def _rank_of(configuration: Configuration) -> int:
    rank = configuration.params.get("adapter.rank", "")
    return int(rank) if rank.isdigit() else 0


def gather(study: Study, draw: Callable[[Place], Drawn]) -> Drawn:
    """What `draw` makes of each setting."""
    found = [draw(place) for place in places_of(study)]
    absent = [sentence for drawn in found for sentence in drawn.absent]
    return Drawn(
        figures=[figure for drawn in found for figure in drawn.figures],
        absent=list(dict.fromkeys(absent)),
    )


def series_of(configuration: Configuration) -> str:
    """What has a colour and a marker of its own."""
    precision = configuration.params.get("precision.name", "?")
    method = configuration.params.get("adapter.method", "lora")
    of_method = {"lora": precision, "full": f"{precision}, every weight"}
    return of_method.get(method, f"{precision}, {method}")


def label_of(configuration: Configuration, place: Place) -> str:
    """Within its series: the rank where that is all, else the rest of the name."""
    method = configuration.params.get("adapter.method", "lora")
    rank = configuration.params.get("adapter.rank", "?")
    has_rank = method == "lora" or rank != "?"
    alike = [
        other for other in place.configurations
        if series_of(other) == series_of(configuration)
        and (not has_rank or other.params.get("adapter.rank", "?") == rank)
    ]  # fmt: skip
    if len(alike) == 1:
        return f"r{rank}" if has_rank else method
    own = configuration.name.removesuffix(f" on {place.setting}")
    return own.partition("-")[2] or own


def ends_of(found: Estimate) -> Ends:
    return found.low, found.high
