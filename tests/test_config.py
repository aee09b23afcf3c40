"""Every shipped group file composes and validates; what a user writes wrong is named."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bitrank import composition, config
from bitrank.errors import ConfigError, UserError

CONF = Path(__file__).parents[1] / "conf"
NEEDS = {"model=local": ["model.source.path=x"], "model=hub": ["model.source.repo=a/b"],
         "data=jsonl": ["data.rows.path=x"], "data=csv": ["data.rows.path=x"],
         "data=parquet": ["data.rows.path=x"], "data=hub": ["data.rows.repo=a/b"]}  # fmt: skip
PLAIN = ("adapter=full", "adapter=pissa", "adapter=olora")
FITS = {**NEEDS, **{option: ["precision=fp32"] for option in PLAIN}}
OPTIONS = sorted(
    f"{file.parent.name}={file.stem}"
    for file in CONF.glob("*/*.yaml")
    if file.parent.name not in ("claims", "plan")  # data of the report, of the planner
)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes(option: str) -> None:
    text = composition.compose_text([option, *FITS.get(option, [])], CONF)
    assert OmegaConf.create(text).keys() == set(config.SECTIONS)


@pytest.mark.parametrize("option", sorted(NEEDS))
def test_an_option_that_needs_a_value_says_which(option: str) -> None:
    with pytest.raises(ConfigError, match="has no default: add"):
        composition.compose_text([option], CONF)


def test_precisions_differ_in_the_precision_section_only() -> None:
    names = [file.stem for file in (CONF / "precision").glob("*.yaml")]
    composed = [OmegaConf.create(composition.compose_text([f"precision={n}"], CONF)) for n in names]
    for one, other in itertools.combinations(composed, 2):
        differing = {key for key in one if one[key] != other[key]}
        assert differing == {"precision"}


def test_seed_sets_both_seeds_and_leaves_the_split_alone() -> None:
    run = OmegaConf.create(composition.compose_text(["seed=7"], CONF))
    assert run.seeds == {"init": 7, "order": 7}
    assert run.data.split_seed == 2


def test_small_numbers_are_numbers() -> None:
    """PyYAML reads 1e-3 as text; what is written must be read back as it was meant."""
    text = composition.compose_text(["train.learning_rate=1e-5"], CONF)
    assert config.parse(OmegaConf.to_container(OmegaConf.create(text))).train.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.rank=0"], "`adapter.rank` must be at least 1, got 0"),
        (["adapter.dropout=1"], "`adapter.dropout` must be in"),
        (["precision.block_size=63"], "`precision.block_size` must be a power of two"),
        (["precision=int8", "precision.double_quant=true"], "applies to fp4 and nf4 only"),
        (["precision=fp32", "precision.compute_dtype=bfloat16"], "`precision.compute_dtype` must"),
        (["train.global_batch_size=24"], "must be a multiple of `train.micro_batch_size`"),
        (["data.prompt=hello"], "`data.prompt` must name a field"),
        (["data.answer='{label}'"], "`data.answer` must begin with a space"),
        (["model.source.sha256=abc"], "`model.source.sha256` must be 64"),
        (["runtime.device=tpu"], "`runtime.device` must be one of cpu, cuda, got 'tpu'"),
    ],
)
def test_a_bad_value_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        composition.compose_text(overrides, CONF)


def test_all_faults_of_a_file_come_in_one_message(tmp_path: Path) -> None:
    bad = ["adapter.rank=0", "train.epochs=0", "runtime.threads=0"]
    with pytest.raises(ConfigError) as caught:
        composition.compose_text(bad, CONF)
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [("seed: [", "cannot be read"), ("seed: 1", "`model` is missing"), (None, "does not exist")],
)
def test_a_broken_params_file_is_one_clear_error(
    tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "params.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        config.load(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("precision=nf3", "Available options in 'precision': fp32 "),
        ("adapter.rnk=8", "`adapter.rnk` is not a key with these options"),
        ("flavour=mint", "`flavour` is not a key"),
        ("adapter.rank=2,8", "`bitrank-sweep adapter.rank=2,8`"),
    ],
)
def test_unknown_groups_options_and_keys_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match="cannot compose") as caught:
        composition.compose_text([override], CONF)
    told = str(caught.value)
    assert message in told
    assert "+" not in told, "no advice that is refused next"
    assert "file://" not in told


def test_what_was_composed_is_read_back_until_conf_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    conf = Path(shutil.copytree(CONF, "conf"))
    composed: list[list[str]] = []

    def compose(overrides: Sequence[str]) -> str:
        composed.append(list(overrides))
        return composition.compose_text(overrides, conf)

    wanted: list[list[str]] = [["adapter.rank=2"], ["adapter.rank=4"], ["adapter.rank=2"]]
    for _ in range(2):
        again = composition.remembering(compose, conf)
        assert [again(one) for one in wanted] == [
            composition.compose_text(one, conf) for one in wanted
        ]
    assert composed == wanted[:2]
    file = conf / "train" / "default.yaml"
    file.write_text(file.read_text().replace("epochs: 1", "epochs: 3"))
    assert "epochs: 3" in composition.remembering(compose, conf)(["adapter.rank=2"])
    (conf / "train" / "mine.yaml").write_text("epochs: ${oc.env:EPOCHS}")
    assert composition.remembering(compose, conf) is compose
