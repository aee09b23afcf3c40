"""What outlives a run stands in the main project, also for its temporary copies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_copy_of_the_project_shares_downloads_and_checkpoints(tmp_path: Path) -> None:
    """As in `dvc exp run --queue`: DVC_ROOT names the project, the stage runs in the copy."""
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1"
    copy.mkdir(parents=True)
    program = "from bitrank import paths; print(paths.DOWNLOADS, paths.CHECKPOINTS, paths.RESULTS)"
    source = str(Path(__file__).parents[1] / "src")
    for root, up in ((tmp_path, "../../../../"), (copy, "")):
        there = {**os.environ, "DVC_ROOT": str(root), "PYTHONPATH": source}
        answer = subprocess.run([sys.executable, "-c", program], cwd=copy, env=there, text=True,
                                capture_output=True, check=True)  # fmt: skip
        names = [f"{up}data/downloads", f"{up}data/checkpoints", "data/results"]
        assert answer.stdout.split() == names
