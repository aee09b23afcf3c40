"""What a run shows in MLflow: all that is known under legal names, and nothing private."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_project import NUM_STEPS, ROOT, change_record, make_lock, write_project
from omegaconf import OmegaConf

from bitrank import board, paths
from bitrank.errors import UserError
from bitrank.privacy import hide_home
from bitrank.projection import (
    MAX_VALUE,
    METRICS,
    Projection,
    flatten,
    parse_yaml,
    project_run,
)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    return tmp_path


def read() -> Projection:
    return project_run(paths.RESULTS, Path("params.yaml"), Path("dvc.lock"), paths.REPORT)


def test_every_metric_is_found_where_the_stages_write_it() -> None:
    shown = read()
    assert set(METRICS) <= set(shown.metrics)
    assert shown.metrics["acc/adapter"] == 0.66
    assert shown.metrics["wiki/bits_per_byte/merged"] == 1.1
    assert shown.metrics["seconds/train"] == 2.5
    assert len(shown.curves["train/loss"]) == NUM_STEPS
    assert shown.curves["validation/loss"] == [(0, 3.2), (NUM_STEPS, 0.9)]


def test_names_are_legal_and_values_parse_as_numbers() -> None:
    shown = read()
    for name in [*shown.params, *shown.metrics, *shown.curves, *shown.tags]:
        assert re.fullmatch(r"[\w./ -]{1,250}", name), name
    assert float(shown.params["adapter.rank"]) == 8
    assert float(shown.params["train.learning_rate"]) == 1e-5
    assert shown.params["precision.name"] == "nf4"
    assert shown.name == "nf4-r8-s0"


def test_the_board_shows_what_a_run_has() -> None:
    shown = read()
    view = parse_yaml(parse_yaml(board.describe_view())["state"])
    legal = {f"params.`{name}`" for name in shown.params}
    legal |= {f"metrics.`{name}`" for name in shown.metrics}
    assert set(view["selectedColumns"]) <= legal
    charted = [view["compareRunCharts"][0]["selectedMetrics"], board.COSTS, ["acc/adapter"]]
    assert {name for names in charted for name in names} <= set(shown.metrics)


def test_the_unknown_is_left_out_and_the_missing_is_named() -> None:
    change_record("measure", "observation", {"cuda": None, "mfu": None})
    paths.record("merge").unlink()
    shown = read()
    assert "memory/cuda_peak_allocated_bytes" not in shown.metrics
    assert "speed/mfu" not in shown.metrics
    assert "wiki/word_perplexity_stderr/adapter" not in shown.metrics
    assert shown.tags["missing"] == "merge"
    assert "hash.merged" not in shown.tags
    assert "None" not in shown.tags.values()


def test_a_way_to_serve_that_does_not_exist_has_no_metric() -> None:
    shown = read().metrics
    assert shown["merge/mean_kl/merged_original"] == 0.2
    assert shown["merge/retained/merged_original"] == 0.9
    assert not [name for name in shown if name.endswith("merged_requantized")]


def test_tags_tell_where_a_run_comes_from() -> None:
    tags = read().tags
    assert (tags["precision"], tags["rank"], tags["hash.base"]) == ("nf4", "8", "b" * 64)
    assert (tags["git.commit"], tags["git.dirty"]) == ("c" * 40, "false")
    assert (tags["hardware.cpu"], tags["hardware.gpu"]) == ("Some CPU, 2 cores", "none")
    assert len(tags["dvc.lock.sha256"]) == 64


def test_key_and_content_do_not_depend_on_the_record_stage_but_on_every_other() -> None:
    """While that stage runs, the lock still has its entry of the time before."""
    found = []
    for lock in (make_lock(8), make_lock(8, "one"), make_lock(8, "two")):
        Path("dvc.lock").write_text(lock)
        found.append((read().key, read().content))
    assert len(set(found)) == 1
    Path("dvc.lock").write_text(make_lock(8).replace('"t"', '"another command"'))
    assert read().key != found[0][0]
    assert read().content != found[0][1]


def test_a_run_without_a_lock_has_a_key_and_no_lock_hash() -> None:
    with_lock = read().key
    Path("dvc.lock").unlink()
    shown = read()
    assert shown.key != with_lock
    assert "dvc.lock.sha256" not in shown.tags
    assert "dvc.lock" not in shown.artifacts


def test_equal_files_give_an_equal_content_and_a_changed_one_another() -> None:
    first = read()
    assert read().content == first.content
    (paths.REPORT / "report.md").write_text("# Another report\n")
    assert read().content != first.content
    assert read().key == first.key


def test_parameters_that_the_records_were_not_made_with_are_refused() -> None:
    write_project(Path(), rank=8)
    Path("dvc.lock").write_text(make_lock(16))
    with pytest.raises(UserError, match=r"`adapter\.rank` differs .* train.*dvc repro"):
        read()


def test_a_stage_that_the_pipeline_no_longer_has_is_not_asked() -> None:
    Path("dvc.lock").write_text(make_lock(8, stale=True))
    with pytest.raises(UserError, match="removed"):
        read()
    Path("dvc.yaml").write_text("stages: {train: {cmd: t}}\n")
    assert read().params["adapter.rank"] == "8"


def test_a_damaged_lock_is_named() -> None:
    Path("dvc.lock").write_text("<<<<<<< ours\nstages: [}\n")
    with pytest.raises(UserError, match=r"dvc\.lock cannot be read"):
        read()


def test_no_home_path_gets_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = project / "home" / "jdoe"
    monkeypatch.setenv("HOME", str(home))
    write_project(project, f"data.rows.path={home}/mine/rows.jsonl")
    shown = read()
    assert shown.params["data.rows.path"] == "~/mine/rows.jsonl"
    everything = [*shown.params.values(), *shown.tags.values()]
    everything += [body.decode() for body in shown.artifacts.values()]
    assert not [text for text in everything if "jdoe" in text]
    monkeypatch.setenv("HOME", "/")
    assert hide_home("/a/b") == "/a/b"


def test_long_values_are_cut_and_lists_are_flattened() -> None:
    flat = flatten({"a": [{"b": 1}, {"b": None}], "c": [1, 2], "d": True, "e": "text"})
    assert flat == {"a.0.b": "1", "a.1.b": "null", "c": "[1, 2]", "d": "true", "e": "text"}
    write_project(Path(), f"data.prompt='{'long ' * 200}{{text}}'")
    assert len(read().params["data.prompt"]) == MAX_VALUE


def test_yaml_is_read_as_the_stages_read_it() -> None:
    texts = [(ROOT / name).read_text() for name in ("params.yaml", "dvc.lock", "dvc.yaml")]
    texts.append(
        "a: 1e-05\nb: 2026-04-01\nc: 1_000\nd: yes\ne: 0o7\nf: .5\ng: null\nh: '1'\ni: ${a}"
    )
    for text in texts:
        assert parse_yaml(text) == OmegaConf.to_container(OmegaConf.create(text))
    assert parse_yaml("") == {}
    for text in ("stages: [}", "just words", "3"):
        with pytest.raises(ValueError):
            parse_yaml(text)
