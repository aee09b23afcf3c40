"""What stands in the place of a merged model where a method has none: records that say why.

Some methods add what no weight can hold. The stages that would make and score a merged model then
leave a stamp and records with the reason, so that a missing number is never taken for a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitrank import chain, paths, records
from bitrank.artifacts import whole_folder


def leave_out(
    why_not: str, named: Mapping[str, Any], stamp: chain.Stamp, target: Path
) -> records.Record:
    """The record of `merge`, and in the model's place a stamp alone."""
    with whole_folder(target) as folder:
        made_of = chain.MergedStamp(merged_hash=None, added_to_hash=named["added_to_hash"],
                                    adapter=stamp, why_not=why_not)  # fmt: skip
        chain.write_stamp(folder, made_of)
    result = dict.fromkeys(("merged_hash", "size_bytes", "num_merged_layers", "check"))
    return records.Record(
        stage="merge",
        treatment={"base": None, "dtype": None, **named, "compared_with": None},
        result={**result, "why_not": why_not},
        observation={},
    )


def tell(subject: str) -> records.Record | None:
    """The record of evaluating a merged model that does not exist; None for every other model."""
    if subject != "merged" or not (paths.MERGED / chain.STAMP).is_file():
        return None
    why_not = chain.check_merged(paths.MERGED).why_not
    if why_not is None:
        return None
    handed, _ = chain.hand_over("merged", paths.MERGED, paths.ADAPTER, paths.PREPARED)
    with whole_folder(paths.items("merged")):
        return records.Record(
            stage="evaluate-merged",
            treatment={"subject": "merged", **handed, "tasks": {}},
            result={"tasks": {}, "items": {}, "why_not": why_not},
            observation={},
        )
