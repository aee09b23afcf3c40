"""Merge the adapter into its base: the `merge` stage of dvc.yaml.

reads   data/base, data/adapter, data/prepared        writes   data/merged
"""

from __future__ import annotations

from bitrank import config, paths, records, stage

with stage.importing():
    from bitrank import merging


def work() -> records.Record:
    run = config.load()
    return merging.merge_adapter(run.merge, run.runtime)


if __name__ == "__main__":
    stage.execute(work, paths.record("merge"))
