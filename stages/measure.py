"""Meter and time training and inference on this machine: the `measure` stage of dvc.yaml.

reads   data/base/quantized, data/prepared, data/hardware.json        writes   its record only
"""

from __future__ import annotations

from bitrank import config, paths, records, stage

with stage.importing():
    from bitrank import measurement


def work() -> records.Record:
    run = config.load()
    return measurement.measure_training_and_inference(
        run.measure,
        run.train,
        run.adapter,
        run.precision,
        run.runtime,
        run.data.max_sequence_tokens,
    )


if __name__ == "__main__":
    stage.execute(work, paths.record("measure"), device="alone")
