"""The comparison board: which columns and charts MLflow's page shows, and the server to see it.

MLflow's table hides all metrics until a person picks them. A "shared view" is a tag of the
experiment that its page reads when the address names it, so the address that is printed here opens
on rank and precision against memory, speed and accuracy. There is a view of all runs, and one of
the points of each sweep; all stand in the page's menu of views. Should another version of MLflow
not understand a view, its page says so and shows its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

from bitrank import records
from bitrank.errors import UserError
from bitrank.store import POINT, SWEEP, Store, latest_experiment, own_store
from bitrank.sweep_projection import CONTROLS, COSTS, QUALITY, Sweep, find_params

VIEW_TAG = "mlflow.sharedViewState."
"""What the names of the experiment's tags for views begin with; the rest is in the address."""
ALL_RUNS = "bitrank"
HOST = "127.0.0.1"
AXES = ["precision.name", "adapter.rank"]


def describe_view(
    name: str = "Rank and precision: all runs", params: Sequence[str] = AXES, sought: str = ""
) -> str:
    """The value of a view's tag: JSON in the shape in which MLflow saves the state of its page.

    Runs are listed by quality. MLflow folds points away below their sweep only where it lists runs
    by date.

    Args:
        name: in the page's menu of views.
        params: the parameters that are compared.
        sought: MLflow's search for the runs to show; all where it is empty.
    """
    shown = [*params, *({"seed"} - {*params})]
    names = {f"params.`{name}`": name for name in shown}
    names |= {f"metrics.`{name}`": name for name in QUALITY + COSTS + CONTROLS}
    columns = list(names)
    state = {
        "searchFilter": sought,
        "orderByKey": f"metrics.`{QUALITY[0]}`",
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {key: 30 + 8 * len(name) for key, name in names.items()},  # pixels
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunSections": [
            _section("whole", "Rank and precision: what they cost and give", 1),
            _section("cost", "Accuracy against cost", 2),
        ],
        "compareRunCharts": [
            _chart("whole", "PARALLEL", 0, selectedParams=params, selectedMetrics=COSTS + QUALITY),
            *(_scatter(index + 1, cost, "acc/adapter") for index, cost in enumerate(COSTS)),
            _chart("cost", "BAR", 3, metricKey="nll/adapter"),
            _chart("cost", "LINE", 4, metricKey="train/loss", selectedMetricKeys=["train/loss"]),
        ],
    }
    saved = {"name": name, "createdAt": 0, "state": records.canonical_json(state)}
    return records.canonical_json(saved)


def describe_sweep_view(sweep: Sweep) -> str:
    """The view of the points of one sweep, over what is varied in it."""
    params = [param for param in find_params(sweep) if param != "seed"]
    sought = f"tags.`{SWEEP}` = '{sweep.id}' and tags.`{POINT}` != ''"
    return describe_view(f"Sweep {sweep.id}", params or AXES, sought)


def _section(key: str, name: str, columns: int) -> dict[str, object]:
    flags = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": key, "name": name, "columns": columns, "cardHeight": 400, **flags}


def _chart(section: str, kind: str, index: int, **values: object) -> dict[str, object]:
    shown = {"type": kind, "uuid": f"bitrank-{index}", "metricSectionId": section}
    return {**shown, "deleted": False, "isGenerated": False, "runsCountToCompare": 100, **values}


def _scatter(index: int, x: str, y: str) -> dict[str, object]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _chart("cost", "SCATTER", index, **axes)


def address(port: int, store: Store) -> str:
    """The page of the last sweep, or of all runs; MLflow's first page where none was published."""
    there = latest_experiment(store, VIEW_TAG + ALL_RUNS)
    if there is None:
        return f"http://{HOST}:{port}"
    experiment, sweep = there
    view = f"workflowType=machine_learning&viewStateShareKey={sweep or ALL_RUNS}"
    return f"http://{HOST}:{port}/#/experiments/{experiment}/runs?{view}"


def prepare_server(port: int) -> tuple[str, list[str], dict[str, str]]:
    """The board's address, and the command and environment of a server for this machine only.

    Raises:
        UserError: nothing was published here yet, or the port is taken.
    """
    store = own_store()
    if store.database is None or not store.database.is_file():
        raise UserError(f"{store.shown} does not exist yet: `make repro` publishes a run to it")
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            raise UserError(f"port {port} cannot be used: name another with --port") from None
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--backend-store-uri", store.uri, "--default-artifact-root", str(store.artifacts)]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # helpers for its evaluation jobs
        "PYTHONWARNINGS": "ignore",
    }
    # Its news of starting, of each request and of stopping; faults it still tells.
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    return address(port, store), command, environment


def serve(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run the server until it has ended, or a person ends it with Ctrl-C, a kill or a hang-up.

    Raises:
        UserError: it failed; it has told why.
        KeyboardInterrupt: the person's, once the server has ended.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores the second
            signal.signal(number, signal.default_int_handler)
    # Out of reach of the terminal's Ctrl-C, at which it would end with pages of its own.
    server = subprocess.Popen(command, env=environment, process_group=0)
    try:
        status = server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        raise
    if status != 0:
        raise UserError(f"MLflow's server ended with status {status}")
