"""Predictions agree with what the model itself gives, and name what is not there yet."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitrank import adapters, chain, config, identity, models, paths
from bitrank.data_config import ChatFormat
from bitrank.errors import UserError
from bitrank.predict import complete_prompt, generate, make_prompt, predict, rank_choices

CPU = torch.device("cpu")
TEMPLATE = "Text: {text}\nLabel:"
CHOICES = [" blue", " red", " a much longer colour"]


@pytest.fixture
def project(
    tmp_path: Path,
    original: Path,
    quantized: Callable[[str], Path],
    compose: Callable[..., config.RunConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The four models of a tiny run below the current folder; the merged one is the original."""
    monkeypatch.chdir(tmp_path)
    for source, target in (
        (original, paths.ORIGINAL), (quantized("nf4"), paths.QUANTIZED), (original, paths.MERGED),
    ):  # fmt: skip
        shutil.copytree(source, target)
    base = models.load_model(paths.QUANTIZED, CPU)
    model = adapters.attach_adapter(base, compose().adapter, 0)
    for _, layer in adapters.adapted_layers(model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.5)
    base_hash = identity.hash_weights(paths.QUANTIZED)
    stamp = chain.Stamp(base_hash=base_hash, data_hash="d" * 64)
    adapters.save_adapter(model, paths.ADAPTER, stamp)
    paths.PREPARED.mkdir(parents=True)
    (paths.PREPARED / "choices.json").write_text(json.dumps(CHOICES))
    return tmp_path


@pytest.fixture
def tiny(original: Path) -> tuple[Any, Any]:
    return models.load_model(original, CPU), models.load_tokenizer(original)


def test_all_models_answer_in_order(project: Path) -> None:
    answers = list(predict("Text: a rose\nLabel:", CPU, 4))
    assert [answer.subject for answer in answers] == list(paths.SUBJECTS)
    assert [answer.held_as for answer in answers] == ["float32", "nf4", "nf4", "float32"]
    assert answers[0].text == answers[3].text
    assert answers[0].choices == answers[3].choices
    assert answers[2].choices != answers[1].choices
    for answer in answers:
        assert answer.missing is None
        assert sum(share for _, share in answer.choices) == pytest.approx(1)


def test_what_is_not_there_is_named_with_its_stage(project: Path) -> None:
    shutil.rmtree(paths.MERGED)
    shutil.rmtree(paths.QUANTIZED)
    (paths.PREPARED / "choices.json").unlink()
    answers = list(predict("x", CPU, 2))
    assert [a.missing for a in answers] == [None, "quantize", "quantize", "merge"]
    assert answers[0].choices == ()
    shutil.rmtree(paths.ORIGINAL)
    with pytest.raises(UserError, match="no model yet"):
        next(predict("x", CPU))


def test_an_adapter_of_another_base_is_refused(
    project: Path, quantized: Callable[[str], Path]
) -> None:
    shutil.rmtree(paths.QUANTIZED)
    shutil.copytree(quantized("fp4"), paths.QUANTIZED)
    with pytest.raises(UserError, match="was trained on the base"):
        list(predict("x", CPU, 1))


def test_shares_are_the_softmax_of_whole_choices(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    ranked = dict(rank_choices(model, tokenizer, "Text: a rose\nLabel:", CHOICES))
    sums = []
    for choice in CHOICES:
        start = len(tokenizer("Text: a rose\nLabel:").input_ids)
        ids = torch.tensor([tokenizer("Text: a rose\nLabel:" + choice).input_ids])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        sums.append(sum(float(scores[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])))
    total = sum(math.exp(value) for value in sums)
    assert ranked == pytest.approx(
        {choice: math.exp(value) / total for choice, value in zip(CHOICES, sums, strict=True)},
        rel=1e-4,
    )
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)


def test_the_answer_is_the_greedy_one(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    ids = tokenizer("Text: a rose\nLabel:").input_ids
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[len(tokenizer("Text: a rose\nLabel:").input_ids) :])
    assert generate(model, tokenizer, "Text: a rose\nLabel:", 6) == expected


def test_the_end_token_ends_the_answer(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    first = generate(model, tokenizer, "abc", 1)
    assert first
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(
        int(model(input_ids=torch.tensor([tokenizer("abc").input_ids])).logits[0, -1].argmax())
    )
    assert generate(model, tokenizer, "abc", 5) == ""


def test_a_stop_ends_the_answer_before_it(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    whole = generate(model, tokenizer, "abc", 8)
    places = [place for place in range(1, len(whole)) if whole[place] not in whole[:place]]
    assert places, "a random model's answer has more than one character"
    for place in places:
        stops = ["no such text", whole[place], whole[place:]]
        assert generate(model, tokenizer, "abc", 8, stops) == whole[:place]


@pytest.mark.parametrize(
    ("text", "template", "prompt"),
    [
        ("a rose", TEMPLATE, "Text: a rose\nLabel:"),
        ("Text: a rose\nLabel:", TEMPLATE, "Text: a rose\nLabel:"),
        ("Text: a rose", TEMPLATE, "Text: Text: a rose\nLabel:"),
        ("a {brace}", TEMPLATE, "Text: a {brace}\nLabel:"),
        ("a rose", "{text}", "a rose"),
        ("a rose", "{question}\nOptions: {options}", "a rose"),
    ],
)
def test_a_text_is_put_into_the_template_unless_it_is_whole(
    text: str, template: str, prompt: str
) -> None:
    assert complete_prompt(text, template) == prompt


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        complete_prompt(" \n", TEMPLATE)


def test_a_chat_is_asked_in_the_models_chat_template(
    tmp_path: Path, compose: Callable[..., config.RunConfig]
) -> None:
    plain = compose().data
    assert make_prompt("a rose", plain, tmp_path / "absent") == "Text: a rose\nLabel:"
    layout = ChatFormat(kind="chat", system="be brief", messages_field=None)
    chat = dataclasses.replace(plain, format=layout)
    with pytest.raises(UserError, match="`dvc repro fetch` makes it"):
        make_prompt("a rose", chat, tmp_path / "absent")
    tokenizer = models.build_tiny(64, 1, 0)[1]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}; {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    asked = make_prompt("a rose", chat, tmp_path)
    assert asked == "system: be brief; user: Text: a rose\nLabel:; "
    turns = ChatFormat(kind="chat", system=None, messages_field="messages")
    whole = dataclasses.replace(plain, format=turns, prompt=None, answer=None)
    assert make_prompt("a rose", whole, tmp_path) == "user: a rose; "
