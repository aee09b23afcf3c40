from __future__ import annotations

import re

import matplotlib
import pytest

from bitrank import figures
from bitrank.figures import Bar, Drawing, Part

BARS = [Bar("base + adapter", 0.683, 0.015, False), Bar("TF-IDF", 0.6012, 0.02, True),
        Bar("majority share", 0.057, None, True)]  # fmt: skip
PARTS = [Part("weights", 160.7, "160.7 MiB"), Part("activations", 469.6, "469.6 MiB")]
LOSSES = [(step, 1.0 / step) for step in range(1, 20)]


def draw_all() -> dict[str, Drawing]:
    return {
        "scores": figures.draw_scores(BARS, "accuracy"),
        "memory": figures.draw_parts(PARTS, "MiB"),
        "loss": figures.draw_losses(LOSSES, [(0, 2.0), (19, 0.1)]),
        "layers": figures.draw_layers(
            {"q_proj": [(0, 0.09), (1, 0.1)], "k_proj": [(0, 0.2)]}, "relative error"
        ),
    }


@pytest.fixture(scope="module")
def drawings() -> dict[str, Drawing]:
    return draw_all()


def test_the_same_data_give_the_same_bytes_whatever_the_users_style(
    drawings: dict[str, Drawing],
) -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.labelsize": 30, "svg.hashsalt": "x"}):
        assert draw_all() == drawings
        assert matplotlib.rcParams["font.size"] == 30, "the caller's style must be left alone"


def test_other_data_give_other_figures(drawings: dict[str, Drawing]) -> None:
    other = figures.draw_losses([*LOSSES[:-1], (19, 0.5)], [(0, 2.0), (19, 0.1)])
    assert other.svg != drawings["loss"].svg
    assert other.png != drawings["loss"].png


def test_no_figure_carries_a_date_or_a_program(drawings: dict[str, Drawing]) -> None:
    for drawing in drawings.values():
        assert "dc:date" not in drawing.svg
        assert "Matplotlib v" not in drawing.svg
        assert b"Software" not in drawing.png
        assert drawing.png.startswith(b"\x89PNG")


def test_every_value_and_label_is_told_as_text(drawings: dict[str, Drawing]) -> None:
    for shown in ("0.683", "0.601", "0.057", "base + adapter", "TF-IDF", "accuracy"):
        assert f">{shown}<" in drawings["scores"].svg
    for shown in ("weights: 160.7 MiB", "activations: 469.6 MiB"):
        assert f">{shown}<" in drawings["memory"].svg
    assert ">q_proj<" in drawings["layers"].svg


def test_labels_are_text_and_never_formulas_or_markup() -> None:
    svg = figures.draw_scores([Bar("$x^{$<script>&", 0.5, None, False)], "accuracy").svg
    assert "$x^{$&lt;script&gt;&amp;" in svg


def test_a_score_of_zero_can_be_drawn() -> None:
    assert ">0.000<" in figures.draw_scores([Bar("a", 0.0, 0.0, False)], "accuracy").svg


def test_curves_may_be_empty() -> None:
    assert figures.draw_losses([], [(1, 0.5)]).svg != figures.draw_losses(LOSSES, []).svg


def test_colours_differ_in_lightness_or_have_another_hatch_and_marker() -> None:
    assert len(figures.COLOURS) == len(figures.HATCHES) == len(figures.MARKERS)
    for marks in (figures.COLOURS, figures.HATCHES, figures.MARKERS):
        assert len(set(marks)) == len(marks)


def test_an_inline_figure_refers_to_nothing_and_takes_the_pages_colours(
    drawings: dict[str, Drawing],
) -> None:
    for name, drawing in drawings.items():
        inline = figures.inline_svg(drawing, name, 'says "much" & <more>')
        assert inline.startswith("<svg viewBox=")
        assert 'aria-label="says &quot;much&quot; &amp; &lt;more&gt;"' in inline
        assert "http" not in inline
        assert "<style" not in inline
        assert figures.INK not in inline
        assert figures.PAPER not in inline
        assert "currentColor" in inline


def test_ids_of_two_inline_figures_do_not_meet_and_references_still_hit(
    drawings: dict[str, Drawing],
) -> None:
    seen: set[str] = set()
    for name, drawing in drawings.items():
        inline = figures.inline_svg(drawing, name, "")
        ids = set(re.findall(r'\bid="([^"]+)"', inline))
        assert not ids & seen
        seen |= ids
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', inline))
        assert {one or other for one, other in used} <= ids
