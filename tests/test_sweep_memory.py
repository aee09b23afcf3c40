"""A sweep names the points that this machine cannot hold before any of them starts."""

from __future__ import annotations

from pathlib import Path

from toy_project import Toy

HUGE = ("model=llama2_70b", "adapter.rank=1024", "precision=fp32")
"""More than 400 GiB of weights, adapter and moments."""


def test_points_that_cannot_fit_are_refused_unless_told(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    refused = toy.sweep(*HUGE, "seed=0")
    assert refused.returncode == 1
    assert "1 of 1 points cannot fit" in refused.stdout
    assert "does not fit: fp32" in refused.stdout
    assert "sweep.oversized=run" in refused.stdout
    assert not toy.stages()
    started = toy.sweep(*HUGE, "seed=0", "sweep.oversized=run")
    assert started.returncode == 0, started.stdout
    assert "train" in toy.stages()
