"""Evaluate one model, the argument: the `evaluate` stages of dvc.yaml.

reads   data/base, data/adapter or data/merged, as the model is made of; data/prepared and
        data/benchmarks        writes   data/items/<model>
"""

from __future__ import annotations

import sys

from bitrank import config, paths, records, stage

with stage.importing():
    from bitrank import evaluation


def work() -> records.Record:
    run = config.load()
    return evaluation.evaluate_model(subject, run.evaluate, run.runtime)


if __name__ == "__main__":
    subject = " ".join(sys.argv[1:])
    stage.execute(work, paths.record(f"evaluate-{subject}"))
