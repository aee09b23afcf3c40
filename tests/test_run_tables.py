from __future__ import annotations

from dataclasses import replace

import fake_run
import pytest

from bitrank import facts, forgetting_tables, provenance, run_tables
from bitrank.runs import Run, read_run
from bitrank.statistics import Difference
from bitrank.tables import MISSING, UNKNOWN, Table, to_csv


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(*fake_run.write_run(tmp_path_factory.mktemp("run")))


def column(table: Table, key: str) -> list[str]:
    place = [c.key for c in table.columns].index(key)
    return [row[place].text for row in table.rows]


def all_facts(run: Run) -> list[facts.Fact]:
    known = [facts.ASKED, facts.ADAPTER, facts.PHASE_MEMORY, facts.PROCESS_MEMORY, facts.SPEED,
             facts.TRAINING, facts.QUANTIZATION, facts.MERGE, facts.UPDATE, facts.AUDIT,
             facts.inference_facts(run)]  # fmt: skip
    return [fact for part in known for fact in part]


def test_the_scores_stand_beside_the_controls(run: Run) -> None:
    table = run_tables.scores_table(run)
    assert column(table, "subject") == [*run_tables.LABELS.values(), "majority share"]
    adapter = run.score("adapter", "task", "acc")
    assert column(table, "acc")[2].startswith(f"{adapter:.3f} ± 0.0")
    assert column(table, "acc")[4:] == ["0.440 ± 0.035", "0.057"]
    assert column(table, "nll")[4:] == ["–", "–"]
    assert column(table, "choice_nll")[4] == "1.591 ± unknown"
    assert set(column(table, "num_items")) == {str(fake_run.NUM_ITEMS)}
    assert any("0.056" in note and "2.890" in note for note in table.notes), "18 choices"


def test_changes_are_paired_and_judged(run: Run) -> None:
    table = run_tables.differences_table(run)
    told = dict(zip(zip(column(table, "change"), column(table, "metric"), strict=True),
                    column(table, "verdict"), strict=True))  # fmt: skip
    assert told["effect of training", "NLL (nats)"] == "better"
    assert told["effect of training", "accuracy"] == "better"
    assert told["effect of quantization", "NLL (nats)"] == "worse"
    assert told["effect of quantization", "accuracy"] == "not separable"
    assert told["effect of merging", "NLL (nats)"] == "the same"
    assert told["lead over the bag of words", "choice NLL (nats)"] == "better"
    assert ("lead over the bag of words", "NLL (nats)") not in told
    assert set(column(table, "num_pairs")) == {str(fake_run.NUM_ITEMS)}


def test_the_paired_change_is_the_difference_of_the_two_scores(run: Run) -> None:
    for metric in ("nll", "acc"):
        found = run_tables.compare(run, "task", metric, "quantized", "adapter")
        scores = [run.score(s, "task", metric) for s in ("quantized", "adapter")]
        errors = [run.score(s, "task", f"{metric}_stderr") for s in ("quantized", "adapter")]
        assert found is not None
        assert found.stderr is not None
        assert found.mean == pytest.approx(scores[1] - scores[0])
        assert found.stderr < (errors[0] ** 2 + errors[1] ** 2) ** 0.5, "pairing removes spread"


def test_without_item_logs_the_comparison_is_unpaired_and_says_so(run: Run) -> None:
    bare = Run(records=run.records, items={})
    found = run_tables.compare(bare, "task", "nll", "quantized", "adapter")
    assert found is not None
    assert found.num_pairs is None
    assert set(column(run_tables.differences_table(bare), "num_pairs")) == {"unpaired"}


@pytest.mark.parametrize(
    ("mean", "metric", "told"),
    [
        (-1.0, "nll", "better"),
        (1.0, "nll", "worse"),
        (-1.0, "acc", "worse"),
        (1.0, "acc", "better"),
    ],
)
def test_better_is_less_nll_and_more_accuracy(mean: float, metric: str, told: str) -> None:
    change = Difference(mean=mean, stderr=0.1, num_pairs=9, outcome="separable")
    assert run_tables.verdict(change, metric) == told


def test_forgetting_is_judged_by_items_and_perplexity_is_only_shown(run: Run) -> None:
    table = forgetting_tables.forgetting_table(run)
    told = dict(zip(zip(column(table, "benchmark"), column(table, "metric"), strict=True),
                    column(table, "verdict"), strict=True))  # fmt: skip
    assert told == {
        ("piqa", "NLL per token (nats)"): "not separable",
        ("piqa", "accuracy"): "not separable",
        ("wiki", "NLL per token (nats)"): "worse",
        ("wiki", "word_perplexity"): "–",
    }


def test_a_score_that_a_record_lacks_is_unknown_and_so_is_its_change(run: Run) -> None:
    adapter = run.records["evaluate-adapter"]
    bare = replace(adapter, result={"tasks": {"task": {"acc": None}}})
    partial = Run(records={**run.records, "evaluate-adapter": bare}, items={})
    assert column(run_tables.scores_table(partial), "acc")[2] == UNKNOWN
    assert column(run_tables.differences_table(partial), "verdict")[:2] == [UNKNOWN, UNKNOWN]


def test_a_benchmark_that_was_not_asked_for_is_not_unknown(run: Run) -> None:
    merged = run.records["evaluate-merged"]
    alone = replace(merged, result={"tasks": {"task": merged.result["tasks"]["task"]}})
    found = Run(records={**run.records, "evaluate-merged": alone}, items=run.items)
    assert set(column(forgetting_tables.benchmarks_table(found), "merged")) == {"–"}
    assert "–" not in column(forgetting_tables.benchmarks_table(run), "adapter")


def test_full_fine_tuning_is_not_told_in_the_words_of_lora(run: Run) -> None:
    changes = {"train": {"adapter": {"method": "full", "dtypes": ["float32"]}},
               "quantize": {"precision": {"name": "fp32", **fake_run.PLAIN}}}  # fmt: skip
    full = {stage: replace(run.records[stage], treatment={**run.records[stage].treatment, **new})
            for stage, new in changes.items()}  # fmt: skip
    found = Run(records={**run.records, **full}, items=run.items)
    told = facts.facts_table(found, "adapter", "What was trained", facts.ADAPTER)
    assert column(told, "path")[0] == "method"
    assert UNKNOWN not in column(told, "value")
    assert column(run_tables.scores_table(found), "subject")[1:3] == [
        "unquantized base", "fully tuned model",
    ]  # fmt: skip
    assert "adapter" not in forgetting_tables.forgetting_table(found).title


def test_the_memory_table_keeps_bytes_and_shares_of_the_peak(run: Run) -> None:
    rows = to_csv(run_tables.memory_table(run)).splitlines()
    assert rows[1] == f'"weights",168500000,{168_500_000 / 700_000_000}'
    assert rows[-2] == '"peak of the step",700000000,1.0'
    assert rows[-1] == f'"predicted",690000000,{690_000_000 / 700_000_000}'


def test_a_missing_record_is_told_and_not_counted_as_zero(run: Run) -> None:
    absent = {k: v for k, v in run.records.items() if k not in ("measure", "evaluate-merged")}
    partial = Run(records=absent, items={})
    assert set(column(run_tables.memory_table(partial), "bytes")) == {MISSING}
    assert column(run_tables.scores_table(partial), "acc")[3] == MISSING
    assert column(run_tables.differences_table(partial), "verdict")[4:6] == [MISSING, MISSING]
    assert "0" not in {cell.text for row in run_tables.memory_table(partial).rows for cell in row}


def test_every_fact_is_found_where_it_is_looked_up(run: Run) -> None:
    unknown = {fact.path for fact in all_facts(run) if run.find(*fact.path.split(".")) is None}
    assert unknown == {"measure.observation.process_memory.train_peak_above_import_bytes"}


def test_each_number_of_inference_is_told_or_why_there_is_none(run: Run) -> None:
    def told(measured: Run) -> dict[str, str]:
        table = facts.facts_table(measured, "speed", "Speed", facts.inference_facts(measured))
        return {row[0].text: row[1].text for row in table.rows}

    found = told(run)
    assert found["decode, 1 at once"] == "10.25 tokens/s"
    assert found["decode, 8 at once"] == "82 tokens/s"
    assert found["prefill, 8 at once"] == "324 tokens/s"
    measure = run.records["measure"]
    none = {"prefill": None, "decode": None, "why_not": "no kernel"}
    observed = {**measure.observation, "inference": none}
    without = type(measure)(stage="measure", treatment={}, result={}, observation=observed)
    records = {**run.records, "measure": without}
    assert list(told(Run(records=records, items={})).values()) == ["no kernel"]


def test_the_treatment_comes_from_the_live_models(run: Run) -> None:
    table = provenance.treatment_table(run)
    told = dict(zip(column(table, "stage"), column(table, "quantized"), strict=True))
    assert told["quantize"] == told["train"] == told["evaluate-adapter"] == "210 of 210"
    assert told["evaluate-original"] == told["evaluate-merged"] == "0 of 210"
    assert column(table, "types")[1] == "nf4"


def test_every_hand_over_agrees_and_a_changed_hash_is_seen(run: Run) -> None:
    assert set(column(provenance.identities_table(run), "agrees")) == {"yes"}
    merge = run.records["merge"]
    other = {**merge.treatment, "adapter_hash": "0" * 64}
    changed = type(merge)(stage="merge", treatment=other, result=merge.result, observation={})
    broken = Run(records={**run.records, "merge": changed}, items={})
    table = provenance.identities_table(broken)
    wrong = {row[0].text: row[-1].text for row in table.rows if row[-1].text != "yes"}
    assert wrong == {"adapter": "not in merge"}


def test_the_identities_are_whole_in_the_csv(run: Run) -> None:
    written = to_csv(provenance.identities_table(run))
    assert all(sha256 in written for sha256 in fake_run.HASH.values())


def test_the_environment_is_told_once_where_all_stages_agree(run: Run) -> None:
    table = provenance.environment_table(run)
    told = {row[0].text: row[1].text for row in table.rows}
    assert told["packages.torch"] == "2.13.0"
    assert told["packages.bitsandbytes"] == UNKNOWN
    assert told["hardware.memory_bytes"] == "16.00 GiB"
    train = run.records["train"]
    newer = {"environment": {"packages": {"torch": "2.14.0"}}}
    changed = type(train)(stage="train", treatment={}, result={}, observation=newer)
    mixed = provenance.environment_table(Run(records={**run.records, "train": changed}, items={}))
    torch = next(row[1].text for row in mixed.rows if row[0].text == "packages.torch")
    assert "2.14.0 (train)" in torch


def test_time_commit_and_uncommitted_changes_are_told_for_each_stage(run: Run) -> None:
    table = provenance.stages_table(run)
    dirty = dict(zip(column(table, "stage"), column(table, "git_dirty"), strict=True))
    assert dirty["measure"] == "yes"
    assert dirty["train"] == "no"
    assert set(column(table, "git_commit")) == {"63dc59400000"}
    assert column(table, "wall_seconds")[0] == "17.2 s"
