"""MLflow's page in a real browser: `bitrank ui` opens on a sweep's points side by side."""

from __future__ import annotations

from pathlib import Path

import fake_sweep
import pytest
import servers

from bitrank import board, paths, tracking

pytestmark = [pytest.mark.system, pytest.mark.chromium]
SCREEN = "--window-size=1800,2000"


def test_the_page_shows_all_points_and_the_charts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = fake_sweep.write_sweep(tmp_path, ranks=(2, 8, 32))
    tracking.publish_sweep(paths.SWEEPS / folder.name, "bitrank")
    address, command, environment = board.prepare_server(servers.find_free_port())
    log = tmp_path / "server.log"
    with servers.running(command, log, env=environment, cwd=tmp_path) as server:
        servers.wait_for(address.partition("/#")[0], server, log)
        profile = tmp_path / "profile"
        table = servers.browse(address, profile, SCREEN, seconds=30)
        charts = servers.browse(f"{address}&compareRunsMode=CHART", profile, SCREEN, seconds=30)
    for point in fake_sweep.read_manifest(folder)["points"]:
        assert point["key"] in table
    for column in ("precision.name", "adapter.rank", "nll/adapter", "acc/adapter"):
        assert f">{column}<" in table
    assert "Error loading shared view" not in table
    assert "Parallel Coordinates" in charts
    assert "memory/train_peak_bytes vs. acc/adapter" in charts
