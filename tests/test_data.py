"""A split reads back as it was written, and is what training and evaluation take."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bitrank import composition, config, data, models, paths, preparation, prompts, records, tasks
from bitrank.data_config import ChatFormat, Generation, HeldOut
from bitrank.errors import UserError
from bitrank.pins import JsonlRows

ROOT = Path(__file__).parents[1]


def test_a_split_reads_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        data.Row("p", " a", "g", where="mine.csv:2"),
        data.Row("p", "a", "g", "<turn>", ((0, 1), (3, 4))),
    ]
    path = tmp_path / "train.jsonl"
    data.write_split(path, rows)
    assert data.read_split(path) == rows
    written = records.read_jsonl(path)
    assert written[0] == {"prompt": "p", "answer": " a", "group": "g"}
    assert "mine.csv" not in path.read_text()


def test_answers_that_do_not_fit_name_file_and_line(tmp_path: Path) -> None:
    tokenizer = models.build_tiny(64, 1, 0)[1]
    path = tmp_path / "train.jsonl"
    long = data.Row("p", " " + "b" * 50, "g")
    data.write_split(path, [data.Row("p", " a", "g"), long, long])
    with pytest.raises(
        UserError, match=r"(?s)2 rows.*train\.jsonl:2: the answer.*jsonl:3: the ans"
    ):
        data.encode_split(path, tokenizer, 20)


def test_prepare_writes_what_it_says(prepared: Path) -> None:
    choices = data.read_choices(prepared)
    assert choices == [" cool", " neutral", " warm"]
    for split in paths.SPLITS:
        assert {row.answer for row in data.read_split(paths.split(split, prepared))} <= set(choices)
    first = json.loads((prepared / "test.jsonl").read_text().splitlines()[0])
    assert set(first) == {"prompt", "answer", "group"}


def prepare(root: Path, tokenizer: Path, values: config.DataConfig) -> records.Record:
    return preparation.prepare_data(
        values, tokenizer, root / "prepared", root / "audit", root / "downloads"
    )


@pytest.fixture
def smoke(compose: Callable[..., config.RunConfig]) -> config.DataConfig:
    return compose().data


def test_free_text_says_how_it_is_asked_for(
    tmp_path: Path, original: Path, smoke: config.DataConfig
) -> None:
    task = Generation(kind="generation", stop=["\n"], max_new_tokens=5, ignore=["x"])
    record = prepare(tmp_path, original, dataclasses.replace(smoke, task=task))
    asked = tasks.read_generation(tmp_path / "prepared")
    assert asked == tasks.FreeText(stop=["\n"], max_new_tokens=5, ignore=["x"])
    assert not (tmp_path / "prepared" / "choices.json").exists()
    test = data.read_split(paths.split("test", tmp_path / "prepared"))
    longer = sum(len(row.answer) > 5 for row in test)  # a byte a token
    assert 0 < longer < len(test)
    assert record.result["num_answers_too_long"] == longer
    assert record.result["num_choices"] is None
    assert record.result["splits"]["test"]["num_answers"] == 3
    assert record.result["audit"]["num_untrained_end"] == 0


def test_a_chat_needs_a_chat_template_and_trains_its_end(
    tmp_path: Path, original: Path, smoke: config.DataConfig
) -> None:
    layout = ChatFormat(kind="chat", system=None, messages_field=None)
    chat = dataclasses.replace(smoke, format=layout)
    with pytest.raises(UserError, match="no chat template"):
        prepare(tmp_path, original, chat)
    assert not (tmp_path / "prepared").exists()
    tokenizer = models.load_tokenizer(original)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<turn>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    record = prepare(tmp_path, tmp_path / "tokenizer", chat)
    assert data.read_choices(tmp_path / "prepared") == ["cool", "neutral", "warm"]
    assert record.result["audit"]["num_untrained_end"] == 0
    path = paths.split("test", tmp_path / "prepared")
    for row, encoded in zip(
        data.read_split(path), data.encode_split(path, tokenizer, 256), strict=True
    ):
        trained = [label for label in encoded.labels if label != prompts.IGNORED]
        assert tokenizer.decode(trained) == f"{row.answer}<turn>"


def test_a_test_file_of_its_own_is_the_test_split(
    tmp_path: Path, original: Path, smoke: config.DataConfig
) -> None:
    tones = {"red": "warm", "blue": "cool", "grey": "neutral"}
    rows = [{"q": f"{shade} paint", "a": tone} for shade, tone in tones.items()]
    file = tmp_path / "test.jsonl"
    records.write_jsonl(file, rows)
    pin = JsonlRows(kind="jsonl", path=str(file), group_field=None, watch=str(file))
    source = HeldOut(rows=pin, prompt="Text: {q}\nLabel:", answer=" {a}")
    record = prepare(tmp_path, original, dataclasses.replace(smoke, test=source, num_test=3))
    kept = data.read_split(paths.split("test", tmp_path / "prepared"))
    assert {row.prompt for row in kept} == {f"Text: {row['q']}\nLabel:" for row in rows}
    assert record.treatment["test"]["rows"]["path"] == "test.jsonl"
    assert set(record.treatment["test_origin"]) == {"sha256"}


def test_an_answer_that_is_cut_away_names_the_users_own_line(
    tmp_path: Path, original: Path, smoke: config.DataConfig
) -> None:
    short = dataclasses.replace(smoke, max_sequence_tokens=8)
    with pytest.raises(UserError, match=r"colours\.jsonl:\d+: the answer ' neutral' has 9 tokens"):
        prepare(tmp_path, original, short)
    assert not list(tmp_path.iterdir())


def test_the_csv_of_the_readme_can_be_prepared(tmp_path: Path, original: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    block = next(b for b in readme.split("```") if "bitrank params data=csv" in b)
    command = shlex.split(block.split("dvc repro")[0].replace("\\\n", " "))
    assert command[:2] == ["bitrank", "params"]
    text = composition.compose_text(command[2:], ROOT / "conf")
    values = config.parse(OmegaConf.to_container(OmegaConf.create(text))).data
    rows = dataclasses.replace(values.rows, path=str(ROOT / values.rows.path))
    record = prepare(tmp_path, original, dataclasses.replace(values, rows=rows))
    assert record.result["num_choices"] == 4
    assert record.result["num_rows_read"] == values.num_train + 8 + 24
