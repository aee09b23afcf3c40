"""Take the pinned benchmarks out of their packages: the `benchmarks` stage of dvc.yaml.

reads   nothing but the pinned packages        writes   data/benchmarks
"""

from __future__ import annotations

from bitrank import config, paths, records, stage

with stage.importing():
    from bitrank import benchmarks


def work() -> records.Record:
    run = config.load()
    return benchmarks.prepare_benchmarks(run.evaluate.benchmarks)


if __name__ == "__main__":
    stage.execute(work, paths.record("benchmarks"))
