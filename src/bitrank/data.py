"""From raw rows to splits that do not leak, and from a split to token ids.

A prompt that stands twice is kept once; a prompt with two different answers is removed with all its
rows, because no model can learn it. Both are counted. Whole groups go to one split.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bitrank import paths, prompts, records
from bitrank.config import DataConfig
from bitrank.errors import UserError
from bitrank.rows import RawRow

MOST_CHOICES = 200
"""More distinct answers than this are free text, not classes to choose from."""


@dataclass(frozen=True)
class Row:
    """A row as the model sees it: its text is `prompt + answer`, then the end token."""

    prompt: str
    answer: str
    group: str


@dataclass(frozen=True)
class Cleaned:
    rows: list[Row]
    num_duplicates: int
    num_conflicts: int


def clean_rows(raw: Sequence[RawRow], config: DataConfig) -> Cleaned:
    """Fill the templates; drop duplicates and contradictions.

    Raises:
        UserError: no rows, a row without a field of the templates or with an empty answer.
    """
    if not raw:
        raise UserError("`data.rows`: there are no rows")
    rows: list[Row] = []
    for row in raw:
        answer = prompts.fill(config.answer, row.fields, row.where)
        if not answer.strip():
            raise UserError(f"{row.where}: the answer is empty")
        rows.append(Row(prompts.fill(config.prompt, row.fields, row.where), answer, row.group))
    answers: dict[str, set[str]] = defaultdict(set)
    for cleaned in rows:
        answers[cleaned.prompt].add(cleaned.answer)
    consistent = [row for row in rows if len(answers[row.prompt]) == 1]
    unique = {row.prompt: row for row in reversed(consistent)}  # the first of each stays
    kept = list(reversed(unique.values()))
    return Cleaned(kept, len(consistent) - len(kept), len(rows) - len(consistent))


def split_rows(rows: Sequence[Row], config: DataConfig) -> dict[str, list[Row]]:
    """Draw the three splits from disjoint groups, each group whole, with `data.split_seed`.

    Raises:
        UserError: a split's pool holds fewer rows than are asked for.
    """
    wanted = {split: int(getattr(config, f"num_{split}")) for split in paths.SPLITS}
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        members[row.group].append(row)
    groups = sorted(members)
    draw = random.Random(config.split_seed)
    draw.shuffle(groups)
    pools: dict[str, list[Row]] = {split: [] for split in paths.SPLITS}
    for group in groups:
        # The split that is furthest behind its share gets the next group.
        behind = min(pools, key=lambda split: len(pools[split]) / wanted[split])
        pools[behind].extend(members[group])
    return {split: _draw(pool, wanted[split], split, config.balance, draw)
            for split, pool in pools.items()}  # fmt: skip


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


def list_choices(splits: dict[str, list[Row]]) -> list[str]:
    """All answers in sorted order: what a classification chooses from.

    Raises:
        UserError: too many for classes, only one, or a held-out answer that training never shows.
    """
    answers = {split: {row.answer for row in rows} for split, rows in splits.items()}
    choices = sorted(set().union(*answers.values()))
    if len(choices) > MOST_CHOICES:
        raise UserError(
            f"`data.answer` gives {len(choices)} different answers: that is free text, and at most "
            f"{MOST_CHOICES} classes can be chosen from"
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


def count_answers(rows: Sequence[Row]) -> dict[str, int]:
    return dict(sorted(Counter(row.answer for row in rows).items()))


def write_split(path: Path, rows: Sequence[Row]) -> None:
    records.write_jsonl(path, (vars(row) for row in rows))


def read_split(path: Path) -> list[Row]:
    return [Row(**row) for row in records.read_jsonl(path)]


def read_choices(prepared: Path) -> list[str]:
    choices: list[str] = json.loads((prepared / "choices.json").read_text(encoding="utf-8"))
    return choices


def encode_split(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[prompts.Encoded]:
    """The token ids and labels of a split's rows, in order.

    Raises:
        UserError: an answer that does not fit, with the file and the line.
    """
    encoded = []
    for number, row in enumerate(read_split(path), start=1):
        try:
            encoded.append(prompts.encode(tokenizer, row.prompt, row.answer, max_tokens))
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
    return encoded
