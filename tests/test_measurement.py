"""What is measured is the step that trains; memory is exact, and nothing hangs on the seeds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CPU, PRECISIONS, ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bitrank import (
    adapters,
    config,
    data,
    decoding,
    environment,
    measurement,
    meters,
    models,
    records,
    weights,
    workload,
)
from bitrank.checkpoints import Checkpoints
from bitrank.errors import UserError
from bitrank.prompts import Encoded
from bitrank.trainer import AdapterTrainer

Compose = Callable[..., config.RunConfig]
Measure = Callable[..., records.Record]
NUM_LINEAR = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
"""Weights of the linear layers in the tiny model's two blocks, written out."""
NUM_HEAD = 257 * 64


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A short ceiling, and a single thread.

    On a busy machine two threads wait for each other most of the time.
    """
    monkeypatch.setattr(meters, "measure_ceiling", partial(meters.measure_ceiling, seconds=0.0))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def measure(quantized: Callable[[str], Path], prepared: Path, compose: Compose) -> Measure:
    def measured(*overrides: str) -> records.Record:
        run = compose("runtime.threads=1", *overrides)
        return measurement.measure_training_and_inference(
            run.measure, run.train, run.adapter, run.precision, run.runtime,
            run.data.max_sequence_tokens, quantized(run.precision.name), prepared,
        )  # fmt: skip

    return measured


@pytest.fixture
def rows(original: Path, prepared: Path) -> list[Encoded]:
    return data.encode_split(prepared / "train.jsonl", models.load_tokenizer(original), 128)


def memory_of(record: records.Record) -> dict[str, Any]:
    memory: dict[str, Any] = record.result["train_memory"]
    parts = ("weights", "adapter", "gradients", "optimizer", "activations")
    assert memory["peak_bytes"] == sum(memory[f"{part}_bytes"] for part in parts)
    return memory


def test_memory_is_what_the_shapes_say(measure: Measure) -> None:
    memory = memory_of(measure("precision=fp32", "adapter.rank=4"))
    norms, rotary = 5 * 64, 2 * 8  # a norm's weight; frequencies of half a head, kept twice
    embeddings = 257 * 64
    assert memory["weights_bytes"] == 4 * (NUM_LINEAR + NUM_HEAD + embeddings + norms + rotary)
    lora = 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert memory["adapter_bytes"] == 4 * lora
    tensors = 2 * 7 * 2
    assert memory["optimizer_bytes"] == 2 * 4 * lora + 4 * tensors  # two moments, a step count


def test_precisions_differ_in_the_bytes_of_the_weights_only(measure: Measure) -> None:
    found = {name: memory_of(measure(f"precision={name}")) for name in PRECISIONS}
    plain = found["fp32"]["weights_bytes"]
    for name, bits in (("nf4", 4), ("fp4", 4), ("int8", 8)):
        saved = (plain - found[name]["weights_bytes"]) / (NUM_LINEAR / 8)
        assert 32 - bits - 2 < saved < 32 - bits, name  # scales and code tables cost some bits
        assert found[name]["adapter_bytes"] == found["fp32"]["adapter_bytes"]
        assert found[name]["optimizer_bytes"] == found["fp32"]["optimizer_bytes"]


def test_the_result_is_the_same_to_the_byte(measure: Measure) -> None:
    first = records.canonical_json(measure("precision=nf4").result)
    environment.seed_everything(7)
    again = measure("precision=nf4", "seed=3", "measure.warmup_steps=3")
    assert records.canonical_json(again.result) == first


def test_smaller_micro_batches_hold_fewer_activations(measure: Measure) -> None:
    whole, halved = (
        measure(f"train.micro_batch_size={size}", "train.global_batch_size=8") for size in (8, 4)
    )
    large, small = memory_of(whole), memory_of(halved)
    assert small["activations_bytes"] < 0.7 * large["activations_bytes"]
    assert small["weights_bytes"] == large["weights_bytes"]


def test_speed_is_tokens_over_the_seconds_of_the_timed_steps(measure: Measure) -> None:
    record = measure("measure.steps=3")
    tokens, speed = record.result["tokens_per_step"], record.observation["train_speed"]
    seconds = speed["step_seconds"]
    assert len(seconds["all"]) == 3
    total = sum(seconds["all"])
    assert speed["tokens_per_second"] == pytest.approx(3 * tokens["non_padding"] / total)
    assert speed["padded_tokens_per_second"] == pytest.approx(3 * tokens["padded"] / total)
    assert speed["supervised_tokens_per_second"] == pytest.approx(3 * tokens["supervised"] / total)
    assert tokens["supervised"] < tokens["non_padding"] <= tokens["padded"]
    assert speed["rows_per_second"] == pytest.approx(3 * 8 / total)
    read = speed["tokens_per_second"] - speed["rows_per_second"]
    achieved = 4 * (NUM_LINEAR * read + NUM_HEAD * speed["supervised_tokens_per_second"])
    assert record.observation["achieved_flops_per_second"] == pytest.approx(achieved)
    ceiling = record.observation["ceiling_flops_per_second"]
    assert record.observation["mfu"] == pytest.approx(achieved / ceiling)


def test_each_step_of_inference_is_told_so_that_its_spread_is_known(measure: Measure) -> None:
    found = measure("precision=fp32", "measure.decode_tokens=4").observation["inference"]
    for name, entry in found.items():
        if name == "why_not":
            continue
        seconds = entry["step_seconds"]["all"]
        assert len(seconds) == (4 if name.startswith("decode") else decoding.PREFILL_REPEATS)
        a_step = entry["batch"] * (1 if name.startswith("decode") else entry["prompt_tokens"])
        assert entry["tokens_per_second"] == pytest.approx(a_step * len(seconds) / sum(seconds))


def test_memory_is_metered_on_the_widest_micro_batch(
    measure: Measure, rows: list[Encoded], compose: Compose
) -> None:
    size = compose().train.micro_batch_size
    lengths = sorted(len(row.input_ids) for row in rows)
    widest = max(len(lengths[i : i + size]) * max(lengths[i : i + size])
                 for i in range(0, len(lengths), size))  # fmt: skip
    memory = memory_of(measure("train.global_batch_size=4"))
    assert size == 4
    assert memory["metered_tokens"]["padded"] == widest


@pytest.mark.parametrize("micro", [4, 8])
def test_the_measured_step_is_the_step_of_training(
    micro: int,
    rows: list[Encoded],
    quantized: Callable[[str], Path],
    compose: Compose,
    tmp_path: Path,
) -> None:
    run = compose("train.schedule=constant", "train.warmup_steps=0", "precision=nf4",
                  f"train.micro_batch_size={micro}", "train.global_batch_size=8")  # fmt: skip
    folder = quantized("nf4")
    tokenizer = models.load_tokenizer(folder)

    def fresh() -> Any:
        return adapters.attach_adapter(models.load_model(folder, CPU), run.adapter, workload.SEED)

    trained, measured = fresh(), fresh()
    splits = {"train": rows[:16], "validation": rows[:2]}
    AdapterTrainer(
        trained, tokenizer, splits, run.train, run.seeds, run.runtime, Checkpoints({}, tmp_path)
    ).run()
    step = workload.TrainStep(measured, run.train)
    for batch in workload.draw_batches(rows[:16], run.train, tokenizer):
        step(batch)
    found = dict(measured.named_parameters())
    moved = 0.0
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter, rtol=1e-4, atol=1e-6)
            moved += float(parameter.detach().abs().sum()) if "lora_B" in name else 0.0
    assert moved > 0  # B is zero before training


class _Foreign(TorchDispatchMode):
    """Collects the tensors that operations read and that no operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Any] = {}
        self.found: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.made:
                    self.found[storage._cdata] = leaf
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):  # kept, so that no address is used twice
                self.made[leaf.untyped_storage()._cdata] = leaf.untyped_storage()
        return out


@pytest.mark.parametrize("name", PRECISIONS)
def test_nothing_that_a_step_reads_is_missed(
    name: str, rows: list[Encoded], quantized: Callable[[str], Path], compose: Compose
) -> None:
    run = compose()
    base = models.load_model(quantized(name), CPU)
    step = workload.TrainStep(adapters.attach_adapter(base, run.adapter, 0), run.train)
    tokenizer = models.load_tokenizer(quantized(name))
    first, second, *_ = workload.draw_batches(rows, run.train, tokenizer)
    step(first)
    registered = [step.model, step.optimizer.state, second.micro]
    known = {t.untyped_storage()._cdata for t in meters.reachable_tensors(registered)}
    with _Foreign() as foreign:
        step(second)
    missed = [t for key, t in foreign.found.items() if key not in known]
    assert len(foreign.found) > 20
    assert sum(t.numel() for t in missed) == 0


def test_timed_batches_are_spread_over_the_sizes() -> None:
    def batch(width: int, size: int = 2) -> workload.GlobalBatch:
        micro = {"labels": torch.zeros(size, width)}
        return workload.GlobalBatch([micro], Counter(padded=size * width))

    drawn = [batch(width) for width in (5, 1, 8, 3, 7, 2, 6, 4)] + [batch(90, size=1)]
    widths = [b.micro[0]["labels"].shape[1] for b in workload.spread_evenly(drawn, 4)]
    assert widths == [7, 5, 3, 1]
    assert len(workload.spread_evenly(drawn[:1], 3)) == 3
    assert workload.spread_evenly(drawn[-1:], 1)[0].tokens["padded"] == 90


def test_decoding_reads_the_prompt_once_and_then_one_token_a_step() -> None:
    calls: list[tuple[tuple[int, ...], Any]] = []

    def model(input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:
        calls.append((tuple(input_ids.shape), past_key_values))
        if past_key_values is not None:
            assert (input_ids == past_key_values).all()  # the most likely token of the call before
        best = len(calls)
        logits = torch.nn.functional.one_hot(torch.full((len(input_ids), 1), best), 20).float()
        return SimpleNamespace(logits=logits, past_key_values=best)

    found = decoding.time_decoding(model, torch.zeros(1, 6, dtype=torch.int64), 8, 3)  # type: ignore[arg-type]
    assert [shape for shape, _ in calls] == [(8, 6)] + [(8, 1)] * (decoding.WARMUP + 3)
    assert [past for _, past in calls] == [None, 1, 2, 3, 4, 5]
    assert (found["batch"], found["prompt_tokens"], found["new_tokens"]) == (8, 6, 3)


def test_inference_is_measured_at_one_sequence_and_at_eight(measure: Measure) -> None:
    record = measure("precision=fp32", "measure.prompt_tokens=20", "measure.decode_tokens=5")
    inference = record.observation["inference"]
    assert inference["why_not"] is None
    for name, batch in decoding.BATCHES.items():
        assert (inference[name]["batch"], inference[name]["prompt_tokens"]) == (batch, 20), name
        assert inference[name]["tokens_per_second"] > 0
    assert inference["decode_batched"]["new_tokens"] == 5
    assert record.observation["cuda"] is None


@pytest.mark.parametrize("native", [False, True])
def test_a_precision_without_a_kernel_has_no_speed_of_inference(
    native: bool, measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.bitsandbytes.functional, "has_avx512bf16", lambda: native)
    inference = measure("precision=nf4").observation["inference"]
    assert (inference["why_not"] is None) == native
    assert {inference[name] is None for name in decoding.BATCHES} == {not native}


def test_each_phase_is_metered_on_its_own(measure: Measure) -> None:
    record = measure("precision=nf4", "adapter.rank=4")
    load, train, evaluate, merge = (
        record.result[f"{phase}_memory"] for phase in ("load", "train", "evaluate", "merge")
    )
    assert load["peak_bytes"] == load["weights_bytes"] == train["weights_bytes"]
    assert 0 < evaluate["activations_bytes"] < train["activations_bytes"]
    assert evaluate["weights_bytes"] == load["weights_bytes"]
    assert merge["weights_bytes"] == load["weights_bytes"]
    plain = 4 * (NUM_LINEAR + 2 * NUM_HEAD + 5 * 64)
    largest = 4 * 64 * 128
    # The codes that were dequantized stay until garbage is collected, which a meter holds back.
    codes = load["weights_bytes"] - 4 * (2 * NUM_HEAD + 5 * 64)
    assert plain + 2 * largest <= merge["merged_bytes"] - codes < plain + 2 * largest + 1000
    process = record.observation["process_memory"]
    for phase in ("load", "train", "evaluate", "merge"):
        assert process[f"{phase}_peak_above_import_bytes"] >= 0, phase
        found = record.result[f"{phase}_memory"]
        parts = [size for name, size in found.items()
                 if name.endswith("_bytes") and name != "peak_bytes"]  # fmt: skip
        assert sum(parts) == found["peak_bytes"], phase


def test_energy_is_unknown_where_the_device_does_not_count(measure: Measure) -> None:
    energy = measure().observation["train_speed"]["energy"]
    assert energy["joules"] is None
    assert energy["joules_per_thousand_tokens"] is None


def test_faults_are_told_before_anything_is_measured(measure: Measure, compose: Compose) -> None:
    with pytest.raises(UserError, match=r"`measure\.prompt_tokens`.*the base has 512"):
        measure("measure.prompt_tokens=507", "measure.decode_tokens=4")


def test_the_base_must_be_held_as_configured(
    quantized: Callable[[str], Path], prepared: Path, compose: Compose
) -> None:
    run = compose("precision=nf4")
    with pytest.raises(UserError, match="`precision`"):
        measurement.measure_training_and_inference(
            run.measure, run.train, run.adapter, run.precision, run.runtime,
            run.data.max_sequence_tokens, quantized("fp32"), prepared,
        )  # fmt: skip


def test_the_hardware_stage_is_quick_to_start_and_repeats_its_bytes(tmp_path: Path) -> None:
    script = f"import runpy, sys; runpy.run_path({str(ROOT / 'stages/hardware.py')!r}, " + (
        "run_name='__main__'); assert not {'torch', 'transformers', 'omegaconf'} & {*sys.modules}"
    )
    texts = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
        texts.append((tmp_path / "data/hardware.json").read_text())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["cpu"]["cores"] >= 1
