"""Every break of the identity chain is one clear error, at the hand-over where it is met."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_run
import pytest
import torch
from conftest import CPU, stamp_base
from evaluated import RUNTIME, configured, write_prepared
from safetensors.torch import load_file, save_file

from bitrank import (
    adapters,
    chain,
    config,
    evaluation,
    identity,
    measurement,
    merging,
    models,
    paths,
    quantization,
    records,
    report,
    training,
)
from bitrank.errors import UserError

Compose = Callable[..., config.RunConfig]


def change_a_weight(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    held = load_file(file)
    name = min(name for name, tensor in held.items() if tensor.is_floating_point())
    held[name].view(-1)[0] += 1
    save_file(held, file, metadata={"format": "pt"})


def copy_in_place(folder: Path) -> Path:
    """What a link names, as a folder of the test's own."""
    source = folder.resolve()
    folder.unlink()
    return shutil.copytree(source, folder)


@pytest.fixture
def whole(project: Path, compose: Compose) -> Iterator[Callable[[str], None]]:
    """Take over what lies in the project, as a stage does."""
    run = compose("precision=nf4")

    def taken_over(stage: str) -> None:
        if stage == "train":
            training.train_adapter(
                run.train, run.adapter, run.precision, run.seeds, run.runtime, 128,
                target=project / "new", checkpoints=project / "kept",
            )  # fmt: skip
        elif stage == "measure":
            measurement.measure_training_and_inference(
                run.measure, run.train, run.adapter, run.precision, run.runtime, 128
            )
        elif stage in ("merge", "merge into the original"):
            base = "original" if stage == "merge into the original" else "dequantized"
            merge = dataclasses.replace(run.merge, base=base)
            merging.merge_adapter(merge, run.runtime, target=project / "new")
        else:
            evaluation.evaluate_model(stage, configured(), RUNTIME)

    yield taken_over
    assert not (project / "new").exists(), "nothing is written of what does not belong together"


def test_a_changed_base_is_refused_wherever_it_is_used(whole: Callable[[str], None]) -> None:
    change_a_weight(copy_in_place(paths.QUANTIZED))
    for stage in ("train", "measure", "merge", "quantized", "adapter"):
        with pytest.raises(UserError, match=r"data/base/quantized holds the weights .*`quantize`"):
            whole(stage)


def test_a_base_without_a_stamp_is_refused_with_the_cure(whole: Callable[[str], None]) -> None:
    (copy_in_place(paths.QUANTIZED) / chain.STAMP).unlink()
    with pytest.raises(UserError, match=r"has no bitrank\.json .*`dvc repro quantize` makes one"):
        whole("quantized")
    (paths.QUANTIZED / chain.STAMP).write_text("[1, 2]")
    with pytest.raises(UserError, match=r"is no stamp of this bitrank's: `dvc repro quantize`"):
        whole("quantized")


def test_an_adapter_of_another_base_is_refused(
    whole: Callable[[str], None], quantized: Callable[[str], Path]
) -> None:
    paths.QUANTIZED.unlink()
    paths.QUANTIZED.symlink_to(quantized("fp4"), target_is_directory=True)
    for stage in ("merge", "adapter"):
        with pytest.raises(UserError, match=r"data/adapter was trained on the base \w{12}, this"):
            whole(stage)


def test_a_changed_adapter_is_refused(whole: Callable[[str], None]) -> None:
    change_a_weight(paths.ADAPTER)
    for stage in ("merge", "adapter"):
        with pytest.raises(UserError, match=r"data/adapter holds the weights .*`train` wrote"):
            whole(stage)


def test_other_rows_are_refused(whole: Callable[[str], None]) -> None:
    write_prepared(paths.PREPARED, [" cold", " hot", " warm"], count=8)
    for stage in ("merge", "adapter", "merged"):
        with pytest.raises(UserError, match=r"was trained on other rows \(\w{12}\) than"):
            whole(stage)


def test_another_template_is_refused_as_such(whole: Callable[[str], None]) -> None:
    paths.template().write_text(json.dumps({"template_hash": "f" * 64}))
    for stage in ("merge", "adapter", "merged"):
        with pytest.raises(UserError, match=r"template eeeeeeeeeeee, .*was made with ffffffffffff"):
            whole(stage)


def test_an_update_is_added_to_no_other_original(
    whole: Callable[[str], None], original: Path
) -> None:
    change_a_weight(copy_in_place(paths.ORIGINAL))
    with pytest.raises(UserError, match=r"data/base/original holds the base .*was made of"):
        whole("merge into the original")


def test_a_changed_merged_model_is_refused(whole: Callable[[str], None]) -> None:
    change_a_weight(paths.MERGED)
    with pytest.raises(UserError, match=r"data/merged holds the weights .*`merge` wrote"):
        whole("merged")


@pytest.mark.parametrize(
    ("stage", "key", "told"),
    [
        ("train", "original_hash", "train used another original base (000000000000) than fetch"),
        ("measure", "base_hash", "measure used another quantized base (000000000000) than quant"),
        ("evaluate-merged", "template_hash", "evaluate-merged used another template (00000000000"),
        ("control", "data_hash", "control used another rows"),
        ("merge", "first_weights_hash", "merge used another first weights"),
        ("evaluate-adapter", "adapter_hash", "evaluate-adapter used another adapter"),
        ("evaluate-merged", "merged_hash", "evaluate-merged used another merged model"),
    ],
)
def test_a_report_of_records_that_do_not_belong_together_is_refused(
    stage: str, key: str, told: str, tmp_path: Path
) -> None:
    results, folders = fake_run.write_run(tmp_path)
    record = records.read_record(paths.record(stage, results))
    assert isinstance(record.treatment, dict)
    record.treatment[key] = "0" * 64
    records.write_record(record, paths.record(stage, results))
    with pytest.raises(UserError) as raised:
        report.write_report(results, folders, tmp_path / "report")
    assert told in str(raised.value)
    assert not (tmp_path / "report").exists()


def test_the_stamps_tell_the_whole_chain(
    original: Path, prepared: Path, compose: Compose, tmp_path: Path
) -> None:
    """From the original to the merged model, each hash is that of what lies in the folder."""
    run = compose("precision=nf4")
    base, adapter, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    quantization.quantize_base(run.precision, run.runtime, original, base)
    trained = training.train_adapter(
        run.train, run.adapter, run.precision, run.seeds, run.runtime,
        run.data.max_sequence_tokens, base, prepared, adapter, tmp_path / "kept",
    )  # fmt: skip
    merging.merge_adapter(run.merge, run.runtime, base, original, adapter, prepared, merged)
    stamp = chain.check_merged(merged)
    template = json.loads(paths.template(prepared).read_text())
    expected: dict[str, Any] = {
        "original_hash": identity.hash_weights(original),
        "base_hash": identity.hash_weights(base),
        "method": "lora",
        "adapter_hash": identity.hash_weights(adapter),
        "data_hash": identity.hash_files(prepared),
        "template_hash": template["template_hash"],
        "first_weights_hash": trained.result["first_weights_hash"],
        "stopped_at_step": trained.treatment["num_steps"],
    }
    assert dataclasses.asdict(stamp.adapter) == expected
    assert stamp.merged_hash == identity.hash_weights(merged)
    fresh = adapters.attach_adapter(models.load_model(base, CPU), run.adapter, run.seeds.init)
    assert adapters.hash_first_weights(fresh) == expected["first_weights_hash"]


def test_the_packed_codes_are_in_the_hash_of_the_base(
    original: Path, compose: Compose, tmp_path: Path
) -> None:
    """One code more or less is another base, though the file's names and sizes are the same."""
    run = compose("precision=nf4")
    base = tmp_path / "base"
    quantization.quantize_base(run.precision, run.runtime, original, base)
    (file,) = base.glob("*.safetensors")
    held = load_file(file)
    name = min(name for name, tensor in held.items() if tensor.dtype == torch.uint8)
    held[name].view(-1)[0] ^= 1
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="holds the weights"):
        chain.check_base(base)
    stamp_base(base, original, run.precision)
    assert chain.check_base(base).base_hash == identity.hash_weights(base)
