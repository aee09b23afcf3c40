"""A sweep on a tracking server with PostgreSQL, published by several processes at once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_sweep
import pytest
import servers

from bitrank.store import PARENT, POINT

pytestmark = [pytest.mark.system, pytest.mark.postgres]
PUBLISHER = """
import sys
from pathlib import Path
from bitrank import tracking
folder = Path(sys.argv[1])
for key in sys.argv[2:]:
    tracking.publish_point(folder, key, "shared")
tracking.publish_sweep(folder, "shared")
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with servers.postgres() as database, servers.mlflow_server(database, tmp_path) as address:
        yield address


def publish_at_once(folder: Path, server: str, *keys: list[str]) -> None:
    environment = {**fake_sweep.environment(), "MLFLOW_TRACKING_URI": server}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, folder, *own],
            env=environment, cwd=folder, stderr=subprocess.PIPE, text=True,
        )
        for own in keys
    ]  # fmt: skip
    errors = [job.communicate(timeout=300)[1] for job in started]
    assert [job.returncode for job in started] == [0] * len(keys), errors


def find_runs(server: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)
    return list(client.search_runs([client.get_experiment_by_name("shared").experiment_id]))


def test_four_processes_make_one_parent_and_each_point_once(tmp_path: Path, server: str) -> None:
    folder = fake_sweep.write_sweep(tmp_path)
    keys = [point["key"] for point in fake_sweep.read_manifest(folder)["points"]]
    publish_at_once(folder, server, [], keys, keys, keys[::-1])
    found = find_runs(server)
    points = [run for run in found if POINT in run.data.tags]
    (parent,) = (run for run in found if POINT not in run.data.tags)
    assert Counter(run.data.tags[POINT] for run in points) == Counter(keys)
    assert {run.data.tags[PARENT] for run in points} == {parent.info.run_id}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert parent.data.metrics["points/done"] == len(keys)
    counts = {len(run.data.metrics) for run in points}
    assert len(counts) == 1
    assert min(counts) > 50
    before = {run.info.run_id for run in found}
    publish_at_once(folder, server, [], keys[:2])
    assert {run.info.run_id for run in find_runs(server)} == before
