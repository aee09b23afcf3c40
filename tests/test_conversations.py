"""A conversation is the chat template's own text, and its answers are found in it exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from bitrank import conversations, models, prompts
from bitrank.errors import UserError

END = "<|end|>"
PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tokenizer_with(template: str | None, turn: str | None = None) -> PreTrainedTokenizerBase:
    tokenizer = models.build_tiny(64, 1, 0)[1]
    tokenizer.chat_template = template
    if turn:
        tokenizer.add_special_tokens({"additional_special_tokens": [turn]})
    return tokenizer


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": c} for n, c in enumerate(contents)]


TOKENIZER = tokenizer_with(PLAIN)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=12)
TEXT = TEXT.filter(str.strip)


def trained_text(tokenizer: PreTrainedTokenizerBase, made: conversations.Exchange) -> str:
    row = prompts.encode(
        tokenizer, made.prompt, made.answer, 10_000, end=made.end, earlier=made.earlier
    )
    assert len(row.input_ids) == len(row.labels)
    return tokenizer.decode([label for label in row.labels if label != prompts.IGNORED])


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_the_answers_and_their_ends_are_trained_and_nothing_else(
    pairs: list[tuple[str, str]],
) -> None:
    made = conversations.render(TOKENIZER, turns(*(t for pair in pairs for t in pair)), "x")
    expected = "".join(answer.strip() + END for _, answer in pairs)
    assert trained_text(TOKENIZER, made) == expected
    whole = "".join(
        f"<|user|>\n{q.strip()}{END}\n<|assistant|>\n{a.strip()}{END}\n" for q, a in pairs
    )
    assert made.prompt + made.answer + END + "\n" == whole
    assert made.end == "", "the tokenizer's own end token is not written down"


def test_the_text_is_what_the_tokenizer_itself_makes_of_it() -> None:
    for template in (PLAIN, "\n" + PLAIN, "{#- a note -#}\n {%- set x = 1 %}" + PLAIN):
        tokenizer = tokenizer_with(template)
        expected = tokenizer.apply_chat_template(
            turns("a"), tokenize=False, add_generation_prompt=True
        )
        assert conversations.ask(tokenizer, None, "a") == expected


def test_one_exchange_reads_as_a_question_does() -> None:
    made = conversations.render(TOKENIZER, turns("a", "b"), "x")
    assert made.prompt == conversations.ask(TOKENIZER, None, " a ")
    asked = conversations.ask(TOKENIZER, "be kind", "a")
    assert asked == f"<|system|>\nbe kind{END}\n{made.prompt}"


def test_an_answer_ends_with_the_token_that_the_template_ends_it_with() -> None:
    tokenizer = tokenizer_with(PLAIN.replace(END, "<turn>"), "<turn>")
    made = conversations.render(tokenizer, turns("a", "b", "c", "d"), "x")
    assert made.end == "<turn>"
    assert trained_text(tokenizer, made) == "b<turn>d<turn>"


def test_a_space_that_the_template_puts_before_an_answer_belongs_to_it() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content }} [/Q]"
        "{% else %} {{ m.content }} " + END + "{% endif %}{% endfor %}"
    )
    tokenizer = tokenizer_with(template)
    made = conversations.render(tokenizer, turns("a", "b", "c", "d"), "x")
    assert made.prompt.endswith("[Q] c [/Q]")
    assert made.answer == " d"
    assert trained_text(tokenizer, made) == f" b {END} d{END}"


def test_an_answer_that_is_cut_is_not_trained_in_part() -> None:
    made = conversations.render(TOKENIZER, turns("a", "first", "c", "second"), "x")
    options = {"end": made.end, "earlier": made.earlier}
    whole = prompts.encode(TOKENIZER, made.prompt, made.answer, 1000, **options)
    before_first = made.prompt.index("first")
    for cut in (1, before_first + 1, before_first + 5):
        room = len(whole.input_ids) - cut
        row = prompts.encode(TOKENIZER, made.prompt, made.answer, room, **options)
        assert row.truncated
        assert row.input_ids == whole.input_ids[cut:]
        kept = TOKENIZER.decode([label for label in row.labels if label != prompts.IGNORED])
        assert kept in (f"first{END}second{END}", f"second{END}")


def test_a_begin_token_is_not_doubled() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_with("<s>" + PLAIN)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert conversations.ask(tokenizer, None, "a").startswith("<s>")
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    asked = conversations.ask(tokenizer, None, "a")
    assert tokenizer(asked).input_ids.count(begin) == 1
    made = conversations.render(tokenizer, turns("a", "b", "c", "d"), "x")
    assert trained_text(tokenizer, made) == f"b{END}d{END}"


def test_the_day_is_always_the_same() -> None:
    tokenizer = tokenizer_with("{{ strftime_now('%Y-%m-%d') }}" + PLAIN)
    plain = conversations.ask(TOKENIZER, None, "a")
    assert conversations.ask(tokenizer, None, "a") == conversations.DAY + plain


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"mine:7: must be a list"),
        ("hello", r"mine:7: must be a list"),
        ([{"role": "tool", "content": "a"}], r"mine:7: message 1 must have a `role`"),
        ([{"role": "user"}], r"mine:7: message 1 must have"),
        (turns("a"), r"mine:7: the last message must be the assistant's"),
        (turns("a", " "), r"mine:7: message 2, an answer, is empty"),
        (turns("a", f"b{END}c"), r"mine:7: message 2 holds <\|end\|>, a control token"),
    ],
)
def test_what_is_no_conversation_is_told_with_its_place(messages: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        conversations.render(TOKENIZER, messages, "mine:7")  # type: ignore[arg-type]


def test_a_tokenizer_without_a_chat_template_is_told() -> None:
    with pytest.raises(UserError, match=r"no chat template: .*data/format=template"):
        conversations.render(tokenizer_with(None), turns("a", "b"), "mine:7")


def test_a_template_that_refuses_or_rewrites_is_told() -> None:
    refusing = tokenizer_with("{{ raise_exception('no system role here') }}")
    with pytest.raises(UserError, match=r"mine:7: .*refuses .* no system role here"):
        conversations.render(refusing, turns("a", "b"), "mine:7")
    forgetting = tokenizer_with(
        "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '...' }}"
        + END + "{% endfor %}"
    )  # fmt: skip
    with pytest.raises(UserError, match=r"mine:7: .*does not keep message 2"):
        conversations.render(forgetting, turns("a", "b", "c", "d"), "mine:7")
