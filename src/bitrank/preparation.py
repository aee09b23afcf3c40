"""The `prepare` stage: raw rows to splits, and the label audit that a person reads before training.

The audit tokenizes every row exactly as training does and counts what goes wrong silently
elsewhere: answers cut off, begin tokens doubled, end tokens that are never trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bitrank import data, identity, models, paths, prompts, records, rows
from bitrank.artifacts import whole_folder
from bitrank.audit_page import AuditRow, render_audit
from bitrank.config import DataConfig

ROWS_SHOWN = 12
"""Examples of each split on the audit page."""


def prepare_data(
    config: DataConfig,
    tokenizer_folder: Path = paths.TOKENIZER,
    prepared: Path = paths.PREPARED,
    audit: Path = paths.AUDIT,
    downloads: Path = paths.DOWNLOADS,
) -> records.Record:
    """Write the splits, the choices and the audit page.

    Raises:
        UserError: rows that cannot be used, each with its place; too few of them.
    """
    raw = rows.load(config.rows, downloads)
    cleaned = data.clean_rows(raw, config)
    splits = data.split_rows(cleaned.rows, config)
    choices = data.list_choices(splits)
    tokenizer = models.load_tokenizer(tokenizer_folder)
    with whole_folder(prepared) as folder:
        for split, kept in splits.items():
            data.write_split(paths.split(split, folder), kept)
        records.write_text(folder / "choices.json", records.canonical_json(choices) + "\n")
        encoded = {
            split: data.encode_split(paths.split(split, folder), tokenizer,
                                     config.max_sequence_tokens)
            for split in splits
        }  # fmt: skip
        data_hash = identity.hash_files(folder)
    summary = _audit(encoded, tokenizer)
    with whole_folder(audit) as folder:
        page = render_audit(_examples(encoded, splits, tokenizer), summary)
        records.write_text(folder / "label_audit.html", page)
    test, first = data.count_answers(splits["test"]), splits["test"][0].prompt
    return records.Record(
        stage="prepare",
        treatment=_describe(config),
        result={
            "data_hash": data_hash,
            "template_hash": identity.hash_json([config.prompt, config.answer]),
            "num_rows_read": len(raw),
            "num_duplicates_removed": cleaned.num_duplicates,
            "num_conflicts_removed": cleaned.num_conflicts,
            "num_groups": len({row.group for row in cleaned.rows}),
            "splits": {name: _describe_split(kept) for name, kept in splits.items()},
            "num_choices": len(choices),
            "num_one_token_choices": prompts.count_one_token(tokenizer, first, choices),
            "majority_share": max(test.values()) / sum(test.values()),
            "audit": summary,
        },
        observation={},
    )


def _describe(config: DataConfig) -> dict[str, Any]:
    described = asdict(config)
    described["rows"].pop("watch")
    if "path" in described["rows"]:  # a path may hold a user's name
        described["rows"]["path"] = Path(described["rows"]["path"]).name
    return described


def _describe_split(kept: Sequence[data.Row]) -> dict[str, Any]:
    return {
        "num_rows": len(kept),
        "num_groups": len({row.group for row in kept}),
        "answers": data.count_answers(kept),
    }


def _audit(
    encoded: Mapping[str, Sequence[prompts.Encoded]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    every = [row for split in encoded.values() for row in split]
    num_tokens = sum(len(row.input_ids) for row in every)
    supervised = sum(row.num_supervised for row in every)
    begin = tokenizer.bos_token_id
    return {
        "num_rows": len(every),
        "num_tokens": num_tokens,
        "num_supervised_tokens": supervised,
        "supervised_share": supervised / num_tokens,
        "longest_tokens": max(len(row.input_ids) for row in every),
        "num_truncated": sum(row.truncated for row in every),
        "num_doubled_bos": sum(
            begin is not None and row.input_ids[:2] == [begin, begin] for row in every
        ),
        "num_untrained_end": sum(row.labels[-1] != tokenizer.eos_token_id for row in every),
    }


def _examples(
    encoded: Mapping[str, Sequence[prompts.Encoded]],
    splits: Mapping[str, Sequence[data.Row]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[AuditRow]:
    return [
        AuditRow(
            split=split,
            answer=row.answer,
            tokens=[tokenizer.decode([token]) for token in tokens.input_ids],
            trained=[label != prompts.IGNORED for label in tokens.labels],
            truncated=tokens.truncated,
        )
        for split in encoded
        for tokens, row in list(zip(encoded[split], splits[split], strict=True))[:ROWS_SHOWN]
    ]
