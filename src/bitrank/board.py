"""The comparison board: which columns and charts MLflow's page shows, and the server to see it.

MLflow's table hides all metrics until a person picks them. A "shared view" is a tag of the
experiment that its page reads when the address names it, so the address that is printed here opens
on rank and precision against memory, speed and accuracy. Should another version of MLflow not
understand the view, its page says so and shows its own.
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
from bitrank.store import Store, latest_experiment, own_store

VIEW_TAG = "mlflow.sharedViewState.bitrank"
HOST = "127.0.0.1"
AXES = ["precision.name", "adapter.rank"]
COSTS = ["memory/train_peak_bytes", "speed/train_tokens_per_second"]
QUALITY = ["nll/adapter", "acc/adapter"]
CONTROLS = ["acc/merged", "acc/quantized", "acc/original", "acc/control", "model/size_bytes"]


def describe_view() -> str:
    """The value of `VIEW_TAG`: JSON in the shape of the state of MLflow's runs page."""
    names = {f"params.`{name}`": name for name in [*AXES, "seed"]}
    names |= {f"metrics.`{name}`": name for name in QUALITY + COSTS + CONTROLS}
    columns = list(names)
    section = {"uuid": "bitrank", "name": "Rank and precision: what they cost and give"}
    flags = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return records.canonical_json(
        {
            "selectedColumns": columns,
            "columnOrder": columns,
            "columnWidths": {key: 30 + 8 * len(name) for key, name in names.items()},  # pixels
            "runsHiddenMode": "SHOW_ALL",
            "isAccordionReordered": True,
            "compareRunSections": [{**section, **flags, "columns": 2, "cardHeight": 420}],
            "compareRunCharts": [
                _chart("PARALLEL", 0, selectedParams=AXES, selectedMetrics=COSTS + QUALITY),
                _chart("LINE", 1, metricKey="train/loss", selectedMetricKeys=["train/loss"]),
                *(_scatter(index + 2, cost, "acc/adapter") for index, cost in enumerate(COSTS)),
            ],
        }
    )


def _chart(kind: str, index: int, **values: object) -> dict[str, object]:
    shown = {"type": kind, "uuid": f"bitrank-{index}", "metricSectionId": "bitrank"}
    return {**shown, "deleted": False, "isGenerated": False, "runsCountToCompare": 100, **values}


def _scatter(index: int, x: str, y: str) -> dict[str, object]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _chart("SCATTER", index, **axes)


def address(port: int, store: Store) -> str:
    """The page of the board; MLflow's first page where nothing was published yet."""
    experiment = latest_experiment(store, VIEW_TAG)
    if experiment is None:
        return f"http://{HOST}:{port}"
    view = f"workflowType=machine_learning&viewStateShareKey={VIEW_TAG.rsplit('.', 1)[1]}"
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
