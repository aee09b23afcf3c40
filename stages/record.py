"""Publish all records of this run to MLflow: the `record` stage of dvc.yaml.

reads   params.yaml, dvc.lock, data/results, data/report        writes   nothing of the project's
"""

from __future__ import annotations

import logging
import sys

from bitrank import config, tracking
from bitrank.errors import UserError


def main() -> None:
    """No record of its own, and no torch: a store that does not answer costs a warning only."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run = config.load()
    tracking.publish_or_warn(experiment=run.tracking.experiment)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
