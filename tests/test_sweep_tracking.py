"""Publishing a sweep: one parent, each ended point once, whatever happened and whoever else does.

The folders are invented ones in the driver's layout (see fake_sweep).
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_sweep
import pytest
from fake_sweep import NAME, REASON, name_point, set_point, write_sweep

from bitrank import board, paths, projection, store, sweep_projection, tracking, writer
from bitrank.errors import UserError
from bitrank.store import DATABASE, KEY, PARENT, POINT, SWEEP, own_store
from bitrank.sweep_projection import find_params, read_sweep
from bitrank.writer import TrackingError

EXPERIMENT = "fakes"
FOLDER = paths.SWEEPS / NAME
LAST = name_point("nf4", 8, 1)
PUBLISHERS = """
import sys
from pathlib import Path
from bitrank import tracking
folder, key = Path(sys.argv[1]), sys.argv[2]
if key:
    tracking.publish_point(folder, key, "fakes")
tracking.publish_sweep(folder, "fakes")
"""


@pytest.fixture
def root(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a project's with an empty store."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / paths.MLFLOW).mkdir(parents=True)
    shutil.copy(empty_database, tmp_path / paths.MLFLOW / DATABASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish() -> tracking.PublishedSweep:
    return tracking.publish_sweep(FOLDER, EXPERIMENT)


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=own_store().uri)


def runs(view: int = 1) -> list[Any]:
    there = client().get_experiment_by_name(EXPERIMENT)
    return [] if there is None else list(client().search_runs([there.experiment_id], "", view))


def find_parent() -> Any:
    (parent,) = (run for run in runs() if POINT not in run.data.tags)
    return parent


def find_points() -> dict[str, Any]:
    points = [run for run in runs() if POINT in run.data.tags]
    by_key = {run.data.tags[POINT]: run for run in points}
    assert len(by_key) == len(points)
    return by_key


def read_table() -> list[dict[str, str]]:
    folder = Path(client().download_artifacts(find_parent().info.run_id, ""))
    with (folder / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_sweep_is_a_parent_with_every_ended_point_below_it(root: Path) -> None:
    failed, left = name_point("fp32", 8, 0), name_point("nf4", 2, 1)
    write_sweep(root, statuses={failed: "out of memory", left: "interrupted"})
    done = publish()
    assert (done.name, done.outcome, done.num_points, done.num_published) == (
        NAME, "published", 7, 7)  # fmt: skip
    parent, points = find_parent(), find_points()
    assert {run.data.tags[PARENT] for run in points.values()} == {parent.info.run_id}
    assert {run.data.tags[SWEEP] for run in runs()} == {NAME}
    assert left not in points
    states = {key: run.info.status for key, run in points.items()}
    assert states.pop(failed) == "FAILED"
    assert set(states.values()) == {"FINISHED"}
    assert parent.info.status == "RUNNING"  # one point is left
    counts = {"total": 8.0, "done": 6.0, "failed": 1.0, "left": 1.0}
    assert parent.data.metrics == {f"points/{name}": count for name, count in counts.items()}
    assert parent.data.params == {}
    assert parent.data.tags["axis.adapter.rank"] == "2, 8"
    assert parent.data.tags["git.commit"] == "c" * 40
    whole = points[LAST]
    assert (whole.data.params["adapter.rank"], whole.data.params["precision.name"]) == ("8", "nf4")
    assert whole.data.metrics["memory/train_peak_bytes"] == 372_000_000
    assert whole.info.end_time - whole.info.start_time == 108_000
    assert "mlflow.user" not in parent.data.tags


def test_a_failure_shows_its_configuration_the_reason_and_what_it_measured(root: Path) -> None:
    write_sweep(root, statuses={LAST: "failed"})
    shutil.rmtree(FOLDER / name_point("nf4", 8, 0) / "results")
    set_point(FOLDER, name_point("nf4", 8, 0), status="failed", reason="died", lock_sha256=None)
    publish()
    failed, without = find_points()[LAST], find_points()[name_point("nf4", 8, 0)]
    assert failed.data.params["seed"] == "1"
    assert failed.data.tags["sweep.reason"] == REASON
    assert failed.data.metrics["acc/majority"] == 0.09
    assert "acc/adapter" not in failed.data.metrics
    assert (without.data.params["seed"], without.data.tags["sweep.reason"]) == ("0", "died")
    assert find_parent().info.status == "FAILED"


def test_the_table_has_a_line_for_each_point_and_nothing_for_the_unknown(root: Path) -> None:
    write_sweep(root, statuses={LAST: "failed"})
    publish()
    table = {row["key"]: row for row in read_table()}
    assert len(table) == 8
    first, last = table[name_point("fp32", 2, 0)], table[LAST]
    assert (first["adapter.rank"], first["precision"], first["seed"]) == ("2", "fp32", "0")
    assert float(first["memory/train_peak_bytes"]) == 721_000_000
    assert (last["status"], last["reason"]) == ("failed", REASON)
    assert (last["seconds"], last["acc/adapter"]) == ("", "")


def test_the_report_of_a_sweep_stands_in_its_run_as_it_was_last_written(root: Path) -> None:
    write_sweep(root, ranks=(2,))
    publish()
    report = FOLDER / sweep_projection.REPORT
    for headline in ("Take nf4-r2", "Take fp32-r2"):
        (report / "tables").mkdir(parents=True, exist_ok=True)
        (report / "report.html").write_text(f"<h1>{headline}</h1>\n")
        (report / "tables" / "scores.csv").write_text(f"{headline}\n")
        assert publish().outcome != "unchanged"
        there = Path(client().download_artifacts(find_parent().info.run_id, ""))
        for name in ("report.html", "tables/scores.csv"):
            assert (there / "report" / name).read_bytes() == (report / name).read_bytes()


def test_publishing_again_asks_once_and_does_not_start_mlflow(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(root)
    publish()

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("MLflow was started, or a file was parsed, for nothing")

    asked, query = [], store._query
    monkeypatch.setattr(writer, "_open_client", refuse)
    monkeypatch.setattr(projection, "parse_yaml", refuse)
    monkeypatch.setattr(store, "_query", lambda *given: asked.append(1) or query(*given))  # type: ignore[func-returns-value]
    assert (publish().outcome, publish().num_points) == ("unchanged", 8)
    assert len(asked) == 2
    assert tracking.publish_point(FOLDER, LAST, EXPERIMENT) == "unchanged"


def test_mlflow_itself_also_finds_that_nothing_is_to_do(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(root, seeds=(0,))
    publish()
    before = sorted((run.info.run_id, run.info.end_time) for run in runs(view=3))
    monkeypatch.setattr(tracking, "find_held", lambda *_: [])
    assert publish().outcome == "unchanged"
    assert tracking.publish_point(FOLDER, name_point("nf4", 8, 0), EXPERIMENT) == "unchanged"
    assert sorted((run.info.run_id, run.info.end_time) for run in runs(view=3)) == before


@pytest.mark.parametrize("step", ["create_run", "log_batch", "log_artifacts", "set_terminated"])
@pytest.mark.parametrize("good_calls", [0, 2])
def test_a_publication_cut_short_is_completed(
    root: Path, monkeypatch: pytest.MonkeyPatch, step: str, good_calls: int
) -> None:
    from mlflow import MlflowClient

    write_sweep(root, seeds=(0,))
    calls, whole = [], getattr(MlflowClient, step)

    def break_off(*given: object, **named: object) -> Any:
        calls.append(1)
        if len(calls) > good_calls:
            raise OSError("no space left")
        return whole(*given, **named)

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, step, break_off)
        with pytest.raises(TrackingError, match="no space left"):
            publish()
    assert publish().outcome == "published"
    assert {run.info.status for run in runs()} == {"FINISHED"}
    assert len(find_points()) == 4
    assert all("acc/adapter" in run.data.metrics for run in find_points().values())
    assert find_parent().data.metrics["points/done"] == 4
    assert publish().outcome == "unchanged"


def test_a_point_that_succeeds_at_last_replaces_its_failure(root: Path) -> None:
    write_sweep(root, seeds=(1,), statuses={LAST: "failed"})
    publish()
    parent, others = find_parent(), find_points()
    write_sweep(root, seeds=(1,))
    assert publish().num_published == 1
    points = find_points()
    assert points[LAST].info.status == "FINISHED"
    assert points[LAST].info.run_id != others.pop(LAST).info.run_id
    assert {points[key].info.run_id for key in others} == {r.info.run_id for r in others.values()}
    now = find_parent()
    assert (now.info.run_id, now.info.status) == (parent.info.run_id, "FINISHED")
    assert (now.data.metrics["points/done"], now.data.metrics["points/failed"]) == (4, 0)


def test_a_sweep_that_grows_keeps_its_parent(root: Path) -> None:
    write_sweep(root, ranks=(2,), seeds=(0,))
    publish()
    parent = find_parent().info.run_id
    write_sweep(root, ranks=(2, 8), seeds=(0,))
    assert publish().num_published == 2
    assert find_parent().info.run_id == parent
    assert find_parent().data.tags["axis.adapter.rank"] == "2, 8"


def test_a_point_that_runs_again_has_no_run(root: Path) -> None:
    write_sweep(root, seeds=(1,))
    publish()
    set_point(FOLDER, LAST, status="running", lock_sha256=None)
    publish()
    assert LAST not in find_points()
    assert (find_parent().info.status, len(find_points())) == ("RUNNING", 3)
    assert publish().outcome == "unchanged"


def test_two_parents_become_the_older_one_with_all_points(root: Path) -> None:
    """On a server two processes may both have found none."""
    write_sweep(root, seeds=(0,))
    publish()
    parent = find_parent()
    tags = {KEY: parent.data.tags[KEY], SWEEP: NAME}
    early = client().create_run(parent.info.experiment_id, start_time=1, tags=tags).info.run_id
    assert publish().outcome == "published"
    assert find_parent().info.run_id == early
    assert {run.data.tags[PARENT] for run in find_points().values()} == {early}


def test_a_point_that_was_published_twice_stands_once(root: Path) -> None:
    write_sweep(root, seeds=(1,))
    publish()
    point = find_points()[LAST]
    client().create_run(point.info.experiment_id, tags=point.data.tags)
    publish()
    assert find_points()[LAST].info.run_id == point.info.run_id


@pytest.mark.parametrize("conflict", ["deleted", "(UniqueViolation) duplicate key value"])
def test_what_others_do_to_a_run_meanwhile_is_made_good(
    root: Path, monkeypatch: pytest.MonkeyPatch, conflict: str
) -> None:
    from mlflow import MlflowClient

    write_sweep(root, seeds=(1,))
    hit, log_artifacts = [], MlflowClient.log_artifacts

    def interfere(self: Any, run_id: str, folder: str) -> None:
        if not hit:
            hit.append(run_id)
            if conflict == "deleted":
                self.delete_run(run_id)
            raise OSError(conflict)
        log_artifacts(self, run_id, folder)

    monkeypatch.setattr(MlflowClient, "log_artifacts", interfere)
    publish()
    assert hit
    assert len(find_points()) == 4
    assert publish().outcome == "unchanged"


def test_points_are_published_one_by_one_before_the_sweep(root: Path) -> None:
    write_sweep(root, seeds=(1,), statuses={LAST: "running"})
    for key in (name_point("fp32", 2, 1), name_point("nf4", 2, 1)):
        assert tracking.publish_point(FOLDER, key, EXPERIMENT) == "published"
    parent = find_parent()
    assert {run.data.tags[PARENT] for run in find_points().values()} == {parent.info.run_id}
    assert (parent.info.status, len(find_points())) == ("RUNNING", 2)
    publish()
    assert (find_parent().info.run_id, len(find_points())) == (parent.info.run_id, 3)
    for key, reason in ((LAST, "is running"), ("nf4-r9-s0-abc123", "no point nf4-r9-s0-abc123")):
        with pytest.raises(UserError, match=reason):
            tracking.publish_point(FOLDER, key, EXPERIMENT)


def test_one_damaged_point_does_not_keep_the_others(root: Path) -> None:
    write_sweep(root, seeds=(1,))
    damaged = paths.record("train", FOLDER / LAST / "results")
    damaged.write_text("{")
    with pytest.raises(UserError, match=rf"{LAST}/results/train\.json is not a bitrank record"):
        publish()
    assert len(find_points()) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no such sweep"),
        ("{", "not a sweep's manifest"),
        ("[]", "not a sweep's manifest"),
        ('{"schema_version": 9, "sweep": "s", "axes": {}, "points": []}', "newer"),
        ('{"schema_version": 1, "sweep": "it\'s", "axes": {}, "points": []}', "damaged at"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_named(root: Path, text: str | None, reason: str) -> None:
    if text is not None:
        FOLDER.mkdir(parents=True)
        (FOLDER / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=rf"sweep\.json .*{reason}"):
        publish()


def test_the_board_opens_on_the_points_of_the_last_sweep(root: Path) -> None:
    write_sweep(root, seeds=(0,))
    publish()
    assert board.address(5000, own_store()).endswith(f"viewStateShareKey={NAME}")
    tags = client().get_experiment_by_name(EXPERIMENT).tags
    view = projection.parse_yaml(projection.parse_yaml(tags[board.VIEW_TAG + NAME])["state"])
    there = find_parent().info.experiment_id
    shown = client().search_runs([there], view["searchFilter"], order_by=[view["orderByKey"]])
    assert {run.data.tags[POINT] for run in shown} == {*find_points()}
    legal = {f"params.`{n}`" for n in shown[0].data.params}
    legal |= {f"metrics.`{n}`" for n in shown[0].data.metrics}
    assert set(view["selectedColumns"]) <= legal
    assert find_params(read_sweep(FOLDER)) == ["adapter.rank", "precision.name", "seed"]


def test_several_processes_publish_two_sweeps_into_a_new_store(root: Path) -> None:
    (root / paths.MLFLOW / DATABASE).unlink()
    first = write_sweep(root, ranks=(2,), seeds=(0,))
    second = write_sweep(root, "other-1a2b3c", ranks=(8,), seeds=(0,))
    jobs = [(first, name_point("nf4", 2, 0)), (first, ""), (second, "")]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHERS, folder.relative_to(root), key],
            env=fake_sweep.environment(), stderr=subprocess.PIPE, text=True,
        )
        for folder, key in jobs
    ]  # fmt: skip
    errors = [job.communicate(timeout=120)[1] for job in started]
    assert [job.returncode for job in started] == [0] * 3, errors
    found = sorted((r.data.tags[SWEEP], r.data.tags.get(POINT, ""), r.info.status) for r in runs(3))
    assert found == sorted(
        (sweep, key, "FINISHED")
        for sweep, rank in ((NAME, 2), ("other-1a2b3c", 8))
        for key in ("", name_point("fp32", rank, 0), name_point("nf4", rank, 0))
    )
    parents = {r.data.tags[SWEEP]: r.info.run_id for r in runs() if POINT not in r.data.tags}
    points = [r for r in runs() if POINT in r.data.tags]
    assert all(r.data.tags[PARENT] == parents[r.data.tags[SWEEP]] for r in points)
    assert all(r.data.metrics["acc/adapter"] > 0 for r in points)
