"""Train one adapter: the `train` stage of dvc.yaml.

reads   data/base/quantized, data/prepared        writes   data/adapter
"""

from __future__ import annotations

from bitrank import config, paths, records, stage

with stage.importing():
    from bitrank import training


def work() -> records.Record:
    run = config.load()
    return training.train_adapter(
        run.train, run.adapter, run.precision, run.seeds, run.runtime, run.data.max_sequence_tokens
    )


if __name__ == "__main__":
    stage.execute(work, paths.record("train"))
