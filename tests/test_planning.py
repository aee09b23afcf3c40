"""What a plan says of a device, and what it knows of models and devices."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from omegaconf import OmegaConf
from test_multiplied import BF16, CHECKPOINTING, LLAMA

from bitrank import (
    accelerators,
    architectures,
    composition,
    config,
    estimate,
    fitting,
    models,
    multiplied,
    paths,
    planning,
    records,
)
from bitrank.accelerators import GIB, Accelerator
from bitrank.errors import UserError
from bitrank.grid import Point
from bitrank.multiplied import Targets
from bitrank.planning import Plan, Speed, Unplanned

Compose = Callable[..., config.RunConfig]
ALL = Targets(last=None)
MIB = 2**20


def gpu(memory: int | None) -> Accelerator:
    return Accelerator(name="a GPU", kind="gpu", memory_bytes=memory, flops_per_second=1e12,
                       bytes_per_second=1e11, dtype="bfloat16")  # fmt: skip


def planned(run: config.RunConfig, memory: int | None = None, speed: Speed | None = None) -> Plan:
    found = planning.plan_run(run, LLAMA, gpu(memory), [], speed, ALL)
    assert isinstance(found, Plan)
    return found


def test_the_largest_that_fits_does_and_the_next_does_not(compose: Compose) -> None:
    run = compose("precision=nf4", "data.max_sequence_tokens=64")
    memory = planning.CONTEXT_BYTES["gpu"] + 40 * MIB
    found = planned(run, memory)
    assert found.fits == "yes"
    assert found.largest is not None
    assert found.longest is not None
    step = multiplied.predict_steps(LLAMA, run.precision, run.adapter, run.train, ALL)

    def needed(rows: int, columns: int) -> int:
        parts = step.predict(rows, columns)
        return parts["peak_bytes"] + planning.assume_on_top(parts, "gpu")

    rows = run.train.micro_batch_size
    assert needed(found.largest, 64) <= memory < needed(found.largest + 1, 64)
    assert needed(rows, found.longest) <= memory < needed(rows, found.longest + 1)
    # Of exactly the tensors it is not certain; of less it is.
    assert planned(run, found.needed_bytes).fits == "yes"
    assert planned(run, found.needed_bytes - 1).fits == "perhaps"
    assert planned(run, found.tensor_bytes - 1).fits == "no"
    assert planned(run, found.tensor_bytes - 1).largest == 0 or found.largest
    assert planned(run).fits == "unknown"


def test_no_row_is_longer_than_the_model_has_positions(compose: Compose) -> None:
    assert planned(compose("precision=fp32"), 10**15).longest == LLAMA["max_position_embeddings"]


def test_what_cannot_be_predicted_is_not_guessed(compose: Compose) -> None:
    run = compose("precision=nf4", "adapter.use_dora=true")
    found = planning.plan_run(run, LLAMA, gpu(None), [], None, ALL)
    assert isinstance(found, Unplanned)
    assert "DoRA" in found.reason


def test_time_follows_operations_ceiling_and_what_is_moved(compose: Compose) -> None:
    def seconds(speed: Speed, *overrides: str) -> float:
        found = planned(compose(*overrides), None, speed).seconds_per_million
        assert found is not None
        return found

    half = Speed(flops_per_second=1e12, bytes_per_second=1e11, mfu=0.5, source="")
    plain = seconds(half, "precision=fp32")
    assert seconds(dataclasses.replace(half, mfu=0.25), "precision=fp32") == pytest.approx(
        2 * plain
    )
    assert plain < seconds(half, "precision=fp32", CHECKPOINTING)
    assert plain < seconds(half, "precision=nf4"), "codes are read, weights written"
    still = dataclasses.replace(half, bytes_per_second=None)
    assert seconds(still, "precision=nf4") == pytest.approx(plain)
    assert plain < seconds(half, "precision=fp32", "adapter=full")
    assert planned(compose()).seconds_per_million is None


def count_parameters(settings: dict[str, Any], compose: Compose) -> int:
    run = compose("precision=fp32", "adapter=full")
    counts = []
    for blocks in (3, 4):
        short = multiplied.shorten(settings, blocks)
        model = estimate.build(short, run.precision, run.adapter, run.train)
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    layers = architectures.count_layers(settings) or 0
    return counts[0] + (layers - 3) * (counts[1] - counts[0])


def test_shipped_architectures_have_the_published_number_of_parameters(compose: Compose) -> None:
    for entry in architectures.read_yaml(ROOT / architectures.SHIPPED):
        counted = count_parameters(entry["config"], compose)
        assert counted == entry["parameters"], entry["models"]


def test_every_configured_model_is_known() -> None:
    for file in sorted((ROOT / "conf" / "model").glob("*.yaml")):
        if file.stem in ("hub", "local"):
            continue
        text = composition.compose_text([f"model={file.stem}"], ROOT / "conf")
        run = config.parse(OmegaConf.to_container(OmegaConf.create(text)))
        found = architectures.find_architecture(run.model, project=ROOT)
        assert architectures.count_layers(found.settings)


def test_the_tiny_model_is_known_as_it_is_built(compose: Compose) -> None:
    source = compose().model.source
    built = models.build_tiny(source.hidden_size, source.num_layers, 0)[0].config.to_dict()  # type: ignore[union-attr]
    told = architectures.find_architecture(compose().model).settings
    assert {name: built.get(name) for name in told} == dict(told)


def test_the_config_of_a_fetched_model_counts(compose: Compose, tmp_path: Path) -> None:
    model = composed("model=llama31_8b").model
    shutil_conf(tmp_path)
    shipped = architectures.find_architecture(model, project=tmp_path)
    assert shipped.settings["num_hidden_layers"] == 32
    settings = {**LLAMA, "num_hidden_layers": 5}
    records.write_text(tmp_path / paths.ORIGINAL / "config.json", json.dumps(settings))
    assert architectures.find_architecture(model, project=tmp_path) == shipped, "of another model"
    told = {"source": {"kind": "hub", "repo": "meta-llama/Llama-3.1-8B"}}
    record = records.Record(stage="fetch", treatment=told, result={}, observation={})
    records.write_record(record, paths.record("fetch", tmp_path / paths.RESULTS))
    found = architectures.find_architecture(model, project=tmp_path)
    assert found.settings["num_hidden_layers"] == 5
    assert "base/original" in found.source


def composed(*overrides: str) -> config.RunConfig:
    text = composition.compose_text(overrides, ROOT / "conf")
    return config.parse(OmegaConf.to_container(OmegaConf.create(text)))


def shutil_conf(folder: Path) -> None:
    target = folder / architectures.SHIPPED
    records.write_text(target, (ROOT / architectures.SHIPPED).read_text(encoding="utf-8"))


def test_a_model_that_nothing_is_known_of_gets_the_cure(tmp_path: Path) -> None:
    model = composed("model=hub", "model.source.repo=some/model").model
    with pytest.raises(UserError, match=r"nothing is known of some/model: give its config\.json"):
        architectures.find_architecture(model, project=ROOT)
    for text, reason in (("{", "is not JSON"), ("{}", "names no `model_type`")):
        records.write_text(tmp_path / "config.json", text)
        with pytest.raises(UserError, match=reason):
            architectures.find_architecture(model, tmp_path / "config.json")
    with pytest.raises(UserError, match="does not exist"):
        architectures.find_architecture(model, tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * GIB), ("24 GB", 24 * 10**9), ("0.5gib", GIB // 2), ("46068MiB", 46068 * MIB)],
)
def test_sizes_are_read_as_they_are_written(text: str, size: int) -> None:
    assert accelerators.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "24 apples", "-3GiB", "24"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(UserError, match="24GiB"):
        accelerators.parse_size(text)


def test_gpus_are_found_by_name() -> None:
    known = accelerators.read_gpus(ROOT / accelerators.GPUS)
    assert accelerators.find_gpu("rtx4090", known).name == "RTX 4090"
    assert accelerators.find_gpu("NVIDIA GeForce RTX 4090", known).name == "RTX 4090"
    assert accelerators.find_gpu("a100", known).name == "A100 40GB"
    assert accelerators.find_gpu("H100", known).name == "H100"
    for name in ("GTX 9", ""):
        with pytest.raises(UserError, match=r"known are T4, .*--memory"):
            accelerators.find_gpu(name, known)


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", None),
    ],
)
def test_the_system_s_name_of_a_gpu_is_recognized(called: str, name: str | None) -> None:
    found = accelerators.recognize(called, accelerators.read_gpus(ROOT / accelerators.GPUS))
    assert (found.name if found else None) == name


def test_a_gpu_without_a_field_is_told(tmp_path: Path) -> None:
    records.write_text(tmp_path / "gpus.yaml", "- {name: Mine, memory_mib: 1}\n")
    with pytest.raises(UserError, match="Mine has no tflops"):
        accelerators.read_gpus(tmp_path / "gpus.yaml")


@pytest.mark.parametrize("overrides", [
    ["precision=fp32", "adapter=full"], ["precision=int8"], ["precision=nf4", "adapter.rank=32"],
])  # fmt: skip
def test_the_bound_is_above_every_phase(overrides: list[str], compose: Compose) -> None:
    run = compose(*overrides, "data.max_sequence_tokens=256")
    bound = fitting.bound_bytes(run, LLAMA)
    assert bound is not None
    assert all(parts["peak_bytes"] < bound for parts in planned(run).phases.values())


def point(*overrides: str) -> Point:
    text = composition.compose_text(["experiment=smoke", *overrides], ROOT / "conf")
    return Point(key="a-point", overrides=tuple(overrides), text=text)


@pytest.mark.parametrize(
    ("overrides", "memory", "certain", "reason"),
    [
        ([], 10 * GIB, None, ""),
        ([], 300_000, True, "at the least"),
        (["train.micro_batch_size=64", "train.global_batch_size=64"], 30 * MIB, False, "trained"),
    ],
)  # fmt: skip
def test_points_that_do_not_fit_are_told(
    overrides: list[str], memory: int, certain: bool | None, reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    device = dataclasses.replace(gpu(memory), kind="cpu")
    monkeypatch.setattr(fitting, "find_device", lambda _: device)
    found = list(fitting.find_misfits([point(*overrides)]))
    assert [one.certain for one in found] == ([] if certain is None else [certain])
    assert all(reason in one.reason for one in found)


def test_a_70b_model_is_planned_from_three_blocks(compose: Compose) -> None:
    run = compose("precision=nf4", *BF16, "adapter.rank=8", CHECKPOINTING)
    settings = next(e["config"] for e in architectures.read_yaml(ROOT / architectures.SHIPPED)
                    if "meta-llama/Llama-2-70b-hf" in e["models"])  # fmt: skip
    found = planning.plan_run(run, settings, gpu(80 * GIB), [], None, ALL)
    assert isinstance(found, Plan)
    linear = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    expected = linear * 4.127 / 8 + 2 * 2 * 32000 * 8192
    assert found.phases["load"]["peak_bytes"] == pytest.approx(expected, rel=1e-3)
    assert found.fits == "yes"
