"""Serve the adapter in every way and compare: the `fidelity` stage of dvc.yaml.

reads   data/base, data/adapter, data/prepared, data/benchmarks, what the untrained bases answered
        writes   data/items/fidelity
"""

from __future__ import annotations

from bitrank import config, paths, records, stage

with stage.importing():
    from bitrank import fidelity


def work() -> records.Record:
    run = config.load()
    return fidelity.measure_fidelity(run.fidelity, run.evaluate, run.merge.dtype, run.runtime)


if __name__ == "__main__":
    stage.execute(work, paths.record("fidelity"))
