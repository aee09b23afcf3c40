"""The sections `adapter` and `train`: what is written wrong is named with its cure."""

from __future__ import annotations

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from bitrank import composition, config
from bitrank.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.rank=0"], "`adapter.rank` must be at least 1, got 0"),
        (["adapter.target_modules=[]"], "`adapter.target_modules` must name at least one layer"),
        (["adapter.layers=[]"], "`adapter.layers` must list blocks by their number from 0"),
        (["adapter.layers=[-1]"], "`adapter.layers` must list blocks by their number from 0"),
        (["adapter.layers=last 0"], '`adapter.layers` must be null, a list of .* or "last N"'),
        (["adapter.layers=3"], "`adapter.layers` must be a list or text, got 3"),
        (["adapter.layers=[a]"], r"`adapter.layers\[0\]` must be a whole number, got 'a'"),
        (["adapter.method=ia4"], "`adapter.method` must be one of lora, dora, .*full, got 'ia4'"),
        (["adapter.use_dora=true", "precision=int8"], "`adapter.use_dora` does not work on int8"),
        (["train.optimizer=sgd"], "`train.optimizer` must be one of adamw, adamw_8bit"),
        (["train.optimizer=paged_adamw_8bit"], "`train.optimizer` paged_adamw_8bit needs CUDA"),
        (["train.schedule=step"], "`train.schedule` must be one of linear, cosine"),
        (["train.early_stopping_patience=0"], "must be null or at least 1, got 0"),
        (["train.gradient_checkpointing=1"], "must be true or false, got 1"),
    ],
)
def test_a_bad_value_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composition.compose_text(overrides, ROOT / "conf")


@pytest.mark.parametrize(
    ("written", "meant"), [("null", None), ("[2,0]", [2, 0]), ("last 4", "last 4")]
)
def test_the_forms_of_layers(written: str, meant: object) -> None:
    text = composition.compose_text([f"adapter.layers={written}"], ROOT / "conf")
    run = config.parse(OmegaConf.to_container(OmegaConf.create(text)))
    assert run.adapter.layers == meant  # type: ignore[union-attr]


def test_paged_optimizers_are_for_cuda() -> None:
    overrides = ["train.optimizer=paged_adamw_32bit", "runtime.device=cuda"]
    assert "paged_adamw_32bit" in composition.compose_text(overrides, ROOT / "conf")
