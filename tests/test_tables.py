from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitrank.records import Record
from bitrank.runs import Run
from bitrank.tables import (
    Cell,
    Column,
    Kind,
    Table,
    format_bytes,
    format_value,
    kind_of,
    look_up,
    measured,
    ranged,
    show,
    text,
    to_csv,
)


def run_with(result: dict[str, object]) -> Run:
    record = Record(stage="train", treatment={}, result=result, observation={})
    return Run(records={"train": record}, items={})


def test_unknown_missing_and_zero_are_three_different_things() -> None:
    run = run_with({"size_bytes": None, "count": 0})
    assert look_up(run, "train", "result", "size_bytes") == Cell("unknown")
    assert look_up(run, "train", "result", "never_recorded") == Cell("unknown")
    assert look_up(run, "measure", "result", "size_bytes") == Cell("missing")
    assert look_up(run, "train", "result", "count") == Cell("0", 0)


def test_list_entries_are_found_by_number() -> None:
    run = run_with({"decode": [{"batch": 1}, {"batch": 8}]})
    assert run.find("train", "result", "decode", "1", "batch") == 8
    assert run.find("train", "result", "decode", "2", "batch") is None


@pytest.mark.parametrize(
    ("value", "stderr", "shown"),
    [
        (0.68342, 0.01471, "0.683 ± 0.015"),
        (512.347, 14.2, "512 ± 14"),
        (-1.41996, 0.0513, "−1.420 ± 0.051"),
        (0.5, 0.0, "0.500 ± 0.000"),
        (0.5, None, "0.500 ± unknown"),
        (None, None, "unknown"),
    ],
)
def test_a_mean_is_rounded_where_its_error_is(
    value: float | None, stderr: float | None, shown: str
) -> None:
    assert measured(value, stderr).text == shown


def test_a_change_carries_its_sign() -> None:
    assert measured(0.1, 0.01, signed=True).text.startswith("+")
    assert measured(-0.1, 0.01, signed=True).text.startswith("−")


@pytest.mark.parametrize("value", [-1e-9, -0.0, 0.0, 1e-9])
def test_what_rounds_to_zero_has_no_sign(value: float) -> None:
    assert measured(value, 3e-8, signed=True).text == "0.000000 ± 0.000000"
    assert measured(value, None).text == "0.000 ± unknown"
    assert measured(6e-7, 3e-8, signed=True).text == "+0.000001 ± 0.000000"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"), (1023, "1,023 B"), (1024, "1.0 KiB"), (168_631_296, "160.8 MiB"),
        (80 * 2**30, "80.00 GiB"),
    ],
)  # fmt: skip
def test_bytes_are_shown_in_powers_of_1024(value: int, shown: str) -> None:
    assert format_bytes(value) == shown


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("peak_bytes", 2**20, "1.0 MiB"),
        ("wall_seconds", 1.7, "1.70 s"),
        ("wall_seconds", 99.99, "100 s"),
        ("wall_seconds", 1234.5, "1,234 s"),
        ("supervised_share", 0.0909, "9.09 %"),
        ("base_hash", "a" * 64, "a" * 12),
        ("tokens_per_second", 187.31, "187.3 tokens/s"),
        ("num_parameters", 134515008, "134,515,008"),
        ("learning_rate", 1e-05, "1e-05"),
    ],
)
def test_a_key_tells_its_unit(key: str, value: object, shown: str) -> None:
    assert format_value(value, kind_of(key)) == shown


def test_lists_mappings_and_flags_are_read_as_words() -> None:
    assert format_value(["q_proj", 8, None]) == "q_proj, 8, unknown"
    assert format_value({"init": 0, "order": 1}) == "init 0, order 1"
    assert format_value([]) == "none"
    assert (format_value(True), format_value(False)) == ("yes", "no")


@given(
    st.lists(
        st.tuples(st.text(), st.floats(allow_nan=False), st.integers(), st.floats(0, 1)), min_size=1
    )
)
def test_a_csv_keeps_every_digit_and_every_character(
    values: list[tuple[str, float, int, float]],
) -> None:
    columns = [
        Column("name", "Name"),
        Column("acc", "Accuracy", with_stderr=True),
        Column("n", "N"),
    ]
    rows = [[text(name), Cell("shown", value, error), show(count)]
            for name, value, count, error in values]  # fmt: skip
    written = to_csv(Table(name="t", title="T", columns=columns, rows=rows))
    read = list(csv.reader(io.StringIO(written, newline="")))
    assert read[0] == ["name", "acc", "acc_stderr", "n"]
    told = [(name, float(acc), int(n), float(error)) for name, acc, error, n in read[1:]]
    assert told == values


def test_what_is_unknown_is_an_empty_field_of_the_csv() -> None:
    table = Table(name="t", title="T", columns=[Column("a", "A"), Column("b", "B")],
                  rows=[[Cell("unknown"), show(0)]])  # fmt: skip
    assert to_csv(table) == '"a","b"\n"",0\n'


def test_a_column_is_numeric_when_all_that_is_known_in_it_is() -> None:
    rows = [[text("a"), show(1), show(True), Cell("unknown")],
            [text("b"), Cell("missing"), show(1), Cell("unknown")]]  # fmt: skip
    table = Table(name="t", title="T", columns=[Column(k, k) for k in "abcd"], rows=rows)
    assert [table.is_numeric(column) for column in range(4)] == [False, True, False, False]


@pytest.mark.parametrize(
    ("value", "low", "high", "kind", "shown"),
    [
        (0.6723, 0.6121, 0.7305, "plain", "0.672 [0.612, 0.731]"),
        (-0.3351, -0.3402, -0.3304, "share", "−33.51 % [−34.02, −33.04]"),
        (0.5, None, None, "plain", "0.5 [unknown]"),
        (-0.335, -0.335, -0.335, "share", "−33.5 %"),
        (2**20, 2**20, 2**20, "bytes", "1.0 MiB"),
        (0.0000001, -0.01, 0.01, "plain", "0.000 [−0.010, 0.010]"),
        (None, None, None, "plain", "unknown"),
    ],
)
def test_an_interval_is_rounded_where_its_width_is(
    value: float | None, low: float | None, high: float | None, kind: Kind, shown: str
) -> None:
    assert ranged(value, low, high, kind).text == shown


def test_the_ends_of_an_interval_stand_in_the_csv() -> None:
    columns = [Column("x", "X", with_interval=True), Column("y", "Y")]
    rows = [[ranged(0.5, 0.25, 0.75), show(1)], [Cell("unknown"), show(2)]]
    written = to_csv(Table(name="t", title="T", columns=columns, rows=rows))
    assert written == '"x","x_low","x_high","y"\n0.5,0.25,0.75,1\n"","","",2\n'
