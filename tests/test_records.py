"""Records round-trip, never hold NaN, are written whole, and old ones stay readable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitrank import records
from bitrank.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"
RECORD = records.Record(
    stage="train", treatment={"rank": 8}, result={"loss": 0.1}, observation={"seconds": None}
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


@given(result=st.dictionaries(st.text(), VALUES))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, result: dict) -> None:
    path = tmp_path_factory.mktemp("r") / "a.json"
    record = records.Record(stage="x", treatment={}, result=result, observation={})
    records.write_record(record, path)
    assert records.read_record(path) == record


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    records.write_record(RECORD, path)
    bad = records.Record(stage="x", treatment={}, result={"a": float("nan")}, observation={})
    with pytest.raises(ValueError, match="Out of range"):
        records.write_record(bad, path)
    assert records.read_record(path) == RECORD
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"], "no half-written file is left"


def test_a_record_of_the_first_schema_stays_readable() -> None:
    """This file is never rewritten: when the schema changes, a migration must read it."""
    record = records.read_record(FIXTURES / "record_v1.json")
    assert record.stage == "merge"
    assert record.result["check"]["num_items"] == 64


def test_migrations_are_applied_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"schema_version": 1, **vars(RECORD)}))

    def rename(body: dict) -> dict:
        return {**body, "result": {"train_loss": body["result"]["loss"]}}

    def scale(body: dict) -> dict:
        return {**body, "result": {"train_loss": body["result"]["train_loss"] * 10}}

    monkeypatch.setattr(records, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(records, "MIGRATIONS", {1: rename, 2: scale})
    assert records.read_record(path).result == {"train_loss": 1.0}


def test_every_version_has_a_migration() -> None:
    assert sorted(records.MIGRATIONS) == list(range(1, records.SCHEMA_VERSION))


def test_a_newer_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    path.write_text(json.dumps([records.SCHEMA_VERSION + 1, {}]))
    with pytest.raises(UserError, match="update it"):
        records.read_record(path)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "{", "[2]"])
def test_what_is_no_record_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "merge.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"merge\.json .*dvc repro"):
        records.read_record(path)


def test_item_logs_round_trip(tmp_path: Path) -> None:
    items = [
        records.Item(doc_hash="a", target=" é", prediction=None, correct=None, nll=1.5,
                     choice_nll=None, num_tokens=3),
        records.Item(doc_hash="b", target="x\n", prediction="y", correct=False, nll=0.5,
                     choice_nll=0.25, num_tokens=None),
    ]  # fmt: skip
    records.write_items(tmp_path / "a.jsonl", items)
    assert records.read_items(tmp_path / "a.jsonl") == items
