"""What is known of a model before anything is loaded: the settings of its `config.json`.

A file that was given counts first, then that of the model that was fetched, then the facts that
`conf/plan/architectures.yaml` has of the configured models. Torch is not needed to look them up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bitrank import paths, records
from bitrank.config import ModelConfig
from bitrank.errors import UserError
from bitrank.pins import HubModel, LocalModel, PypiModel, TinyModel

SHIPPED = Path("conf") / "plan" / "architectures.yaml"
FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    settings: Mapping[str, Any]
    """As in a `config.json`."""
    source: str
    """Where they are from, for a reader."""


def find_architecture(
    model: ModelConfig, given: Path | None = None, project: Path = Path()
) -> Architecture:
    """The settings of the configured model; `given` is a `config.json` that counts before all.

    Raises:
        UserError: nothing is known of this model, or a file cannot be read.
    """
    source = model.source
    if given is not None:
        return Architecture(settings=_read_json(given), source=str(given))
    if isinstance(source, LocalModel):
        file = Path(source.path) / FILE
        return Architecture(settings=_read_json(file), source=str(file))
    if isinstance(source, TinyModel):
        return Architecture(settings=_describe_tiny(source), source="conf/model/tiny.yaml")
    fetched = project / paths.ORIGINAL / FILE
    if fetched.is_file() and _was_fetched(model, project):
        return Architecture(settings=_read_json(fetched), source=str(paths.ORIGINAL / FILE))
    name = source.repo if isinstance(source, HubModel) else source.package
    for entry in read_yaml(project / SHIPPED):
        if name in entry["models"]:
            told = f"{SHIPPED} ({entry['source']}; checked: {entry['checked']})"
            return Architecture(settings=entry["config"], source=told)
    raise UserError(
        f"nothing is known of {name}: give its config.json with --config FILE (a small text beside "
        f"the weights on its page), or fetch the model first (`bitrank params model=... && dvc "
        f"repro fetch`), or add it to {SHIPPED}"
    )


def read_yaml(file: Path) -> list[dict[str, Any]]:
    """A list of mappings.

    Raises:
        UserError: it is not there, or is something else.
    """
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{file} does not exist: run this in the project's root") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"{file} must be a list of mappings")
    return found


def read_settings(settings: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The first of these settings that is there; model types differ in what they call it."""
    return next((settings[name] for name in names if settings.get(name) is not None), None)


def count_layers(settings: Mapping[str, Any]) -> int | None:
    found = read_settings(settings, ("num_hidden_layers", "n_layer", "num_layers"))
    return None if found is None else int(found)


def count_positions(settings: Mapping[str, Any]) -> int | None:
    """The longest row that the model was made for."""
    found = read_settings(settings, ("max_position_embeddings", "n_positions"))
    return None if found is None else int(found)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{file} does not exist or cannot be read: name a config.json") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict) or "model_type" not in found:
        raise UserError(f"{file} is not the config.json of a model: it names no `model_type`")
    return found


def _was_fetched(model: ModelConfig, project: Path) -> bool:
    """Whether the record of `fetch` tells of this model."""
    file = paths.record("fetch", project / paths.RESULTS)
    if not file.is_file():
        return False
    source = records.read_record(file).treatment.get("source", {})
    asked = {"repo": model.source.repo} if isinstance(model.source, HubModel) else {}
    if isinstance(model.source, PypiModel):
        asked = {"sha256": model.source.sha256, "member": model.source.member}
    return bool(asked) and all(source.get(name) == value for name, value in asked.items())


def _describe_tiny(source: TinyModel) -> dict[str, Any]:
    """As `models.build_tiny` makes it."""
    return {
        "model_type": "llama",
        "vocab_size": 257,
        "hidden_size": source.hidden_size,
        "intermediate_size": 2 * source.hidden_size,
        "num_hidden_layers": source.num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
