"""A model of the Hugging Face hub, at a commit: the revision is resolved first and recorded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bitrank import models
from bitrank.errors import UserError
from bitrank.pins import HubModel
from bitrank.sources import Fetched

logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request
FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
"""No pickles and no code are even downloaded."""


def load(source: HubModel, downloads: Path) -> Fetched:
    """Raises UserError: no network, no such model or revision, a gated one without access, or no
    checkpoint that can be used.
    """
    with _told(source):
        info = HfApi().model_info(source.repo, revision=source.revision)
        names = [sibling.rfilename for sibling in info.siblings or []]
        if not any(name.endswith(".safetensors") for name in names):
            raise UserError(f"`model.source.repo`: {source.repo}: {models.no_safetensors(names)}")
        folder = snapshot_download(source.repo, revision=info.sha, allow_patterns=FILES)
    return Fetched(
        model=models.load_checkpoint(Path(folder), "model.source.repo"),
        tokenizer=models.load_tokenizer(Path(folder)),
        resolved={
            "kind": "hub",
            "repo": source.repo,
            "requested": source.revision,
            "commit": info.sha,
        },
    )


@contextmanager
def _told(source: HubModel) -> Iterator[None]:
    """The hub's errors as a user's. Their own texts are not passed on: they may quote a request."""
    try:
        yield
    except RevisionNotFoundError:
        message = f"`model.source.revision`: {source.repo} has no revision {source.revision}"
    except (GatedRepoError, RepositoryNotFoundError):
        message = _denied(source)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (401, 403):
            message = f"{source.repo} cannot be downloaded (the hub answers {status}): try again"
        else:
            message = _denied(source)
    except (HTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        message = (
            f"{source.repo} cannot be downloaded ({type(error).__name__}): check its name and the "
            "network, or use a local folder with model=local"
        )
    else:
        return
    raise UserError(message)


def _denied(source: HubModel) -> str:
    return (
        f"`model.source.repo`: {source.repo} does not exist, or is gated and not open to you. "
        f"Accept its licence on https://huggingface.co/{source.repo}, then make a read token known "
        "with `hf auth login` or HF_TOKEN"
    )
