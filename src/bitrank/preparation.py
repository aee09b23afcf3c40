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

from bitrank import data, identity, models, paths, prompts, records, rows, splitting
from bitrank.artifacts import whole_folder
from bitrank.audit_page import AuditRow, render_audit
from bitrank.config import DataConfig
from bitrank.data_config import ChatFormat, Classification, Generation, RowSource
from bitrank.pins import NoRows

ROWS_SHOWN = 12
"""Examples of each split on the audit page."""


def prepare_data(
    config: DataConfig,
    tokenizer_folder: Path = paths.TOKENIZER,
    prepared: Path = paths.PREPARED,
    audit: Path = paths.AUDIT,
    downloads: Path = paths.DOWNLOADS,
) -> records.Record:
    """Write the splits, what is asked of a model, and the audit page.

    Raises:
        UserError: rows that cannot be used, each with its place; too few of them.
    """
    tokenizer = models.load_tokenizer(tokenizer_folder)
    raw, cleaned = _read(config.rows, "data.rows", config, tokenizer, downloads)
    held_out, cleaned_test = _read(config.test.rows, "data.test.rows", config, tokenizer, downloads)
    splits = splitting.split_rows(cleaned.rows, config, cleaned_test.rows)
    encoded = {
        split: data.encode_rows(kept, tokenizer, config.max_sequence_tokens)
        for split, kept in splits.items()
    }
    asked, told = _ask(config.task, splits, tokenizer)
    template = {"template_hash": _hash_templates(config, tokenizer)}
    data_hash = _write(splits, {**asked, paths.template().name: template}, prepared)
    summary = _audit(encoded, splits, tokenizer)
    with whole_folder(audit) as folder:
        page = render_audit(_examples(encoded, splits, tokenizer), summary)
        records.write_text(folder / "label_audit.html", page)
    test = data.count_answers(splits["test"])
    return records.Record(
        stage="prepare",
        treatment={
            **_describe(config),
            "origin": dict(raw.origin),
            "test_origin": dict(held_out.origin),
        },
        result={
            "data_hash": data_hash,
            **template,
            "num_rows_read": len(raw.rows) + len(held_out.rows),
            "num_duplicates_removed": cleaned.num_duplicates + cleaned_test.num_duplicates,
            "num_conflicts_removed": cleaned.num_conflicts + cleaned_test.num_conflicts,
            "num_groups": len({row.group for row in [*cleaned.rows, *cleaned_test.rows]}),
            "splits": {name: _describe_split(kept, config.task) for name, kept in splits.items()},
            **told,
            "majority_share": max(test.values()) / sum(test.values()),
            "audit": summary,
        },
        observation={},
    )


def _read(
    source: RowSource | NoRows,
    key: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    downloads: Path,
) -> tuple[rows.Loaded, splitting.Cleaned]:
    """The rows of a source as they came, and as the model sees them."""
    of = config if key == "data.rows" else config.test
    raw = rows.load(source, key, downloads)
    return raw, splitting.clean_rows(
        splitting.render_rows(raw.rows, config, (of.prompt, of.answer), tokenizer)
    )


def _write(
    splits: Mapping[str, Sequence[data.Row]], asked: Mapping[str, Any], prepared: Path
) -> str:
    """All of it or nothing; return its hash."""
    with whole_folder(prepared) as folder:
        for split, kept in splits.items():
            data.write_split(paths.split(split, folder), kept)
        for name, content in asked.items():
            records.write_text(folder / name, records.canonical_json(content) + "\n")
        return identity.hash_files(folder)


def _ask(
    task: Classification | Generation,
    splits: Mapping[str, Sequence[data.Row]],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is asked of a model, as the file that says so; and what the record tells of it."""
    test = splits["test"]
    if isinstance(task, Classification):
        choices, first = splitting.list_choices(splits), test[0].prompt
        splitting.refuse_prefixes(choices, first, tokenizer)
        return {"choices.json": choices}, {
            "num_choices": len(choices),
            "num_one_token_choices": prompts.count_one_token(tokenizer, first, choices),
            "num_answers_too_long": None,
        }
    splitting.refuse_stops([row for kept in splits.values() for row in kept], task.stop)
    ends = {row.end for row in test} - {""}
    answers = [prompts.encode(tokenizer, row.prompt, row.answer, prompts.NO_LIMIT) for row in test]
    asked = {
        "stop": [*task.stop, *sorted(ends)],
        "max_new_tokens": task.max_new_tokens,
        "ignore": task.ignore,
    }
    return {"generation.json": asked}, {
        "num_choices": None,
        "num_one_token_choices": None,
        # The end token is generated too, and need not be.
        "num_answers_too_long": sum(
            answer.num_supervised - 1 > task.max_new_tokens for answer in answers
        ),
    }


def _describe(config: DataConfig) -> dict[str, Any]:
    described = asdict(config)
    for source in (described["rows"], described["test"]["rows"]):
        source.pop("watch")
        if "path" in source:  # a path may hold a user's name
            source["path"] = Path(source["path"]).name
    return described


def _describe_split(kept: Sequence[data.Row], task: Classification | Generation) -> dict[str, Any]:
    answers = data.count_answers(kept)
    return {
        "num_rows": len(kept),
        "num_groups": len({row.group for row in kept}),
        "num_answers": len(answers),
        # Free texts are as many as the rows: they stand in the split, not in its record.
        "answers": answers if isinstance(task, Classification) else None,
    }


def _hash_templates(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Of everything that a field's value is put into; the model's template is one of them."""
    templates = [config.prompt, config.answer]
    if isinstance(config.format, ChatFormat):
        templates += [config.format.system, tokenizer.chat_template]
    return identity.hash_json(templates)


def _audit(
    encoded: Mapping[str, Sequence[prompts.Encoded]],
    splits: Mapping[str, Sequence[data.Row]],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    ends = {tokenizer.convert_tokens_to_ids(row.end or tokenizer.eos_token)
            for kept in splits.values() for row in kept}  # fmt: skip
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
        "num_untrained_end": sum(row.labels[-1] not in ends for row in every),
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
