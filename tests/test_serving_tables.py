from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import fake_run
import pytest

from bitrank import findings, forgetting_tables, report, serving_tables
from bitrank.runs import Run, read_run
from bitrank.tables import Table, to_csv


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(*fake_run.write_run(tmp_path_factory.mktemp("run")))


def changed(run: Run, part: str, values: Mapping[str, Any]) -> Run:
    record = run.records["fidelity"]
    new = replace(record, **{part: {**getattr(record, part), **values}})
    return Run(records={**run.records, "fidelity": new}, items=run.items)


def column(table: Table, key: str) -> list[str]:
    place = [c.key for c in table.columns].index(key)
    return [row[place].text for row in table.rows]


def test_every_way_is_judged_against_what_was_trained(run: Run) -> None:
    table = serving_tables.fidelity_table(run)
    told = dict(zip(column(table, "way"), column(table, "verdict"), strict=True))
    assert told == {
        "W + update": "worse", "dq(W4) + update": "the same", "Q(dq(W4) + update)": "worse",
        "Q(W + update)": told["Q(W + update)"],
    }  # fmt: skip
    kept = dict(zip(column(table, "way"), column(table, "nll_retained"), strict=True))
    assert kept["dq(W4) + update"].startswith("100.0")
    assert kept["Q(dq(W4) + update)"].startswith("0.0")
    assert column(table, "codes_changed_share")[:2] == ["–", "–"]
    assert any("adapter beside W: it was too dear" in note for note in table.notes)


def test_a_csv_keeps_shares_as_fractions_with_their_errors(run: Run) -> None:
    lines = to_csv(serving_tables.fidelity_table(run)).splitlines()
    assert "nll_retained_stderr" in lines[0]
    way = run.find("fidelity", "result", "ways", "merged_original", "retained", "nll")
    (line,) = [line for line in lines if line.startswith('"W + update"')]
    assert f"{way['share']},{way['stderr']}" in line


def test_the_matrix_holds_base_against_way(run: Run) -> None:
    table = serving_tables.matrix_table(run)
    accuracy = [row for row in table.rows if row[1].text == "accuracy"]
    assert [row[2].text for row in accuracy] == ["original base", "quantized base"]
    scores = run.find("fidelity", "result", "scores")
    for row, names in zip(accuracy, serving_tables.MATRIX.values(), strict=True):
        for cell, name in zip(row[3:], names, strict=True):
            expected = scores[name]["task"]["acc"] if name in scores else None
            assert cell.value == expected
    assert accuracy[0][4].text == "–", "the adapter beside the original has no scores"
    part = changed(run, "treatment", {"ways": ["merged_original"]})
    assert any("evaluate=full" in note for note in serving_tables.matrix_table(part).notes)
    assert not any("evaluate=full" in note for note in table.notes), "all were asked for"


def test_an_unquantized_base_is_one_row(run: Run) -> None:
    found = changed(run, "treatment", {"precision": fake_run.PLAIN})
    table = serving_tables.matrix_table(found)
    accuracy = [row for row in table.rows if row[1].text == "accuracy"]
    scores = run.find("fidelity", "result", "scores")
    (cells,) = [row[3:] for row in accuracy]
    names = ("untrained_quantized", "adapter", "merged_original", "merged_then_quantized")
    assert [cell.value for cell in cells] == [scores[name]["task"]["acc"] for name in names]


def test_a_way_that_loses_more_than_noise_is_warned_of(run: Run) -> None:
    told = [line for line in findings.write_warnings(run) if "loses more than noise" in line]
    assert [line.split(" loses")[0] for line in told][:2] == ["W + update", "Q(dq(W4) + update)"]
    assert not any(line.startswith(("dq(W4) + update", "The merged model")) for line in told)
    own = {**run.items, ("merged", "task"): run.items["quantized", "task"]}
    lossy = findings.write_warnings(Run(records=run.records, items=own))
    assert any(line.startswith("The merged model loses more than noise: NLL +") for line in lossy)


def test_a_gain_within_noise_has_no_share(run: Run) -> None:
    ways = run.find("fidelity", "result", "ways")
    reason = {"share": None, "stderr": None, "reason": "the gain itself is within noise"}
    without = {"merged_original": {**ways["merged_original"],
                                   "retained": {"nll": reason, "acc": reason}}}  # fmt: skip
    found = changed(run, "result", {"ways": without})
    cells = column(serving_tables.fidelity_table(found), "nll_retained")
    assert cells == ["undefined: the gain itself is within noise"]
    assert not list(serving_tables.write_kept(found))


def test_what_is_kept_is_told_in_one_sentence(run: Run) -> None:
    (told,) = serving_tables.write_kept(run)
    assert "dq(W4) + update 100.0" in told
    assert told in findings.write_points(run)


def test_a_run_without_the_stage_says_that_it_is_missing(run: Run) -> None:
    absent = {stage: record for stage, record in run.records.items() if stage != "fidelity"}
    bare = Run(records=absent, items=run.items)
    pages = report.fill_templates(bare, report.build_sections(bare))
    assert all("Missing: no record of fidelity" in page for page in pages.values())


def test_updates_are_listed_layer_by_layer(run: Run) -> None:
    rows = serving_tables.layer_rows(run)
    assert len(rows) == 30
    assert rows[0]["codes_changed_share/merged_requantized"] == 2e-6


def test_forgetting_has_an_interval_and_words(run: Run) -> None:
    table = forgetting_tables.forgetting_table(run)
    rows = {(row[0].text, row[1].value): row for row in table.rows}
    keys = [c.key for c in table.columns]
    wiki = rows["wiki", "nll_per_token"]
    low, high = wiki[keys.index("interval")].text.split(" to ")
    assert low.startswith("+")
    assert float(low) < wiki[keys.index("difference")].value < float(high)
    told = list(forgetting_tables.write_forgotten(run))
    assert told[0].startswith("Nothing forgotten on piqa, which was not trained, that noise")
    assert told[1].startswith("Forgotten on wiki, which was not trained: NLL per token +")
    assert "95 % interval +" in told[1]


def test_getting_better_at_what_was_not_trained_is_not_forgetting(run: Run) -> None:
    swapped = {("quantized", "wiki"): run.items["adapter", "wiki"],
               ("adapter", "wiki"): run.items["quantized", "wiki"]}  # fmt: skip
    found = Run(records=run.records, items={**run.items, **swapped})
    assert any(t.startswith("Better on wiki") for t in forgetting_tables.write_forgotten(found))
