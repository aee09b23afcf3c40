from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitrank.audit_page import VISIBLE, AuditRow, render_audit

SUMMARY = {"num_rows": 2280, "num_tokens": 50123, "num_supervised_tokens": 4560,
           "supervised_share": 0.0909762, "num_truncated": 0, "longest_tokens": 97,
           "num_doubled_bos": 0, "num_untrained_end": None, "another_count": 77}  # fmt: skip
ROW = AuditRow(
    split="validation", answer=" blood", truncated=False,
    tokens=["Diagnosis", ":", " Sickle", "\n", "Chapter", ":", " blood", "<|end|>"],
    trained=[False] * 6 + [True] * 2,
)  # fmt: skip


class Tokens(HTMLParser):
    """(tag, classes, text) of every token of the example rows, and the tags of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self._open: tuple[str, str] | None = None
        self.feed(html[html.index('<section class="row">') :])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        classes = dict(attrs).get("class") or ""
        if "token" in classes.split():
            self._open = (tag, classes)

    def handle_data(self, data: str) -> None:
        if self._open:
            self.found.append((*self._open, data))

    def handle_endtag(self, tag: str) -> None:
        self._open = None


def row(tokens: list[str], trained: list[bool]) -> AuditRow:
    return AuditRow(split="train", answer="a", tokens=tokens, trained=trained, truncated=False)


def test_trained_tokens_are_marked_and_the_others_are_not() -> None:
    found = Tokens(render_audit([ROW], SUMMARY)).found
    assert [tag for tag, _, _ in found] == ["span"] * 6 + ["mark"] * 2
    assert [text for _, _, text in found][-2:] == ["·blood", "<|end|>"]


def test_trained_tokens_are_told_by_more_than_their_colour() -> None:
    page = render_audit([ROW], SUMMARY)
    style = page[page.index("mark.token {") :].split("}")[0]
    assert "font-weight: 700" in style
    assert "underline" in style


def test_white_space_and_special_tokens_are_visible() -> None:
    tokens = Tokens(render_audit([row([" a", "\t", "\n", "", "<s>", "a < b"], [False] * 6)], {}))
    assert [text for _, _, text in tokens.found] == ["·a", "⇥", "↵", "∅", "<s>", "a·<·b"]
    assert ["special" in classes for _, classes, _ in tokens.found] == [False] * 4 + [True, False]
    assert tokens.tags.count("br") == 1, "a new line of the text is one of the page"


def test_the_row_tells_split_answer_and_counts() -> None:
    page = render_audit([ROW], SUMMARY)
    assert "validation: answer “ blood”, 8 tokens, 2 trained" in page


def test_every_number_of_the_summary_is_shown_and_unknown_is_not_zero() -> None:
    page = render_audit([ROW], SUMMARY)
    for label, shown in (("rows", "2,280"), ("tokens", "50,123"), ("trained tokens", "4,560"),
                         ("share of trained tokens", "9.1 %"), ("truncated rows", "0"),
                         ("tokens of the longest row", "97"), ("another_count", "77"),
                         ("rows with an untrained end token", "unknown")):  # fmt: skip
        assert f'<th scope="row">{label}</th><td>{shown}</td>' in page


def test_faults_stand_out() -> None:
    page = render_audit([ROW], {**SUMMARY, "num_truncated": 3})
    assert '<td class="fault">3 (should be 0)</td>' in page
    cut = AuditRow(split="test", answer="a", tokens=["a"], trained=[True], truncated=True)
    assert "Truncated" in render_audit([cut], {})
    assert "Truncated" not in render_audit([ROW], {})
    assert "No token of this row is trained" in render_audit([row(["a"], [False])], {})
    assert "No token of this row is trained" not in render_audit([ROW], {})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]),
                                  min_size=1), st.booleans()), min_size=1))  # fmt: skip
def test_whatever_is_in_a_token_stays_text(tokens: list[tuple[str, bool]]) -> None:
    page = render_audit([row([text for text, _ in tokens], [flag for _, flag in tokens])], {})
    read: list[tuple[str, bool]] = []
    for tag, _, text in Tokens(page).found:
        read.append((text, tag == "mark"))
    assert read == tokens


def test_a_hostile_row_adds_no_tag_and_the_page_loads_nothing() -> None:
    bad = "<script src='//evil.example'></script><img src=x>"
    hostile = AuditRow(split=bad, answer=bad, tokens=[bad], trained=[True], truncated=False)
    page = render_audit([hostile], {bad: bad})
    assert set(Tokens(page).tags) <= {"section", "p", "mark", "span", "wbr", "br"}
    assert "<script" not in page
    assert "<img" not in page
    assert "default-src 'none'" in page
    assert "://" not in page


def test_as_many_flags_as_tokens_are_asked_for() -> None:
    with pytest.raises(ValueError):
        render_audit([row(["a", "b"], [True])], {})


def test_a_page_without_rows_says_so() -> None:
    assert "No example rows" in render_audit([], SUMMARY)


def test_visible_signs_are_distinct() -> None:
    assert len(set(VISIBLE.values())) == len(VISIBLE)
