"""What a user writes about data composes, or is told by its key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bitrank import composition, config, tasks
from bitrank.data_config import Generation
from bitrank.errors import ConfigError

CONF = Path(__file__).parents[1] / "conf"
NEEDS = {"jsonl": "path=x", "csv": "path=x", "parquet": "path=x", "hub": "repo=a/b"}
CSV = ["data=csv", "data.rows.path=x"]


def data_of(*overrides: str) -> config.DataConfig:
    text = composition.compose_text(overrides, CONF)
    return config.parse(OmegaConf.to_container(OmegaConf.create(text))).data


@pytest.mark.parametrize("kind", ["none", *NEEDS])
def test_every_test_source_goes_with_any_rows(kind: str) -> None:
    needed = [f"data.test.rows.{NEEDS[kind]}"] if kind in NEEDS else []
    made = data_of(*CSV, f"data/test={kind}", *needed)
    assert made.test.rows.kind == kind
    if kind != "none":
        assert (made.test.prompt, made.test.answer) == (made.prompt, made.answer)
        with pytest.raises(ConfigError, match=r"`data\.test\.rows\.\w+` has no default: add"):
            data_of(*CSV, f"data/test={kind}")


def test_task_and_format_go_with_any_rows() -> None:
    made = data_of(*CSV, "data/task=generation", "data/format=chat", "data.task.max_new_tokens=9")
    assert isinstance(made.task, Generation)
    assert made.task.max_new_tokens == 9
    assert made.format.kind == "chat"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.prompt=no field"], "`data.prompt` must name a field of the rows in braces"),
        (['data.prompt="a {text"'], "`data.prompt` is no template"),
        (['data.prompt="a {text:>9}"'], "`data.prompt` must have nothing but the name of a field"),
        (['data.prompt="a {}"'], "`data.prompt` must have nothing but the name of a field"),
        (["data.answer=null"], "`data.answer` must be given"),
        (['data.answer="{label}"'], "`data.answer` must begin with a space, or `data.prompt` end"),
        (['data.rows.delimiter=";;"'], "`data.rows.delimiter` must be one character"),
        (["data/test=csv", "data.test.rows.path=y", 'data.test.answer="{l}"'],
         "`data.test.answer` must begin with a space, or `data.test.prompt` end with one"),
        (["data/format=chat", "data.format.messages_field=m"], "`data.prompt` must be null"),
        (["data/task=generation", "data.task.max_new_tokens=0"], "`data.task.max_new_tokens` must"),
        (["data/task=generation", "data.task.ignore=['(']"], r"`data.task.ignore` has '\('"),
        (["data/task=generation", "data.task.stop=['']"], "`data.task.stop` must not hold"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_of(*CSV, *overrides)


def test_in_a_chat_an_answer_needs_no_space() -> None:
    assert data_of(*CSV, "data/format=chat", 'data.answer="{label}"').answer == "{label}"


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("He has 9-2 = 7.\nThe answer is: 18", "16 eggs <<1+1=2>>\n#### 18", True),
        ("... The answer is: $1,800.", "so\n#### 1,800", True),
        ("The answer is: 18.00 dollars", "x\n#### 18", True),
        ("The answer is: 18\n\nQuestion: 19?", "x\n#### 18", True),
        ("first #### 3, no: The answer is: 18", "x\n#### 18", True),
        ("The answer is: 18.5", "x\n#### 18", False),
        ("The answer is: 8", "x\n#### 18", False),
        ("The answer is: -18", "x\n#### 18", False),
        ("", "x\n#### 18", False),
    ],
)
def test_metamathqa_compares_the_final_number(answer: str, reference: str, same: bool) -> None:
    task = data_of("data=metamathqa").task
    assert isinstance(task, Generation)
    assert tasks.same_answer(answer, reference, task.ignore) is same


def test_datasets_that_are_shipped_are_pinned_or_say_that_they_are_not() -> None:
    for name in ("icd10_chapters", "intents"):
        assert re.fullmatch(r"[0-9a-f]{64}", data_of(f"data={name}").rows.sha256)
    metamath = data_of("data=metamathqa")
    assert metamath.rows.group_field == "original_question"
    assert metamath.test.rows.repo == "openai/gsm8k"
