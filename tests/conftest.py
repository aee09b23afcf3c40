"""A tiny random model, its quantized copies and a few prepared rows, made once a session."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from bitrank import chain, composition, config, identity, models, records, weights, writer
from bitrank.store import DATABASE

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PRECISIONS = ("fp32", "int8", "fp4", "nf4")


@pytest.fixture(scope="session", autouse=True)
def _fixed_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compose() -> Callable[..., config.RunConfig]:
    """The smoke experiment with overrides, composed and checked as a user's is."""

    def composed(*overrides: str) -> config.RunConfig:
        from omegaconf import OmegaConf

        text = composition.compose_text(["experiment=smoke", *overrides], ROOT / "conf")
        run = config.parse(OmegaConf.to_container(OmegaConf.create(text)))
        rows = dataclasses.replace(run.data.rows, path=str(ROOT / "tests/fixtures/colours.jsonl"))
        return dataclasses.replace(run, data=dataclasses.replace(run.data, rows=rows))

    return composed


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of random weights with its byte tokenizer, as `fetch` writes it."""
    folder = tmp_path_factory.mktemp("original")
    model, tokenizer = models.build_tiny(64, 2, 0)
    models.save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def quantized(
    original: Path,
    compose: Callable[..., config.RunConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """The folder of the tiny model in a named precision, as `quantize` writes it."""
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            precision = compose(f"precision={name}").precision
            model = weights.quantize_model(original, precision, CPU)
            models.save_model(model, models.load_tokenizer(original), folder)
            stamp_base(folder, original, precision)
            made[name] = folder
        return made[name]

    return folder_of


def stamp_base(folder: Path, original: Path, precision: config.PrecisionConfig) -> None:
    """Stamp the weights in `folder`, as `quantize` does."""
    hashes = {"original_hash": original, "base_hash": folder}
    found = {name: identity.hash_weights(where) for name, where in hashes.items()}
    chain.write_stamp(folder, chain.BaseStamp(**found, precision=precision))


@pytest.fixture(scope="session")
def prepared(
    original: Path,
    compose: Callable[..., config.RunConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The splits of the smoke experiment's rows."""
    from bitrank import preparation

    root = tmp_path_factory.mktemp("prepared")
    preparation.prepare_data(
        compose().data, original, root / "prepared", root / "audit", root / "downloads"
    )
    return root / "prepared"


@pytest.fixture
def train(
    quantized: Callable[[str], Path],
    prepared: Path,
    compose: Callable[..., config.RunConfig],
    tmp_path: Path,
) -> Callable[..., records.Record]:
    """Train on the tiny model with overrides; the adapter and its checkpoints are the test's."""
    from bitrank import training

    def trained(*overrides: str, folder: str = "adapter") -> records.Record:
        run = compose(*overrides)
        return training.train_adapter(
            run.train, run.adapter, run.precision, run.seeds, run.runtime,
            run.data.max_sequence_tokens,
            quantized(run.precision.name), prepared, tmp_path / folder, tmp_path / "kept",
        )  # fmt: skip

    return trained


@pytest.fixture
def project(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    original: Path,
    quantized: Callable[[str], Path],
    compose: Callable[..., config.RunConfig],
) -> Path:
    """All that is evaluated, in the current directory: the base is nf4."""
    from evaluated import write_project

    monkeypatch.chdir(tmp_path)
    write_project(quantized("nf4"), original, compose)
    return tmp_path


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, which take seconds to create, without an experiment of ours."""
    for name, value in writer.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("empty")
    MlflowClient(tracking_uri=f"sqlite:///{folder}/{DATABASE}").search_experiments()
    return folder / DATABASE
