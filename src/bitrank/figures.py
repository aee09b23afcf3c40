"""Figures of a run, as SVG, PNG and PDF: the one door to matplotlib.

The same data give the same bytes: no date, no program name, ids from a fixed salt, and only
matplotlib's own defaults, whatever the user's matplotlibrc says. Colours are Okabe and Ito's,
which colour-blind readers can tell apart; hatches and markers do the same in grey. Figures are
drawn as narrow as a phone and stay readable there; ink and paper are single colours, so that a
page can put its own in their place (`inline_svg`).
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PAPER = "#222221", "#fffffe"
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, GREY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#999999",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, GREY)
HATCHES = ("", "//", "|", "\\\\", "x", "-", "+")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 4.2
"""Inches: 403 CSS pixels, of which a phone 360 px wide shows four fifths."""
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    svg: str
    """Its text is text: it can be read aloud, sought, and takes the page's colours."""
    png: bytes
    pdf: bytes
    """With matplotlib's own font inside."""


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    stderr: float | None
    is_control: bool


@dataclass(frozen=True)
class Part:
    """A piece of a stacked bar; `shown` is its size as a person reads it."""

    label: str
    size: float
    shown: str


def draw_scores(bars: Sequence[Bar], axis: str) -> Drawing:
    """Horizontal bars with error bars of one standard error; controls are grey and hatched."""
    with canvas(0.42 * len(bars) + 0.75) as figure:
        axes = figure.add_subplot()
        for row, bar in enumerate(bars):
            axes.barh(
                row, bar.value, height=0.62, color=GREY if bar.is_control else BLUE,
                alpha=0.6 if bar.is_control else 1.0, hatch="///" if bar.is_control else "",
                edgecolor=INK, linewidth=0.6,
            )  # fmt: skip
            if bar.stderr is not None:
                axes.errorbar(
                    bar.value, row, xerr=bar.stderr, color=INK, capsize=3, linewidth=1.2, fmt="none"
                )
            end = bar.value + (bar.stderr or 0)
            axes.annotate(
                f"{bar.value:.3f}", (end, row), xytext=(4, 0), textcoords="offset points",
                va="center",
            )  # fmt: skip
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.18 * max(bar.value + (bar.stderr or 0) for bar in bars) or 1)
        axes.set_xlabel(axis)
        axes.grid(visible=True, axis="x")
        return render(figure)


def draw_parts(parts: Sequence[Part], axis: str) -> Drawing:
    """One stacked horizontal bar, with a legend that tells each part's size."""
    rows = (len(parts) + 1) // 2
    with canvas(1.15 + 0.23 * rows) as figure:
        axes = figure.add_subplot()
        start = 0.0
        for index, part in enumerate(parts):
            axes.barh(
                0, part.size, left=start, height=0.8, color=COLOURS[index % len(COLOURS)],
                hatch=HATCHES[index % len(HATCHES)], edgecolor=INK, linewidth=0.6,
                label=f"{part.label}: {part.shown}",
            )  # fmt: skip
            start += part.size
        axes.set_yticks([])
        axes.set_xlim(0, start or 1)
        axes.set_xlabel(axis)
        figure.legend(loc="outside lower left", ncols=2, handlelength=1.6)
        return render(figure)


def draw_losses(training: Points, validation: Points) -> Drawing:
    """(step, loss) pairs; the loss is the mean over the supervised tokens, in nats."""
    with canvas(2.9) as figure:
        axes = figure.add_subplot()
        if training:
            axes.plot(*zip(*training, strict=True), color=BLUE, linewidth=1.3, label="training")
        if validation:
            axes.plot(
                *zip(*validation, strict=True), color=VERMILION, linewidth=1.3, linestyle="--",
                marker="o", markersize=5, label="validation",
            )  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats a token)")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True)
        axes.legend()
        return render(figure)


def draw_layers(series: Mapping[str, Points], label: str) -> Drawing:
    """(block, value) pairs, one series a kind of layer."""
    from matplotlib.ticker import MaxNLocator

    rows = (len(series) + 2) // 3
    with canvas(2.7 + 0.23 * rows) as figure:
        axes = figure.add_subplot()
        for index, (name, points) in enumerate(series.items()):
            axes.plot(
                *zip(*points, strict=True), label=name, linewidth=0.9, markersize=3.5,
                color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
            )  # fmt: skip
        axes.set_xlabel("block of the model")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True)
        figure.legend(loc="outside lower center", ncols=3, handlelength=1.6)
        return render(figure)


def inline_svg(drawing: Drawing, name: str, alt: str) -> str:
    """The SVG as a part of an HTML page: it scales, takes the page's colours, refers to nothing.

    Ids are prefixed with `name`, so that several figures can stand in one page.
    """
    body = drawing.svg[drawing.svg.index("<svg") :]
    # The style would hold for the whole page; metadata and namespaces are not HTML's.
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', body)
    opening = f'<svg {view.group() if view else ""} role="img" aria-label="{escape(alt)}">'
    body = re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    return body.replace(INK, "currentColor").replace(PAPER, "none")


@contextmanager
def canvas(height: float) -> Iterator[Figure]:
    """An empty figure, in matplotlib's own style but for what is set here; height in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9, "text.parse_math": False, "svg.fonttype": "none",
        "svg.hashsalt": "bitrank", "pdf.fonttype": 42, "hatch.linewidth": 0.5,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
        "ytick.color": INK, "hatch.color": INK, "figure.facecolor": PAPER, "axes.facecolor": PAPER,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "grid.color": GREY, "grid.alpha": 0.35, "grid.linewidth": 0.6, "legend.frameon": False,
    }  # fmt: skip
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure


def render(figure: Figure) -> Drawing:
    svg, png, pdf = io.StringIO(), io.BytesIO(), io.BytesIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(svg, format="svg", metadata=nothing)
    figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it would tell of every glyph
    nameless = {"CreationDate": None, "Creator": None, "Producer": None}
    figure.savefig(pdf, format="pdf", metadata=nameless)
    return Drawing(svg.getvalue(), png.getvalue(), pdf.getvalue())
