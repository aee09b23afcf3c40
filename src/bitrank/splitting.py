"""From raw rows to splits that do not leak, and to what is asked of a model.

A prompt that stands twice is kept once; a prompt with two different answers is removed with all its
rows, because no model can learn it. Both are counted. Whole groups go to one split.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from bitrank import conversations, paths, prompts
from bitrank.config import DataConfig
from bitrank.data import Row
from bitrank.data_config import ChatFormat
from bitrank.errors import RowsError, UserError, make_each
from bitrank.rows import RawRow

MOST_CHOICES = 200
"""More distinct answers than this are free text, not classes to choose from."""


@dataclass(frozen=True)
class Cleaned:
    rows: list[Row]
    num_duplicates: int
    num_conflicts: int


def render_rows(
    raw: Sequence[RawRow],
    config: DataConfig,
    templates: tuple[str | None, str | None],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Row]:
    """The rows as the model sees them; `templates` are of the prompt and of the answer.

    Raises:
        UserError: rows without a field of the templates, with an empty answer, or that are no
            conversation; all of them at once.
    """
    prompt, answer = (template or "" for template in templates)

    def render(row: RawRow) -> Row:
        layout = config.format
        if not isinstance(layout, ChatFormat):
            asked, told = _fill_both(row, prompt, answer)
            return Row(asked, told, row.group, where=row.where)
        if layout.messages_field is None:
            asked, told = _fill_both(row, prompt, answer)
            messages: Any = [{"role": "user", "content": asked},
                             {"role": "assistant", "content": told}]  # fmt: skip
        else:
            messages = _messages_of(row, layout.messages_field)
        if not any(isinstance(m, Mapping) and m.get("role") == "system" for m in messages):
            messages = [*conversations.system_message(layout.system), *messages]
        made = conversations.render(tokenizer, messages, row.where)
        return Row(made.prompt, made.answer, row.group, made.end, made.earlier, row.where)

    return make_each(render, raw)


def _fill_both(row: RawRow, prompt: str, answer: str) -> tuple[str, str]:
    told = prompts.fill(answer, row.fields, row.where)
    if not told.strip():
        raise UserError(f"{row.where}: the answer is empty")
    return prompts.fill(prompt, row.fields, row.where), told


def _messages_of(row: RawRow, name: str) -> list[Any]:
    messages = row.fields.get(name)
    if not isinstance(messages, list):
        found = f"no field {name}" if messages is None else f"{name} is {messages!r:.40}"
        raise UserError(
            f"{row.where}: {found}; `data.format.messages_field` must name a field with a list of "
            '{"role", "content"}'
        )
    return messages


def clean_rows(rows: Sequence[Row]) -> Cleaned:
    """Drop duplicates and contradictions."""
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[row.prompt].add(row.answer)
    consistent = [row for row in rows if len(answers[row.prompt]) == 1]
    unique = {row.prompt: row for row in reversed(consistent)}  # the first of each stays
    kept = list(reversed(unique.values()))
    return Cleaned(kept, len(consistent) - len(kept), len(rows) - len(consistent))


def split_rows(
    rows: Sequence[Row], config: DataConfig, test: Sequence[Row] = ()
) -> dict[str, list[Row]]:
    """Draw the splits from disjoint groups, each group whole, with `data.split_seed`.

    The test split is drawn from `test` where there are such rows.

    Raises:
        UserError: a split's pool holds fewer rows than are asked for, or rows to train on are among
            those of the test.
    """
    _refuse_leaks(rows, test)
    drawn = [split for split in paths.SPLITS if split != "test" or not test]
    wanted = {split: int(getattr(config, f"num_{split}")) for split in paths.SPLITS}
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        members[row.group].append(row)
    groups = sorted(members)
    draw = random.Random(config.split_seed)
    draw.shuffle(groups)
    pools: dict[str, list[Row]] = {split: [] for split in drawn}
    for group in groups:
        # The split that is furthest behind its share gets the next group.
        behind = min(pools, key=lambda split: len(pools[split]) / wanted[split])
        pools[behind].extend(members[group])
    if test:
        pools["test"] = list(test)
    return {split: _draw(pool, wanted[split], split, config.balance, draw)
            for split, pool in pools.items()}  # fmt: skip


def _refuse_leaks(rows: Sequence[Row], test: Sequence[Row]) -> None:
    prompts_seen, groups_seen = {row.prompt: row for row in rows}, {row.group: row for row in rows}
    faults = []
    for row in test:
        if row.prompt in prompts_seen:
            faults.append(f"{row.where}: stands in {prompts_seen[row.prompt].where} too")
        elif row.group in groups_seen:
            faults.append(f"{row.where}: of one group with {groups_seen[row.group].where}")
    if faults:
        cure = "a test row must not be trained on; take it out of `data.rows` or `data.test.rows`"
        raise RowsError([f"{fault}: {cure}" for fault in faults])


def _draw(
    pool: list[Row], wanted: int, split: str, balance: bool, draw: random.Random
) -> list[Row]:
    if len(pool) < wanted:
        raise UserError(
            f"`data.num_{split}` asks for {wanted} rows, its share of the data has {len(pool)}: "
            "ask for less, or bring more rows"
        )
    draw.shuffle(pool)
    if not balance:
        return pool[:wanted]
    by_answer: dict[str, list[Row]] = defaultdict(list)
    for row in pool:
        by_answer[row.answer].append(row)
    # The n-th rows of all answers come before the (n+1)-th of any.
    ranked = sorted(
        (place, answer) for answer, same in by_answer.items() for place in range(len(same))
    )
    drawn = [by_answer[answer][place] for place, answer in ranked[:wanted]]
    draw.shuffle(drawn)
    return drawn


def list_choices(splits: Mapping[str, Sequence[Row]]) -> list[str]:
    """All answers in sorted order: what a classification chooses from.

    Raises:
        UserError: too many for classes, only one, or a held-out answer that training never shows.
    """
    answers = {split: {row.answer for row in rows} for split, rows in splits.items()}
    choices = sorted(set().union(*answers.values()))
    if len(choices) > MOST_CHOICES:
        raise UserError(
            f"`data.answer` gives {len(choices)} different answers: at most {MOST_CHOICES} classes "
            "can be chosen from; data/task=generation takes them as free text"
        )
    if len(choices) < 2:
        raise UserError(f"`data.answer` gives only one answer, {choices[0]!r}: nothing to learn")
    unseen = sorted(set(choices) - answers["train"])
    if unseen:
        raise UserError(
            f"no training row has the answer {unseen[0]!r}, but a held-out row does: raise "
            "`data.num_train` or leave such rows out"
        )
    return choices


def refuse_prefixes(
    choices: Sequence[str], prompt: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Choices are compared without an end: one that begins another would always win against it.

    Raises:
        UserError: naming the two, by their tokens after `prompt`.
    """
    encoded = prompts.encode_choices(tokenizer, prompt, choices)
    tokens = {choice: row.input_ids[:-1] for choice, row in encoded.items()}
    for one, first in tokens.items():
        for other, second in tokens.items():
            if one != other and second[: len(first)] == first:
                raise UserError(
                    f"the label {one.strip()!r} begins the label {other.strip()!r}, which could "
                    "therefore never be chosen; name one of them otherwise, or take "
                    "data/task=generation"
                )


def refuse_stops(rows: Sequence[Row], stops: Sequence[str]) -> None:
    """Raises UserError: answers that go on after a text that ends one, each with its place."""

    def check(row: Row) -> None:
        held = [stop for stop in stops if stop in row.answer]
        if held:
            raise UserError(
                f"{row.where}: the answer {prompts.shorten(row.answer)} holds {held[0]!r}, which "
                "ends an answer by `data.task.stop`: leave it out of one of the two"
            )

    make_each(check, rows)
