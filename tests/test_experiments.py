"""`dvc exp run`, alone and queued, on the tiny model in a git clone: the same work, done once."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import ROOT, Project

from bitrank import identity, paths
from bitrank.paths import SUBJECTS
from bitrank.store import DATABASE

pytestmark = pytest.mark.timeout(1800)  # a measurement waits for whatever else uses the machine
HEADLINE = {
    "acc": set(SUBJECTS),
    "nll": set(SUBJECTS),
    "nll_stderr": set(SUBJECTS),
    "train_peak_bytes": None,
    "train_tokens_per_second": None,
    "adapter_bytes": None,
    "merge_mean_kl": None,
}
# Without a file of its own in data/, git takes what is ignored there away with its stash.
IGNORED = "data/*\n!data/README.md\n!data/results/\n.dvc/tmp\n.dvc/cache\n__pycache__/\n"


class Experiments(Project):
    """The project as it is committed, with the default configuration."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        config = folder / ".dvc" / "config"
        config.write_text(config.read_text().replace("no_scm = true", "no_scm = false"))
        shutil.copy(ROOT / ".dvc" / "plots.html", folder / ".dvc")
        (folder / ".gitignore").write_text(IGNORED)
        (folder / "data").mkdir()
        shutil.copy(ROOT / "data" / "README.md", folder / "data")
        self.run("git", "init", "--quiet")
        for key, value in (("user.email", "a@example.org"), ("user.name", "a")):
            self.run("git", "config", key, value)
        self.commit("the default configuration")

    def commit(self, message: str) -> None:
        self.run("git", "add", ".")
        self.run("git", "commit", "--quiet", f"--message={message}")

    def ran(self, *command: str) -> set[str]:
        return set(re.findall(r"Running stage '(?:\S+:)?([\w@]+)'", self.run("dvc", *command)))

    def show(self, *command: str) -> Any:
        """What a DVC command prints with --json."""
        text = self.run("dvc", *command, "--json")
        return json.loads(next(line for line in text.splitlines() if line[:1] in "[{"))

    def named(self, name: str) -> Any:
        """The data of a saved experiment, as `dvc exp show` has it."""
        states = [state for row in self.show("exp", "show") for state in row["experiments"] or []]
        (found,) = [revision for s in states for revision in s["revs"] if revision["name"] == name]
        assert found["error"] is None
        return found["data"]


def columns(metrics: Any) -> Any:
    """The names of all values, to be compared with `HEADLINE`."""
    assert list(metrics) == [paths.METRICS.as_posix()], "no other file adds columns"
    (shown,) = metrics.values()
    return {key: set(v) if isinstance(v, dict) else None for key, v in shown["data"].items()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Experiments:
    made = Experiments(tmp_path_factory.mktemp("project"))
    made.compose()
    assert "train" in made.repro()
    return made


def test_an_experiment_restores_what_repro_computed(project: Experiments) -> None:
    adapter = project.result("train")["adapter_hash"]
    project.run("git", "checkout", "--quiet", "params.yaml")
    (project.folder / "dvc.lock").unlink()
    for made in ("base", "adapter", "merged", "results"):
        shutil.rmtree(project.folder / paths.DATA / made)
    ran = project.ran("exp", "run", "--name=alone", "--set-param=experiment=smoke")
    assert ran <= {"hardware", "record"}
    assert project.result("train")["adapter_hash"] == adapter
    assert columns(project.named("alone")["metrics"]) == HEADLINE


def test_the_queue_runs_only_what_is_new(project: Experiments) -> None:
    """Two experiments: the one that was there, and one that merges otherwise."""
    adapter = identity.hash_files(project.folder / paths.ADAPTER)
    project.run("dvc", "exp", "run", "--queue", "--name=queued", "--set-param=experiment=smoke",
                "--set-param=merge=dequantized,original")  # fmt: skip
    ran = project.ran("exp", "run", "--run-all")
    assert ran <= {"hardware", "merge", "evaluate@merged", "report", "record"}
    assert {"merge", "evaluate@merged", "report"} <= ran
    for name in ("queued-1", "queued-2"):
        assert columns(project.named(name)["metrics"]) == HEADLINE
        project.run("dvc", "exp", "apply", name)
        project.run("dvc", "checkout")
        assert identity.hash_files(project.folder / paths.ADAPTER) == adapter
    with closing(sqlite3.connect(project.folder / paths.MLFLOW / DATABASE)) as store:
        merges = store.execute("SELECT value FROM params WHERE key = 'merge.base'").fetchall()
    assert {base for (base,) in merges} == {"dequantized", "original"}, "in this project's store"


def test_the_tables_have_the_headline_and_the_pages_the_curves(project: Experiments) -> None:
    assert columns(project.show("metrics", "show")[""]["data"]) == HEADLINE
    told = project.run("dvc", "plots", "diff", "alone", "queued-2", "--out=page")
    assert "WARNING" not in told
    page = (project.folder / "page" / "index.html").read_text()
    drawn = set(re.findall(r'<div id ?= ?"(\w+)', page))
    assert {"Training_loss", "Validation_loss"} <= drawn
    assert len(list((project.folder / "page" / "static").iterdir())) == 4
