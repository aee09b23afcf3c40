"""Score a bag of words on the same rows: the `control` stage of dvc.yaml.

reads   data/prepared        writes   data/items/control
"""

from __future__ import annotations

from bitrank import paths, records, stage

with stage.importing():
    from bitrank import controls


def work() -> records.Record:
    return controls.bag_of_words()


if __name__ == "__main__":
    stage.execute(work, paths.record("control"))
