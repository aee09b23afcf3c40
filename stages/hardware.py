"""Write down what machine this is: the `hardware` stage of dvc.yaml, which runs at every `repro`.

reads   nothing        writes   data/hardware.json, the same bytes on the same machine, so that only
what was timed on another one is timed anew
"""

from __future__ import annotations

from bitrank import hardware, paths, records


def work() -> None:
    records.write_text(paths.HARDWARE, records.canonical_json(hardware.fingerprint()) + "\n")


if __name__ == "__main__":
    work()
