"""A sweep on a real SLURM of one node, started for this test. Needs root, slurmctld and munged."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the toy project is of the other tests
from toy_project import Toy

pytestmark = [pytest.mark.system, pytest.mark.slurmctld]
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SchedulerParameters=bf_interval=1,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP MaxTime=INFINITE
"""
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
GRID = ("adapter.rank=2,4", "seed=0,1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents):  # munged runs as a user of its own
        if parent != Path("/") and parent.stat().st_uid == os.getuid():
            parent.chmod(parent.stat().st_mode | 0o055)
    started = [_start_munge(folder)]
    text = CONFIGURATION.format(
        host=socket.gethostname(),
        cpus=os.cpu_count(),
        folder=folder,
        controller=_free_port(),
        node=_free_port(),
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        started += [subprocess.Popen([program, "-D"]) for program in ("slurmctld", "slurmd")]
        _wait_until_idle(folder)
        yield
    finally:
        del os.environ["SLURM_CONF"]
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _start_munge(folder: Path) -> subprocess.Popen[bytes]:
    own = folder / "munge"
    own.mkdir(mode=0o755)
    key = own / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    for path in (own, key):
        shutil.chown(path, "munge")
    socket_file = folder / "munge.socket"
    folder.chmod(0o755)
    shutil.chown(folder, "munge")
    return subprocess.Popen(
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_file}",
         f"--pid-file={own}/munged.pid", f"--log-file={own}/munged.log",
         f"--seed-file={own}/munged.seed"], user="munge",
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_idle(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while "idle" not in _ask("sinfo", "-h", "-o", "%T"):
        logs = "".join(f.read_text() for f in folder.glob("*.log"))
        assert time.monotonic() < deadline, logs
        time.sleep(0.5)


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def test_a_sweep_runs_as_slurm_jobs(cluster: None, tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    answer = toy.sweep(*GRID, *SLURM)
    assert answer.returncode == 0, answer.stdout
    assert "4 of 4 points are done" in answer.stdout
    counts = Counter(toy.stages())
    assert counts["fetch"] == counts["prepare"] == counts["quantize"] == 1
    assert (counts["measure"], counts["train"]) == (2, 4)


def test_a_job_that_is_preempted_is_queued_again_and_ends(cluster: None, tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    running = toy.start(*GRID, *SLURM, faults="train:nf4-r4-s1:90")
    deadline = time.monotonic() + 200
    while "train nf4-r4-s1" not in toy.ran():
        assert time.monotonic() < deadline, (toy.ran(), _ask("squeue"))
        time.sleep(0.2)
    job = _ask("squeue", "-h", "-t", "R", "-o", "%i").split()[-1]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    while toy.ran().count("train nf4-r4-s1") < 2:
        assert time.monotonic() < deadline + 300, (toy.ran(), _ask("squeue"))
        time.sleep(1)
    printed, _ = running.communicate(timeout=200)
    assert running.returncode == 0, printed
    assert "4 of 4 points are done" in printed
