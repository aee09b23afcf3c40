"""Giving an adapter away: a folder that plain PEFT loads, here or on the Hugging Face hub.

It has the weights (safetensors), the canonical `adapter_config.json` and a model card, and nothing
else. The weights are hashed again before they go. A folder appears whole or not at all, a
repository of the hub by one commit; what is there already is never touched. The hub is asked only
where it is named; its token is known to `huggingface_hub` alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitrank import findings, identity, model_card, provenance, records
from bitrank.artifacts import whole_folder
from bitrank.collection import Adapter
from bitrank.errors import UserError

CONFIG, CARD = "adapter_config.json", "README.md"
WEIGHTS = ".safetensors"
HUB = "hf://"


def push_to_folder(adapter: Adapter, target: Path) -> None:
    """Write what is given away to a folder that does not exist yet.

    Raises:
        UserError: it exists or cannot be written, or the adapter cannot be given away.
    """
    _check_free(target)
    check(adapter)
    try:
        with whole_folder(target) as partial:
            fill(adapter, partial)
            _check_free(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from None


def _check_free(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists, and is left as it is: name a new folder")


def push_to_hub(adapter: Adapter, repo: str, *, public: bool) -> str:
    """Make a repository of the hub that does not exist yet; return its address.

    Raises:
        UserError: it exists, the hub refuses or does not answer, or as `push_to_folder`.
    """
    from huggingface_hub import HfApi

    check(adapter)
    with tempfile.TemporaryDirectory() as folder:
        fill(adapter, Path(folder))
        api = HfApi()
        with _told(repo):
            address = str(api.create_repo(repo, private=not public, exist_ok=False))
        try:
            with _told(repo):
                api.upload_folder(
                    repo_id=repo, folder_path=folder, commit_message="Adapter and model card"
                )
        except BaseException:
            _remove(api, repo)
            raise
    return address


def _remove(api: Any, repo: str) -> None:
    """The empty repository that was made a moment ago."""
    from huggingface_hub.errors import HTTPError

    try:
        api.delete_repo(repo)
    except (HTTPError, OSError) as error:
        raise UserError(
            f"{repo} could not be filled and not be removed again ({type(error).__name__}): it is "
            "empty, delete it on its page"
        ) from None


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """The hub's errors as a user's. Their own texts are not passed on: they may quote a request."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
        return
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 409:
            message = f"{repo} exists on the hub, and is left as it is: name a new repository"
        elif status in (401, 403, 404):
            message = _denied(repo)
        else:
            message = f"{repo} was not pushed (the hub answers {status}): try again"
    except LocalTokenNotFoundError:
        message = _denied(repo)
    except HFValidationError:
        message = f"{repo!r} is no name of a repository: write hf://<you or your organization>/name"
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        message = (
            f"{repo} was not pushed ({type(error).__name__}): check the network, or name a folder"
        )
    raise UserError(message)


def _denied(repo: str) -> str:
    return (
        f"the hub does not let you make {repo}: make a write token of its owner known with "
        "`hf auth login` or HF_TOKEN"
    )


def check(adapter: Adapter) -> None:
    """Raises UserError: the weights are not here, PEFT could not load them, or the records do not
    belong together.
    """
    if adapter.weights is None:
        cure = "`dvc repro train`" if adapter.overrides is None else "the sweep's command"
        raise UserError(
            f"the weights of {adapter.name} are neither in the workspace nor in DVC's cache: "
            f"{cure} makes them, `dvc pull` may bring them"
        )
    names = list(adapter.weights.files)
    if CONFIG not in names or not any(name.endswith(WEIGHTS) for name in names):
        method = findings.METHODS.get(str(adapter.run.method), str(adapter.run.method))
        raise UserError(
            f"{adapter.name} is no adapter that PEFT loads ({method}): take one of another method, "
            "or the merged model in data/merged where there is one"
        )
    provenance.check_chain(adapter.run)


def fill(adapter: Adapter, folder: Path) -> None:
    """Write weights, configuration and card; `check` has been passed.

    Raises:
        UserError: the weights are not those that were recorded.
    """
    from bitrank.method import make_repeatable  # PEFT, which takes seconds

    files = {} if adapter.weights is None else adapter.weights.files
    for name, file in files.items():
        if name == CONFIG or name.endswith(WEIGHTS):
            shutil.copyfile(file, folder / name)
    found = identity.hash_weights(folder)
    if found != adapter.adapter_hash:
        raise UserError(
            f"the weights of {adapter.name} are {found[:12]}, its record names "
            f"{adapter.adapter_hash[:12]}: they are not what `train` wrote"
        )
    make_repeatable(folder)  # an older bitrank, or another hand, may have left a path in it
    sums = {file.name: identity.hash_file(file) for file in sorted(folder.iterdir())}
    records.write_text(folder / CARD, model_card.write_card(adapter, sums))
