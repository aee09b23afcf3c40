"""Conversations in the text of the model's own chat template, with the answers marked in it.

The template decides everything but one thing: what a day it is. Templates that write today's date
would give other prompts tomorrow, so that they are told the same day always. Where a model can
think aloud before it answers, it is asked not to: the rows hold answers only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bitrank.errors import UserError

ROLES = ("system", "user", "assistant")
DAY = "01 Jan 2026"
CLOCK = f"{{% macro strftime_now(format) %}}{DAY}{{% endmacro %}}\n"
"""Stands before a template, in the place of the clock that transformers gives it."""

Message = Mapping[str, str]
"""Has `role`, one of ROLES, and `content`."""


@dataclass(frozen=True)
class Exchange:
    """The last answer of a conversation and all that stands before it.

    The model reads `prompt`, and is trained on `answer` and the token `end`.
    """

    prompt: str
    answer: str
    end: str
    """Text of the token that ends a turn; "" where that is the tokenizer's end token."""
    earlier: tuple[tuple[int, int], ...]
    """[start, stop) of each earlier answer with its end, in characters of `prompt`."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], where: str) -> Exchange:
    """The text of a conversation that ends with the assistant.

    Raises:
        UserError: no chat template, a message that cannot be used, or a template that writes
            answers differently once the conversation goes on.
    """
    clean = _check(tokenizer, messages, where)
    whole = _text(tokenizer, clean, where)
    spans: list[tuple[int, int]] = []
    prompt, answer, end = "", "", ""
    for place, message in enumerate(clean):
        if message["role"] != "assistant":
            continue
        prompt = _text(tokenizer, clean[:place], where, answer_follows=True)
        after = whole.removeprefix(prompt)
        said = after.lstrip()
        if not whole.startswith(prompt) or not said.startswith(message["content"]):
            raise UserError(
                f"{where}: the model's chat template does not keep message {place + 1} as it was "
                "when it was answered; make each exchange a row of its own"
            )
        # A template may put a space before the answer, which then belongs to it.
        answer = after[: len(after) - len(said) + len(message["content"])]
        rest = after[len(answer) :]
        end = _end_token(tokenizer, rest)
        begin = len(prompt)
        spans.append((begin, begin + len(answer) + (rest.index(end) + len(end) if end else 0)))
    return Exchange(prompt, answer, "" if end == tokenizer.eos_token else end, tuple(spans[:-1]))


def ask(tokenizer: PreTrainedTokenizerBase, system: str | None, question: str) -> str:
    """The prompt of one question.

    Raises:
        UserError: as `render`.
    """
    messages = [*system_message(system), {"role": "user", "content": question.strip()}]
    return _text(tokenizer, messages, "the prompt", answer_follows=True)


def system_message(system: str | None) -> list[Message]:
    return [] if system is None else [{"role": "system", "content": system}]


def _check(tokenizer: PreTrainedTokenizerBase, messages: object, where: str) -> list[Message]:
    """The messages without white space around them."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f'{where}: must be a list of {{"role", "content"}}, got {messages!r:.40}')
    clean: list[Message] = []
    for place, message in enumerate(messages, start=1):
        role, content = (
            (message.get("role"), message.get("content"))
            if isinstance(message, Mapping)
            else (None, None)
        )
        if role not in ROLES or not isinstance(content, str):
            raise UserError(
                f"{where}: message {place} must have a `role`, one of {', '.join(ROLES)}, and a "
                f"text as its `content`, got {message!r:.60}"
            )
        if role == "assistant" and not content.strip():
            raise UserError(f"{where}: message {place}, an answer, is empty")
        special = [token for token in tokenizer.all_special_tokens if token in content]
        if special:
            raise UserError(
                f"{where}: message {place} holds {special[0]}, a control token of the model: take "
                "it out, the chat template brings all that is needed"
            )
        clean.append({"role": role, "content": content.strip()})
    if clean[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last message must be the assistant's, which is the answer")
    return clean


def _text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    where: str,
    answer_follows: bool = False,
) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            "the model's tokenizer has no chat template: take a model that was made for chat, or "
            "data/format=template"
        )
    try:
        text = str(
            tokenizer.apply_chat_template(
                list(messages),
                chat_template=CLOCK + tokenizer.get_chat_template(),
                tokenize=False,
                add_generation_prompt=answer_follows,
                enable_thinking=False,
            )
        )
    except TemplateError as error:
        raise UserError(
            f"{where}: the model's chat template refuses the conversation: {error}"
        ) from None
    # Every text is tokenized the same way later: a begin token that is added there is not doubled.
    begin = tokenizer.bos_token
    adds = begin is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(begin) if adds else text


def _end_token(tokenizer: PreTrainedTokenizerBase, rest: str) -> str:
    """The control token that follows an answer, past white space; "" if another thing does."""
    known = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    found = [token for token in known if token and rest.lstrip().startswith(token)]
    return max(found, key=len, default="")
