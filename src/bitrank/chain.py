"""The identity chain: base, packed codes, rows and template, first weights, adapter, merged model.

Each artifact that is handed on has a stamp beside its weights that names what it was made of, by
sha256. Whoever takes it over looks: are these the weights that were stamped, and do they belong to
what else is at hand? A folder that was exchanged by hand, or is left from another run, is then an
error, and never a number in a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bitrank import identity, paths, records
from bitrank.config import PrecisionConfig
from bitrank.errors import UserError

STAMP = "bitrank.json"
"""The stamp's file, in the artifact's folder."""


@dataclass(frozen=True, kw_only=True)
class BaseStamp:
    """What the weights that `quantize` wrote are: packed codes with their scales, and the rest."""

    original_hash: str
    base_hash: str
    precision: PrecisionConfig


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The prepared rows, and the template that they were put into."""

    data_hash: str
    template_hash: str | None
    """Null where `prepare` left none."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What an adapter was trained on. Null: unknown, in an adapter of an older bitrank."""

    base_hash: str
    data_hash: str
    original_hash: str | None = None
    template_hash: str | None = None
    first_weights_hash: str | None = None
    """Of what the seed decided; null in full fine-tuning too, where it decides nothing."""
    stopped_at_step: int | None = None
    method: str | None = None
    """`adapter.method`; filled in when the adapter is written."""
    adapter_hash: str | None = None
    """Of the weights beside the stamp; filled in when they are written."""


@dataclass(frozen=True, kw_only=True)
class MergedStamp:
    """What a merged model was made of."""

    merged_hash: str | None
    """Null: there is none."""
    added_to_hash: str
    adapter: Stamp
    why_not: str | None = None
    """Why there is none: the method adds what no weight can hold."""


def write_stamp(folder: Path, stamp: BaseStamp | Stamp | MergedStamp) -> None:
    records.write_text(folder / STAMP, records.canonical_json(asdict(stamp)) + "\n")


def check_base(folder: Path) -> BaseStamp:
    """The stamp of a quantized base.

    Raises:
        UserError: it has none, or its weights are not those that were stamped.
    """
    body = _read(folder, "`dvc repro quantize`")
    try:
        stamp = BaseStamp(**{**body, "precision": PrecisionConfig(**body["precision"])})
    except (TypeError, KeyError):
        raise UserError(_unfit(folder, "`dvc repro quantize`")) from None
    _check_weights(folder, stamp.base_hash, "quantize")
    return stamp


def check_original(folder: Path, made_of: str) -> str:
    """The hash of the original base, which the quantized one's stamp must name.

    Raises:
        UserError: these are not the weights that the quantized base was made of.
    """
    found = identity.hash_weights(folder)
    if found != made_of:
        raise UserError(
            f"{folder} holds the base {found[:12]}, the quantized one was made of "
            f"{made_of[:12]}: `dvc repro` brings them together"
        )
    return found


def read_stamp(folder: Path) -> Stamp:
    """Raises UserError: the folder holds no adapter of bitrank's."""
    body = _read(folder, "`dvc repro train`")
    try:
        return Stamp(**body)
    except TypeError:
        raise UserError(_unfit(folder, "`dvc repro train`")) from None


def check_adapter(folder: Path, base_hash: str) -> Stamp:
    """The stamp of an adapter of this base.

    Raises:
        UserError: it has none, belongs to another base, or its weights are not those stamped.
    """
    stamp = read_stamp(folder)
    if stamp.base_hash != base_hash:
        raise UserError(
            f"{folder} was trained on the base {stamp.base_hash[:12]}, this one is "
            f"{base_hash[:12]}: `dvc repro` brings them together"
        )
    if stamp.adapter_hash is not None:
        _check_weights(folder, stamp.adapter_hash, "train")
    return stamp


def seal_adapter(folder: Path, stamp: Stamp) -> str:
    """Stamp the adapter's weights that lie in the folder; return their hash."""
    adapter_hash = identity.hash_weights(folder)
    write_stamp(folder, replace(stamp, adapter_hash=adapter_hash))
    return adapter_hash


def check_merged(folder: Path) -> MergedStamp:
    """Raises UserError: a merged model without a stamp, or not with the weights stamped."""
    body = _read(folder, "`dvc repro merge`")
    try:
        stamp = MergedStamp(**{**body, "adapter": Stamp(**body["adapter"])})
    except (TypeError, KeyError):
        raise UserError(_unfit(folder, "`dvc repro merge`")) from None
    if stamp.merged_hash is not None:
        _check_weights(folder, stamp.merged_hash, "merge")
    return stamp


def identify_rows(prepared: Path) -> Rows:
    file = paths.template(prepared)
    template = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return Rows(
        data_hash=identity.hash_files(prepared), template_hash=template.get("template_hash")
    )


def name_inputs(base: BaseStamp, prepared: Path) -> dict[str, Any]:
    """What training and measurement begin with, by the keys of their records."""
    hashes = {"base_hash": base.base_hash, "original_hash": base.original_hash}
    return {**hashes, **vars(identify_rows(prepared))}


def check_rows(folder: Path, stamp: Stamp, prepared: Path) -> Rows:
    """The identity of the prepared rows, on which the adapter of `folder` was trained.

    Raises:
        UserError: it was trained with another template, or on other rows.
    """
    rows = identify_rows(prepared)
    if stamp.template_hash != rows.template_hash:
        raise UserError(
            f"{folder} was trained with the prompt template {_short(stamp.template_hash)}, "
            f"{prepared} was made with {_short(rows.template_hash)}: `dvc repro` brings them "
            "together"
        )
    if stamp.data_hash != rows.data_hash:
        raise UserError(
            f"{folder} was trained on other rows ({_short(stamp.data_hash)}) than {prepared} holds "
            f"({rows.data_hash[:12]}): run `dvc repro`"
        )
    return rows


def hand_over(
    subject: str, folder: Path, adapter: Path, prepared: Path
) -> tuple[dict[str, Any], PrecisionConfig | None]:
    """What one of `paths.SUBJECTS`, whose weights lie in `folder`, was made of, all checked.

    And how the base is held: null where nothing was quantized.

    Raises:
        UserError: a link of the chain is broken; the message names both ends.
    """
    told: dict[str, Any] = dict.fromkeys((
        "base_hash", "original_hash", "first_weights_hash", "adapter_hash", "stopped_at_step",
        "merged_hash",
    ))  # fmt: skip
    if subject == "original":
        told["base_hash"] = told["original_hash"] = identity.hash_weights(folder)
        return {**told, **vars(identify_rows(prepared))}, None
    if subject == "merged":
        merged = check_merged(folder)
        rows = check_rows(folder, merged.adapter, prepared)
        trained = {name: getattr(merged.adapter, name) for name in (*_TRAINED, "original_hash")}
        return {**told, **vars(rows), **trained, "merged_hash": merged.merged_hash}, None
    base = check_base(folder)
    told |= name_inputs(base, prepared)
    if subject == "adapter":
        stamp = check_adapter(adapter, base.base_hash)
        check_rows(adapter, stamp, prepared)
        told |= {name: getattr(stamp, name) for name in _TRAINED}
    return told, base.precision


_TRAINED = ("first_weights_hash", "adapter_hash", "stopped_at_step")


def _check_weights(folder: Path, stamped: str, stage: str) -> None:
    found = identity.hash_weights(folder)
    if found != stamped:
        raise UserError(
            f"{folder} holds the weights {found[:12]}, its {STAMP} names {stamped[:12]}: they are "
            f"not what `{stage}` wrote; `dvc repro {stage}` makes them anew"
        )


def _read(folder: Path, cure: str) -> Mapping[str, Any]:
    file = folder / STAMP
    if not file.is_file():
        raise UserError(f"{folder} has no {STAMP} that tells what it was made of: {cure} makes one")
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        body = None
    if not isinstance(body, Mapping):
        raise UserError(_unfit(folder, cure))
    return body


def _unfit(folder: Path, cure: str) -> str:
    return f"{folder / STAMP} is no stamp of this bitrank's: {cure} makes one"


def _short(sha256: str | None) -> str:
    return "unknown" if sha256 is None else sha256[:12]
