"""A dataset of the Hugging Face hub, at a commit: the revision is resolved first and recorded.

Its files are read (Parquet, JSON, CSV, text); a dataset that is a script is refused by `datasets`
itself, and nothing that comes with a dataset is run.
"""

from __future__ import annotations

from pathlib import Path

from datasets import disable_progress_bars, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bitrank.errors import UserError, make_each
from bitrank.pins import HubRows
from bitrank.rows import Loaded, make_row


def load(rows: HubRows, downloads: Path) -> Loaded:
    """Raises UserError: no network, no such dataset, configuration, split or revision."""
    commit = _resolve(rows)
    disable_progress_bars()  # bars of its own, which would fill a log
    try:
        table = load_dataset(rows.repo, rows.config, split=rows.split, revision=commit)
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise _unreachable(rows, error) from error
    except (DatasetsError, ValueError, RuntimeError) as error:
        # A configuration or split that is not there is told with those that are.
        reason = " ".join(str(error).split())
        raise UserError(
            f"{rows.repo} (`rows.config` {rows.config}, `rows.split` {rows.split}) cannot be "
            f"read: {reason}"
        ) from error
    made = make_each(
        lambda numbered: make_row(
            numbered[1], f"{rows.repo}:{rows.split}:{numbered[0]}", rows.group_field
        ),
        enumerate(table, start=1),
    )
    return Loaded(made, {"commit": commit})


def _resolve(rows: HubRows) -> str:
    try:
        return str(HfApi().dataset_info(rows.repo, revision=rows.revision).sha)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"`rows.repo`: there is no dataset {rows.repo}, or it is gated. Accept its licence on "
            "its page, and make a read token known with `hf auth login` or HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"`rows.revision`: {rows.repo} has no revision {rows.revision}") from error
    except (HTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise _unreachable(rows, error) from error


def _unreachable(rows: HubRows, error: Exception) -> UserError:
    return UserError(
        f"the dataset {rows.repo} cannot be downloaded ({type(error).__name__}): check the "
        "network, or give a file of your own with data=jsonl, data=csv or data=parquet"
    )
