"""Fetch the base model: the `fetch` stage of dvc.yaml.

reads   nothing but the pinned source        writes   data/base/original, data/base/tokenizer
"""

from __future__ import annotations

from bitrank import config, paths, records, stage

with stage.importing():
    from bitrank import fetching


def work() -> records.Record:
    run = config.load()
    return fetching.fetch_base(run.model)


if __name__ == "__main__":
    stage.execute(work, paths.record("fetch"), device="none")
