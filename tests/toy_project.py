"""A project whose stages take no time, to test what drives a pipeline, not what it computes.

It has the real `conf/` and the real `src/`; its stages write hashes of what they read, and one line
a run into `ran.txt`, outside of all workspaces. What they are to do wrong is told by TOY_FAULTS.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SWEEP = [sys.executable, "-m", "bitrank.sweep", "-m", "experiment=smoke"]
PIPELINE = """
stages:
  fetch:
    cmd: python stages/run.py fetch
    deps: [stages/run.py, "${model.source.watch}"]
    params: [model]
    outs: [data/base]
  prepare:
    cmd: python stages/run.py prepare
    deps: [stages/run.py, "${data.rows.watch}", data/base]
    params: [data]
    outs: [data/prepared]
  quantize:
    cmd: python stages/run.py quantize
    deps: [stages/run.py, data/base]
    params: [precision]
    outs: [data/quantized]
  baseline:
    matrix: {subject: [base, quantized]}
    cmd: python stages/run.py baseline-${item.subject}
    deps: [stages/run.py, "data/${item.subject}", data/prepared]
    outs: ["data/baseline-${item.subject}"]
  train:
    cmd: python stages/run.py train
    deps: [stages/run.py, data/quantized, data/prepared]
    params: [adapter, precision, seeds, train]
    outs: [data/adapter]
    metrics:
      - data/results/train.json: {cache: false}
  measure:
    cmd: python stages/run.py measure
    deps: [stages/run.py, data/quantized, data/prepared]
    params: [adapter, precision]
    outs: [data/measured]
  report:
    cmd: python stages/run.py report
    deps: [stages/run.py, data/adapter, data/measured, data/baseline-base, data/baseline-quantized]
    outs: [data/report]
"""
STAGE = """
import hashlib, json, os, pathlib, signal, sys, time
import yaml
name = sys.argv[1]
params = yaml.safe_load(open("params.yaml"))
point = f"{params['precision']['name']}-r{params['adapter']['rank']}-s{params['seed']}"
log = os.open(os.environ["TOY_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(log, f"{name} {point}\\n".encode())
for fault in os.environ.get("TOY_FAULTS", "").split():
    stage, where, what = fault.split(":")
    if (stage, where) in ((name, point), (name, "*")):
        if what == "error":
            sys.exit("error: `toy.key` is wrong: set it right")
        if what == "memory":
            sys.exit("error: out of memory. In training: lower `train.micro_batch_size`")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(what))
data = pathlib.Path("data")
reads = {
    "fetch": [], "prepare": ["base"], "quantize": ["base"], "baseline-base": ["base", "prepared"],
    "baseline-quantized": ["quantized", "prepared"], "train": ["quantized", "prepared"],
    "measure": ["quantized", "prepared"], "report": ["adapter", "measured"],
}[name]
uses = {"fetch": ["model"], "prepare": ["data"], "quantize": ["precision"],
        "train": ["adapter", "precision", "seeds", "train"], "measure": ["adapter", "precision"]}
text = json.dumps([name, [params[key] for key in uses.get(name, [])],
                   [(data / read / "hash").read_text() for read in reads]], sort_keys=True)
made = {"fetch": "base", "prepare": "prepared", "quantize": "quantized", "train": "adapter",
        "measure": "measured"}.get(name, name)
(data / made).mkdir(parents=True, exist_ok=True)
(data / made / "hash").write_text(hashlib.sha256(text.encode()).hexdigest())
if name == "train":
    (data / "results").mkdir(exist_ok=True)
    record = {"schema_version": 1, "stage": "train", "treatment": {}, "observation": {},
              "result": {"adapter_hash": (data / made / "hash").read_text()}}
    (data / "results" / "train.json").write_text(json.dumps(record))
"""


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Toy:
    """A toy project in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("src", "conf"):
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        (folder / "stages").mkdir()
        (folder / "stages" / "run.py").write_text(STAGE)
        (folder / "dvc.yaml").write_text(PIPELINE)
        rows = folder / "tests" / "fixtures"
        rows.mkdir(parents=True)
        shutil.copy(ROOT / "tests" / "fixtures" / "colours.jsonl", rows)
        for name in (".dvcignore", "constraints-numeric.txt"):
            shutil.copy(ROOT / name, folder / name)
        (folder / ".dvc").mkdir()
        (folder / ".dvc" / "config").write_text(
            (ROOT / ".dvc" / "config").read_text().replace("[core]", "[core]\n    no_scm = true")
        )

    @classmethod
    def cloned(cls, other: Toy, folder: Path) -> Toy:
        """A fresh clone of a toy project that is in git."""
        subprocess.run(["git", "clone", "-q", str(other.folder), str(folder)], check=True)
        clone = cls.__new__(cls)
        clone.folder = folder
        return clone

    def commit(self) -> str:
        """Put all that is not an artifact into git; return the commit."""
        ignored = (
            "/data/*\n!/data/results/\nran.txt\n__pycache__/\n.dvc/cache/\n.dvc/tmp/\n.dvc/site/\n"
        )
        (self.folder / ".gitignore").write_text(ignored)
        person = ["-c", "user.name=Toy", "-c", "user.email=toy@example.org"]
        for command in (["init", "-q"], ["add", "-A"], [*person, "commit", "-qm", "Toy"]):
            subprocess.run(["git", *command], cwd=self.folder, check=True)
        told = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=self.folder, text=True)
        return told.strip()

    def environment(self, faults: str = "") -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        log = str(self.folder / "ran.txt")
        return {**kept, "PATH": path, "PYTHONPATH": "src", "TOY_LOG": log, "TOY_FAULTS": faults}

    def sweep(self, *overrides: str, faults: str = "") -> subprocess.CompletedProcess[str]:
        return self.run(*SWEEP, *overrides, faults=faults)

    def start(self, *overrides: str, faults: str = "") -> subprocess.Popen[str]:
        """A sweep in a process group of its own, running, that hears Ctrl-C.

        What is started in the background, as these tests may be, inherits that it is not heard.
        """
        return subprocess.Popen([*SWEEP, *overrides], cwd=self.folder, text=True,
                                env=self.environment(faults), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, start_new_session=True,
                                preexec_fn=_hear_ctrl_c)  # fmt: skip

    def run(self, *command: str, faults: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.folder, env=self.environment(faults), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def ran(self) -> list[str]:
        """`<stage> <precision>-r<rank>-s<seed>` of every stage that started, in order."""
        file = self.folder / "ran.txt"
        return file.read_text().split("\n")[:-1] if file.is_file() else []

    def stages(self) -> list[str]:
        return [line.split()[0] for line in self.ran()]
