"""Turn raw rows into splits without leakage, with a label audit: the `prepare` stage of dvc.yaml.

reads   the pinned rows, data/base/tokenizer        writes   data/prepared, data/audit
"""

from __future__ import annotations

from bitrank import config, paths, records, stage

with stage.importing():
    from bitrank import preparation


def work() -> records.Record:
    run = config.load()
    return preparation.prepare_data(run.data)


if __name__ == "__main__":
    stage.execute(work, paths.record("prepare"))
