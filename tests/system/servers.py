"""Programs that the system tests start for themselves: a browser, PostgreSQL, MLflow's server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def browse(address: str, profile: Path, *wishes: str, seconds: int = 5) -> str:
    """The page as it stands when its scripts had `seconds` of their own clock."""
    answer = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--allow-file-access-from-files", f"--user-data-dir={profile}",
         f"--virtual-time-budget={1000 * seconds}", *wishes, "--dump-dom", address],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return answer.stdout


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], log: Path, **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own, that ends with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **more
        )  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises RuntimeError: the server ended, or is not there after two minutes."""
    for _ in range(240):
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
            time.sleep(0.5)
    raise RuntimeError(f"no server at {address}: {log.read_text()[-2000:]}")


@contextmanager
def postgres() -> Iterator[str]:
    """A throw-away cluster on this machine; its URI. PostgreSQL refuses to run as root."""
    folder = Path(tempfile.mkdtemp(prefix="bitrank-postgres-"))
    user = {"user": "postgres"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres")
    port, data = find_free_port(), folder / "data"
    initdb = ["initdb", "-D", str(data), "-U", "mlflow", "--auth=trust", "--no-sync"]
    try:
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **user)  # type: ignore[call-overload]
        command = ["postgres", "-D", str(data), "-h", "127.0.0.1", "-p", str(port)]
        command += ["-k", str(folder), "-c", "fsync=off"]
        with running(command, folder / "log", cwd=folder, **user) as process:
            ask = ["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "60"]
            while subprocess.run(ask, check=False).returncode:
                if process.poll() is not None:
                    raise RuntimeError((folder / "log").read_text())
                time.sleep(0.2)
            # Without its name SQLAlchemy looks for another driver than MLflow names in its guide.
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
            process.send_signal(2)  # ends the sessions that are still open
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mlflow_server(database: str, folder: Path) -> Iterator[str]:
    """MLflow's server on this machine, as one sets it up for several people; its address."""
    port = find_free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "files")]
    command += ["--workers", "2"]
    with running(command, folder / "server.log", env=serving(), cwd=folder) as process:
        wait_for(address, process, folder / "server.log")
        yield address


def serving() -> Mapping[str, str]:
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return {**os.environ, **quiet}
