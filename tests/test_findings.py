from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import fake_run
import pytest

from bitrank import findings
from bitrank.records import Item
from bitrank.runs import Run, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(*fake_run.write_run(tmp_path_factory.mktemp("run")))


def changed(run: Run, stage: str, part: str, values: Mapping[str, Any]) -> Run:
    record = run.records[stage]
    new = replace(record, **{part: {**getattr(record, part), **values}})
    return Run(records={**run.records, stage: new}, items=run.items)


def with_adapter(run: Run, answers: list[Item]) -> Run:
    """The run whose adapter gave these answers to the trained task."""
    scored = changed(
        run, "evaluate-adapter", "result", {"tasks": {"task": fake_run.score(answers)}}
    )
    return Run(records=scored.records, items={**run.items, ("adapter", "task"): answers})


def flipped(run: Run, count: int, correct: bool) -> list[Item]:
    """The quantized base's answers, with the first `count` wrong (right) ones turned."""
    items = list(run.items["quantized", "task"])
    places = [k for k, item in enumerate(items) if item.correct is not correct][:count]
    for place in places:
        items[place] = replace(items[place], correct=correct)
    return items


def test_the_headline_names_method_gain_data_and_control(run: Run) -> None:
    before, after = (run.score(s, "task", "acc") for s in ("quantized", "adapter"))
    assert findings.write_headline(run) == (
        f"QLoRA (nf4, rank 8) lifts accuracy from {before:.3f} to {after:.3f} on icd10-chapters; "
        "TF-IDF on the same rows reaches 0.440."
    )


def test_a_gain_within_noise_is_not_called_a_gain(run: Run) -> None:
    told = findings.write_headline(with_adapter(run, flipped(run, 4, correct=True)))
    assert "does not change accuracy by more than noise" in told
    assert "lifts" not in told


def test_a_loss_is_told(run: Run) -> None:
    told = findings.write_headline(with_adapter(run, flipped(run, 40, correct=False)))
    assert "lowers accuracy" in told


def test_an_adapter_that_changes_no_answer_is_told(run: Run) -> None:
    told = findings.write_headline(with_adapter(run, list(run.items["quantized", "task"])))
    assert "changes no answer" in told


@pytest.mark.parametrize(
    ("control", "told"),
    [
        (0.95, "a bag of words beats the adapter"),
        (0.74, "does not beat a bag of words by more than noise"),
    ],
)
def test_a_control_that_is_not_beaten_is_told_in_the_headline(
    run: Run, control: float, told: str
) -> None:
    found = changed(run, "control", "result", {"acc": control, "acc_stderr": 0.03})
    unpaired = Run(records=found.records, items={})
    assert told in findings.write_headline(unpaired)


def test_the_control_is_compared_item_by_item(run: Run) -> None:
    """A lead of seven answers of which none is lost is noise when unpaired, not when paired."""
    answers = list(run.items["control", "task"])
    places = [k for k, item in enumerate(answers) if item.correct is False][:7]
    for place in places:
        answers[place] = replace(answers[place], correct=True)
    found = with_adapter(run, answers)
    bare = Run(records=found.records, items={})
    assert "bag of words" not in findings.write_headline(found)
    assert "by more than noise" in findings.write_headline(bare)


def test_unknown_noise_is_told(run: Run) -> None:
    tasks = {"task": {"acc": 0.7, "acc_stderr": None}}
    found = changed(run, "evaluate-adapter", "result", {"tasks": tasks})
    told = findings.write_headline(Run(records=found.records, items={}))
    assert "with unknown noise" in told
    assert "lifts" not in told


def test_without_a_score_or_a_control_the_headline_says_so(run: Run) -> None:
    def without(stage: str) -> Run:
        return Run(records={k: v for k, v in run.records.items() if k != stage}, items={})

    assert findings.write_headline(without("evaluate-adapter")).startswith(
        "No verdict: the adapter"
    )
    assert "no bag-of-words control" in findings.write_headline(without("control"))


@pytest.mark.parametrize(
    ("types", "named"), [(["fp4"], "QLoRA (fp4, rank 8)"), (["int8"], "LoRA (int8, rank 8)"),
                         ([], "LoRA (fp32, rank 8)")]
)  # fmt: skip
def test_the_method_is_told_from_the_live_model(run: Run, types: list[str], named: str) -> None:
    live = {**(fake_run.LIVE if types else fake_run.PLAIN), "name": "nf4", "quant_types": types}
    found = changed(run, "train", "treatment", {"precision": live})
    assert findings.describe_method(found) == named


def test_an_adapter_below_the_most_frequent_answer_is_told(run: Run) -> None:
    found = changed(run, "prepare", "result", {"majority_share": 0.9})
    assert any("not above it by more than noise" in point for point in findings.write_points(found))
    assert not any("not above" in point for point in findings.write_points(run))


def test_faults_are_warned_of(run: Run) -> None:
    own = [told for told in findings.write_warnings(run) if "loses more than noise" not in told]
    assert own == ["Made with uncommitted changes of the code: measure."]
    broken = changed(run, "prepare", "result", {"audit": {"num_doubled_bos": 3}})
    adrift = {"deterministic": False, "reason": "no deterministic form on cuda: index_put_"}
    broken = changed(broken, "train", "treatment", {"determinism": adrift})
    adapter = {**fake_run.ADAPTER, "trainable_outside_adapter": ["lm_head"]}
    broken = changed(broken, "train", "treatment", {"adapter": adapter})
    told = " ".join(findings.write_warnings(broken))
    assert "Training does not repeat to the same bytes: no deterministic form on cuda" in told
    assert "3 rows have a doubled start token" in told
    assert "Trained outside the adapter: lm_head" in told


def test_hardware_is_the_device_that_was_used(run: Run) -> None:
    assert findings.describe_hardware(run, "measure") == "Example CPU 9000 (2 threads, 2 cores)"
    gpu = {"name": "Example GPU", "memory_bytes": 80 * 2**30, "driver": "1"}
    found = changed(run, "measure", "treatment", {"device": "cuda"})
    environment = {"hardware": {"gpus": [gpu]}}
    found = changed(found, "measure", "observation", {"environment": environment})
    assert findings.describe_hardware(found, "measure") == "Example GPU (80.00 GiB)"
    nothing = Run(records={}, items={})
    assert "unknown" in findings.describe_hardware(nothing, "measure")


def test_full_fine_tuning_has_no_rank(run: Run) -> None:
    live = {**fake_run.PLAIN, "name": "fp32", "quant_types": []}
    changes = {"precision": live, "adapter": {"method": "full"}}
    found = changed(run, "train", "treatment", changes)
    assert findings.describe_method(found) == "Full fine-tuning (fp32)"
    told = [findings.write_headline(with_adapter(found, flipped(run, 60, correct=False))),
            *findings.write_points(found)]  # fmt: skip
    assert "a bag of words beats the tuned model" in told[0]
    assert not [sentence for sentence in told if "adapter" in sentence]
