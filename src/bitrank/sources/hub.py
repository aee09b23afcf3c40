"""A model of the Hugging Face hub, at a commit: the revision is resolved first and recorded."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
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

FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
"""No pickles and no code are even downloaded."""


def load(source: HubModel, downloads: Path) -> Fetched:
    """Raises UserError: no network, no such model or revision, or a gated one without access."""
    try:
        commit = HfApi().model_info(source.repo, revision=source.revision).sha
        folder = snapshot_download(source.repo, revision=commit, allow_patterns=FILES)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"`model.source.repo`: {source.repo} does not exist or is gated. Accept its licence on "
            "its page, and make a read token known with `hf auth login` or HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"`model.source.revision`: {source.repo} has no revision {source.revision}"
        ) from error
    except (HTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{source.repo} cannot be downloaded ({type(error).__name__}): check the network, or "
            "use a local folder with model=local"
        ) from error
    if not list(Path(folder).glob("*.safetensors")):
        raise UserError(f"{source.repo} has no safetensors weights; pickles are not loaded")
    model = models.load_model(Path(folder), keep_dtype=True)
    tokenizer = models.load_tokenizer(Path(folder))
    return Fetched(
        model, tokenizer, {"kind": "hub", "repo": source.repo, "requested": source.revision,
                           "commit": commit}
    )  # fmt: skip
