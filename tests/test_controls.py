"""The bag of words learns what words tell, is tuned on validation only, and pairs with models."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from bitrank import controls, identity, paths, records
from bitrank.errors import UserError

WORDS = {" warm": ["red", "orange", "amber"], " cold": ["blue", "teal", "navy"]}
ANSWERS = sorted(WORDS)


def make_rows(count: int, seed: int, noise: float = 0.0) -> list[dict[str, Any]]:
    """Rows whose one telling word gives the answer away, except a share `noise` of them."""
    draw = random.Random(seed)
    rows = []
    for n in range(count):
        answer = ANSWERS[n % 2]
        word = draw.choice(WORDS[ANSWERS[(n + (draw.random() < noise)) % 2]])
        filler = draw.choice(["a", "the", "some"])
        rows.append(
            {"prompt": f"Text: {filler} {word} thing\nLabel:", "answer": answer, "group": ""}
        )
    return rows


def write_splits(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    for name, rows in splits.items():
        records.write_jsonl(paths.split(name, folder), rows)
    return folder


@pytest.fixture
def easy(tmp_path: Path) -> Path:
    return write_splits(tmp_path / "prepared", train=make_rows(60, 0),
                        validation=make_rows(20, 1), test=make_rows(40, 2))  # fmt: skip


def test_it_learns_what_a_word_tells(easy: Path, tmp_path: Path) -> None:
    result = controls.bag_of_words(easy, tmp_path / "items").result
    assert result["acc"] == 1.0
    assert result["acc_stderr"] == 0.0
    assert result["choice_nll"] < 0.1
    assert result["num_items"] == 40


def test_word_order_counts_as_far_as_pairs(tmp_path: Path) -> None:
    pairs = [
        {"prompt": "not good so bad" if n % 2 else "good so not bad", "answer": ANSWERS[n % 2]}
        for n in range(40)
    ]
    folder = write_splits(tmp_path / "prepared", train=pairs, validation=pairs, test=pairs)
    assert controls.bag_of_words(folder, tmp_path / "items").result["acc"] == 1.0


def test_chance_is_what_it_makes_of_noise(tmp_path: Path) -> None:
    splits = {name: make_rows(200, seed, noise=0.5) for seed, name in enumerate(paths.SPLITS)}
    folder = write_splits(tmp_path / "prepared", **splits)
    result = controls.bag_of_words(folder, tmp_path / "items").result
    assert result["choice_nll"] == pytest.approx(math.log(2), abs=0.1)
    assert abs(result["acc"] - 0.5) < 4 * result["acc_stderr"]


def test_items_pair_with_the_rows(easy: Path, tmp_path: Path) -> None:
    result = controls.bag_of_words(easy, tmp_path / "items").result
    file = tmp_path / "items" / "task.jsonl"
    items = records.read_items(file)
    rows = records.read_jsonl(paths.split("test", easy))
    assert [item.doc_hash for item in items] == [identity.hash_json(row) for row in rows]
    assert [item.target for item in items] == [row["answer"] for row in rows]
    assert result["items"]["task"] == identity.hash_file(file)
    assert result["choice_nll"] == pytest.approx(sum(item.nll for item in items) / len(items))


def test_the_test_split_tunes_nothing(easy: Path, tmp_path: Path) -> None:
    before = controls.bag_of_words(easy, tmp_path / "items")
    wrong = [{**row, "answer": ANSWERS[row["answer"] == ANSWERS[0]]}
             for row in records.read_jsonl(paths.split("test", easy))]  # fmt: skip
    write_splits(easy, test=wrong)
    after = controls.bag_of_words(easy, tmp_path / "items")
    assert after.result["acc"] == 0.0
    for key in ("inverse_regularization", "validation_choice_nll"):
        assert after.treatment[key] == before.treatment[key]


def test_the_strength_is_the_best_one_on_validation(tmp_path: Path) -> None:
    splits = {name: make_rows(80, seed, noise=0.2) for seed, name in enumerate(paths.SPLITS)}
    folder = write_splits(tmp_path / "prepared", **splits)
    treatment = controls.bag_of_words(folder, tmp_path / "items").treatment
    tried = {float(strength): nll for strength, nll in treatment["validation_choice_nll"].items()}
    assert set(tried) == set(controls.STRENGTHS)
    assert tried[treatment["inverse_regularization"]] == min(tried.values())
    assert len(set(tried.values())) > 1


def test_it_gives_the_same_result_again(easy: Path, tmp_path: Path) -> None:
    first = controls.bag_of_words(easy, tmp_path / "one")
    assert controls.bag_of_words(easy, tmp_path / "two").result == first.result


def test_a_missing_split_is_named(easy: Path, tmp_path: Path) -> None:
    paths.split("validation", easy).unlink()
    with pytest.raises(UserError, match=r"validation\.jsonl does not exist"):
        controls.bag_of_words(easy, tmp_path / "items")


def test_free_text_is_copied_from_the_row_most_alike(tmp_path: Path) -> None:
    rows = {
        "train": [("switch on the lamp", " On lamp"), ("open the door", " Open door"),
                  ("lock the door", " Lock door")],
        "validation": [("open it", " Open")],
        "test": [("the door please open", "Open  door"), ("switch lamp", " Off lamp"),
                 ("play jazz", " On lamp")],
    }  # fmt: skip
    splits = {
        name: [{"prompt": asked, "answer": told, "group": ""} for asked, told in pairs]
        for name, pairs in rows.items()
    }
    folder = write_splits(tmp_path / "prepared", **splits)
    asked = {"stop": [], "max_new_tokens": 9, "ignore": [r"\s{2,}"]}
    records.write_text(folder / "generation.json", json.dumps(asked))
    record = controls.bag_of_words(folder, tmp_path / "items")
    items = records.read_items(tmp_path / "items" / "task.jsonl")
    assert [item.prediction for item in items] == [" Open door", " On lamp", " On lamp"]
    assert [item.correct for item in items] == [False, False, True]
    assert all(item.nll is None and item.choice_nll is None for item in items)
    assert record.result["acc"] == pytest.approx(1 / 3)
    assert record.result["choice_nll"] is None
    assert record.treatment["classifier"] == "nearest neighbour"
    assert [item.doc_hash for item in items] == [identity.hash_json(row) for row in splits["test"]]
