"""Only the answer and the end token are trained, whatever the tokenizer does at the border."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitrank import models, prompts
from bitrank.errors import UserError

TOKENIZER = models.build_tiny(64, 1, 0)[1]
TEXT = st.text(min_size=1, max_size=30)


@given(prompt=TEXT, answer=TEXT)
def test_trained_tokens_decode_to_the_answer_and_the_end(prompt: str, answer: str) -> None:
    row = prompts.encode(TOKENIZER, prompt, answer, 1000)
    trained = [label for label in row.labels if label != prompts.IGNORED]
    assert TOKENIZER.decode(trained) == answer + TOKENIZER.eos_token
    assert TOKENIZER.decode(row.input_ids) == prompt + answer + TOKENIZER.eos_token
    assert not row.truncated


@given(prompt=TEXT, answer=st.text(min_size=1, max_size=5), room=st.integers(1, 20))
def test_truncation_takes_the_prompts_beginning_and_never_the_answer(
    prompt: str, answer: str, room: int
) -> None:
    whole = prompts.encode(TOKENIZER, prompt, answer, 1000)
    cut = prompts.encode(TOKENIZER, prompt, answer, whole.num_supervised + room)
    assert cut.num_supervised == whole.num_supervised
    assert cut.input_ids == whole.input_ids[-len(cut.input_ids) :]
    assert cut.truncated == (len(cut.input_ids) < len(whole.input_ids))


def test_an_answer_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(UserError, match="no room for a prompt"):
        prompts.encode(TOKENIZER, "prompt", "a long answer", 6)


class MergingTokenizer:
    """Merges "a" and "b" across the border, and adds begin and end tokens by itself."""

    eos_token_id = 9

    def __call__(self, text: str):
        ids = {"": [1, 9], "xa": [1, 2, 3, 9], "xab": [1, 2, 4, 9]}[text]
        return type("Encoding", (), {"input_ids": ids})()


def test_a_token_that_straddles_the_border_is_trained_and_the_end_token_is_not_doubled() -> None:
    row = prompts.encode(MergingTokenizer(), "xa", "b", 10)
    assert row.input_ids == [1, 2, 4, 9]
    assert row.labels == [prompts.IGNORED, prompts.IGNORED, 4, 9]


def test_a_missing_field_names_row_field_and_template() -> None:
    with pytest.raises(UserError, match=r"mine.jsonl:7: no field text, which the template"):
        prompts.fill("Q: {text}", {"label": "x", "text": None}, "mine.jsonl:7")
    assert prompts.fill("{a}-{{b}}", {"a": 1}, "x") == "1-{b}"
    assert prompts.fields_of("{a} {b} {a}") == ["a", "b", "a"]


def test_tokenizer_survives_saving(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = models.load_tokenizer(tmp_path)
    assert loaded("héllo\n").input_ids == TOKENIZER("héllo\n").input_ids
