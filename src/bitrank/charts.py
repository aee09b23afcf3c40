"""The figures of a sweep: what each shows is told by `sweep_figures`, here it is drawn.

A series (a precision, or how it was trained) has a colour and a marker or hatch of its own, and
every dot its label, so that nothing rests on colour alone. Panels stand one above the other: a
figure stays as narrow as a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitrank.figures import COLOURS, GREY, HATCHES, INK, MARKERS, Drawing, Points, canvas, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

LINES = ("-", "--", ":", "-.")
LIGHT, DARK = (240, 245, 250), (0, 52, 92)
"""Ends of the heat maps' scale, red, green and blue: one hue, so that it is the same in grey."""
LABEL_HEIGHT, LETTER_WIDTH = 9.0, 5.2
"""Of a label, in points."""
SIDES = ((1, 6), (1, -6), (-1, 6), (-1, -6), (1, 14), (-1, 14), (1, -14), (-1, -14))
"""Where a label may stand beside its dot: to the right or left, and how many points higher."""
Box = tuple[float, float, float, float]
"""Left, below, right, above."""
Ends = tuple[float | None, float | None]
UNKNOWN: Ends = (None, None)


@dataclass(frozen=True, kw_only=True)
class Dot:
    series: str
    label: str
    x: float
    y: float
    x_ends: Ends = UNKNOWN
    """Of the interval; null where the noise is not known."""
    y_ends: Ends = UNKNOWN
    is_front: bool = True
    """Drawn filled; others are hollow."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A place of a heat map; without a value it is hatched and `shown` tells why."""

    value: float | None
    shown: str


@dataclass(frozen=True, kw_only=True)
class Rate:
    series: str
    label: str
    value: float
    is_disturbed: bool
    """Measured while the machine had something else to do."""


def draw_dots(
    dots: Sequence[Dot],
    series: Sequence[str],
    x_axis: str,
    y_axis: str,
    *,
    front: Points = (),
    log_x: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Drawing:
    """A scatter with intervals; `front` is joined by a line, `levels` are drawn across.

    `series`: all that any figure beside it has, so that each looks the same in all.
    """
    with canvas(3.4) as figure:
        axes = figure.add_subplot()
        axes.grid(visible=True)
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=INK, linewidth=0.9, linestyle=":",
                      label="Pareto front", zorder=1.5)  # fmt: skip
        for index, (name, level) in enumerate((levels or {}).items()):
            axes.axhline(level, color=GREY, linewidth=1.1, linestyle=LINES[1 + index % 3],
                         label=name, zorder=1.2)  # fmt: skip
        for dot in dots:
            _dot(axes, dot, series.index(dot.series))
        _name_series(axes, series, {dot.series for dot in dots})
        axes.set_xlabel(x_axis)
        axes.set_ylabel(y_axis)
        axes.margins(x=0.14, y=0.1)
        if log_x:
            _scale_by_factors(axes.set_xscale, axes.xaxis)
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.8, columnspacing=1.2)
        _label(figure, axes, dots)
        return render(figure)


def _scale_by_factors(set_scale: Callable[[str], object], axis: Axis) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_locator(NullLocator())


def _name_series(axes: Axes, series: Sequence[str], drawn: Collection[str]) -> None:
    """For the legend."""
    for index, name in enumerate(series):
        if name in drawn:
            axes.plot([], [], linestyle="none", marker=MARKERS[index % len(MARKERS)],
                      color=COLOURS[index % len(COLOURS)], label=name)  # fmt: skip


def _dot(axes: Axes, dot: Dot, index: int) -> None:
    colour = COLOURS[index % len(COLOURS)]
    errors: dict[str, Any] = {
        name: [[value - ends[0]], [ends[1] - value]]
        for name, value, ends in (("xerr", dot.x, dot.x_ends), ("yerr", dot.y, dot.y_ends))
        if ends[0] is not None and ends[1] is not None
    }
    axes.errorbar(
        dot.x, dot.y, **errors, fmt=MARKERS[index % len(MARKERS)], color=colour, markersize=6,
        markerfacecolor=colour if dot.is_front else "none", markeredgewidth=1.2, capsize=2.5,
        linewidth=1.0,
    )  # fmt: skip


def _label(figure: Figure, axes: Axes, dots: Sequence[Dot]) -> None:
    """Each dot's label beside it, where it meets no marker and no other label if there is room."""
    figure.draw_without_rendering()  # which settles where things are
    scale = 72 / figure.dpi
    places = [[float(at) * scale for at in axes.transData.transform((dot.x, dot.y))]
              for dot in dots]  # fmt: skip
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (x, y), dot in zip(places, dots, strict=True):
        wide = LETTER_WIDTH * len(dot.label)
        boxes = {
            side: (x + across, y + up, x + across + wide, y + up + LABEL_HEIGHT)
            for side in SIDES
            for across, up in [(6 if side[0] > 0 else -6 - wide, side[1] - LABEL_HEIGHT / 2)]
        }
        side = min(SIDES, key=lambda side: sum(_meet(boxes[side], other) for other in taken))
        taken.append(boxes[side])
        axes.annotate(dot.label, (dot.x, dot.y), xytext=(6 * side[0], side[1]), va="center",
                      ha="left" if side[0] > 0 else "right", textcoords="offset points",
                      fontsize=8)  # fmt: skip


def _meet(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, up)


def draw_tiles(
    rows: Sequence[str], columns: Sequence[str], tiles: Mapping[tuple[str, str], Tile], axis: str
) -> Drawing:
    """A heat map, darker where the value is more; every tile tells its value."""
    known = [tile.value for tile in tiles.values() if tile.value is not None]
    low, high = min(known), max(known)
    with canvas(0.42 * len(rows) + 0.75) as figure:
        axes = figure.add_subplot()
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                tile = tiles[row, column]
                share = 0.5
                if tile.value is not None and high > low:
                    share = (tile.value - low) / (high - low)
                back, ink = ("none", INK) if tile.value is None else shade(share)
                axes.bar(x, 1, bottom=y - 0.5, width=1, color=back, edgecolor=INK, linewidth=0.6,
                         hatch="///" if tile.value is None else "")  # fmt: skip
                if tile.value is not None:
                    axes.annotate(tile.shown, (x, y), ha="center", va="center", color=ink)
                else:
                    axes.annotate(tile.shown, (x, y), ha="center", va="center", fontsize=8,
                                  bbox={"facecolor": "#eeeeec", "edgecolor": "none", "pad": 1.5},
                                  color="#111111")  # fmt: skip
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(axis)
        axes.set_ylabel("precision")
        return render(figure)


def shade(share: float) -> tuple[str, str]:
    """Colour of a tile and of the text on it, from the least (0) to the most (1).

    Neither is the ink of a page, which may be light or dark.
    """
    mixed = [round(light + share * (dark - light)) for light, dark in zip(LIGHT, DARK, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed), "#ffffff" if share >= 0.64 else "#000000"


def draw_rates(rates: Sequence[Rate], series: Sequence[str], axis: str) -> Drawing:
    """Horizontal bars; what was measured beside something else is pale."""
    with canvas(0.3 * len(rates) + 0.7) as figure:
        axes = figure.add_subplot()
        for row, rate in enumerate(rates):
            index = series.index(rate.series)
            axes.barh(
                row, rate.value, height=0.66, color=COLOURS[index % len(COLOURS)],
                hatch=HATCHES[index % len(HATCHES)], alpha=0.4 if rate.is_disturbed else 0.85,
                edgecolor=INK, linewidth=0.6,
            )  # fmt: skip
            axes.annotate(f"{rate.value:.4g}", (rate.value, row), xytext=(4, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        axes.set_yticks(range(len(rates)), [rate.label for rate in rates])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.16 * max(rate.value for rate in rates))
        axes.set_xlabel(axis)
        axes.grid(visible=True, axis="x")
        return render(figure)


def draw_curves(panels: Mapping[str, Mapping[str, tuple[Points, Points]]]) -> Drawing:
    """By panel and label: a line of the training loss, and markers of that on the validation rows.

    The scale is logarithmic: an untrained model's loss is many times that of a trained one.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    with canvas(1.75 * len(panels) + 0.7) as figure:
        first: Axes | None = None
        for place, (title, lines) in enumerate(panels.items()):
            axes = figure.add_subplot(len(panels), 1, place + 1, sharex=first, sharey=first)
            first = first or axes
            for label, (training, validation) in lines.items():
                index = labels.index(label)
                style: dict[str, Any] = {
                    "color": COLOURS[index % len(COLOURS)],
                    "linestyle": LINES[index % 4],
                }
                if training:
                    axes.plot(*zip(*training, strict=True), linewidth=1.1, **style)
                if validation:
                    axes.plot(*zip(*validation, strict=True), color=style["color"],
                              linestyle="none", marker=MARKERS[index % len(MARKERS)],
                              markersize=5.5, markeredgecolor=INK, markeredgewidth=0.5)  # fmt: skip
            axes.set_title(title, loc="left", fontsize=9)
            axes.grid(visible=True)
            _scale_by_factors(axes.set_yscale, axes.yaxis)
            axes.tick_params(labelbottom=place == len(panels) - 1)
        for index, label in enumerate(labels):
            axes.plot([], [], color=COLOURS[index % len(COLOURS)], linestyle=LINES[index % 4],
                      marker=MARKERS[index % len(MARKERS)], markersize=5, label=label)  # fmt: skip
        axes.set_xlabel("step")
        figure.supylabel("loss (nats a trained token)", fontsize=9)
        figure.legend(loc="outside upper left", ncols=4, handlelength=2.6)
        return render(figure)


def draw_shares(rows: Mapping[str, Mapping[str, tuple[float, Ends]]], axis: str) -> Drawing:
    """By row and series: a share in percent with its interval; the line is at all of it."""
    series = list(dict.fromkeys(name for found in rows.values() for name in found))
    with canvas(0.14 * max(2, len(series)) * len(rows) + 0.9 + 0.1 * len(series)) as figure:
        axes = figure.add_subplot()
        for place, dot in _spread(rows, series):
            _dot(axes, Dot(series=dot[0], label="", x=dot[1], y=place, x_ends=dot[2]),
                 series.index(dot[0]))  # fmt: skip
        for place in range(1, len(rows)):
            axes.axhline(place - 0.5, color=GREY, linewidth=0.5)
        axes.axvline(100, color=INK, linewidth=0.9, linestyle=":")
        _name_series(axes, series, series)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(min(0.0, *axes.get_xlim()), max(108.0, axes.get_xlim()[1]))
        axes.set_xlabel(axis)
        axes.grid(visible=True, axis="x")
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.2)
        return render(figure)


def _spread(
    rows: Mapping[str, Mapping[str, tuple[float, Ends]]], series: Sequence[str]
) -> Iterator[tuple[float, tuple[str, float, Ends]]]:
    """The series of a row, one below the other."""
    for row, found in enumerate(rows.values()):
        for name, (value, ends) in found.items():
            offset = (series.index(name) + 0.5) / len(series) - 0.5
            yield row + 0.8 * offset, (name, value, ends)
