"""benchmarks/: plain libraries give the same logits; shares are taken over equal seeds only."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluated import link, make_adapter

import merge_retention
import plain_libraries
from bitrank import merging, paths
from bitrank.config import RunConfig
from bitrank.errors import UserError
from reporting import Run

ROWS = [list(b"number 1 is"), list(b"number 22 is so"), [7]]


@pytest.mark.parametrize("name", ["fp32", "int8", "fp4", "nf4"])
def test_plain_peft_gives_the_adapters_logits_and_plain_transformers_the_merged_ones(
    name: str, project: Path, quantized: Callable[[str], Path], compose: Callable[..., RunConfig]
) -> None:
    run = compose(f"precision={name}")
    paths.QUANTIZED.unlink()
    shutil.rmtree(paths.MERGED)
    link(paths.QUANTIZED, quantized(name))
    make_adapter(paths.QUANTIZED, paths.ADAPTER, compose)
    merging.merge_adapter(run.merge, run.runtime)
    found = plain_libraries.compare(run, ROWS)
    assert found["merged"] == {"equal": True, "largest_difference": 0.0, "same_first_token": 1.0}
    assert found["adapter"]["largest_difference"] < 1e-5
    assert found["adapter"]["same_first_token"] == 1


def test_a_plain_script_that_fails_is_told(
    project: Path, compose: Callable[..., RunConfig]
) -> None:
    shutil.rmtree(paths.MERGED)
    with pytest.raises(UserError, match=r"plain_peft\.py failed"):
        plain_libraries.plain_logits(compose(), ROWS)


def test_the_plain_script_imports_nothing_of_bitrank() -> None:
    assert "bitrank" not in plain_libraries.SCRIPT.read_text().split('"""')[2]


def way(share: float | None, outcome: str = "not separable", mean: float = 0.1) -> dict[str, Any]:
    kept = {"share": share, "stderr": 0.1, "reason": None}
    return {
        "reason": None, "retained": dict.fromkeys(merge_retention.METRICS, kept),
        "changes": {"nll": {"mean": mean, "outcome": outcome}},
        "mean_kl": 0.2, "argmax_agreement": 0.9, "codes_changed_share": None,
        "update_left_share": 0.5,
    }  # fmt: skip


def seeds(*found: dict[str, Any], **matched: Any) -> list[Run]:
    return [
        Run(f"seed {number}", {"num_items": 9, **matched},
            {"ways": {"merged_original": one, "merged_requantized": {"reason": "none"}}})
        for number, one in enumerate(found)
    ]  # fmt: skip


def test_shares_are_means_over_the_seeds_with_their_error() -> None:
    runs = seeds(way(0.9), way(1.0, "separable"), way(0.8, "separable", mean=-0.1))
    (found,) = merge_retention.summarize(runs).values()
    kept = found["gain_kept"]["nll"]
    assert kept["mean"] == pytest.approx(0.9)
    assert kept["stderr"] == pytest.approx(0.1 / 3**0.5)
    assert (found["seeds_worse"], found["num_seeds"]) == (1, 3)
    assert found["codes_changed_share"]["mean"] is None
    shown = merge_retention.show(merge_retention.summarize(runs))
    assert "90 ± 5.8 %" in shown
    assert "1 of 3" in shown


def test_a_seed_without_a_share_leaves_none_to_tell() -> None:
    (found,) = merge_retention.summarize(seeds(way(0.9), way(None))).values()
    assert found["gain_kept"]["nll"] == {"mean": None, "stderr": None, "all": [0.9, None]}
    (alone,) = merge_retention.summarize(seeds(way(0.9))).values()
    assert alone["gain_kept"]["nll"]["stderr"] is None


def test_seeds_that_differ_in_more_than_the_seed_are_refused() -> None:
    runs = [*seeds(way(0.9), base_hash="a"), *seeds(way(0.9), base_hash="b")]
    with pytest.raises(UserError, match="differ in: base_hash"):
        merge_retention.summarize(runs)


def test_a_folder_of_another_configuration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[1]
    project = tmp_path / "project"
    for made in (paths.ORIGINAL, paths.TOKENIZER, paths.PREPARED, paths.BENCHMARKS,
                 paths.items("original")):  # fmt: skip
        (project / made).mkdir(parents=True)
    (project / "conf").symlink_to(root / "conf")
    monkeypatch.setattr(merge_retention, "ROOT", project)
    folder = merge_retention.lay_out(tmp_path / "work", ["experiment=smoke", "seed=1"])
    assert merge_retention.lay_out(folder, ["experiment=smoke", "seed=1"]) == folder
    assert (folder / paths.PREPARED).resolve() == (project / paths.PREPARED).resolve()
    with pytest.raises(UserError, match="another configuration"):
        merge_retention.lay_out(folder, ["experiment=smoke", "seed=2"])
