"""Quantize the base model: the `quantize` stage of dvc.yaml.

reads   data/base/original        writes   data/base/quantized
"""

from __future__ import annotations

from bitrank import config, paths, records, stage

with stage.importing():
    from bitrank import quantization


def work() -> records.Record:
    run = config.load()
    return quantization.quantize_base(run.precision, run.runtime)


if __name__ == "__main__":
    stage.execute(work, paths.record("quantize"))
