"""Write the report of this run and its headline: the `report` stage of dvc.yaml.

reads   data/results, data/items        writes   data/report, data/results/metrics.json
"""

from __future__ import annotations

import sys

from bitrank import headline, paths, report, runs
from bitrank.errors import UserError


def main() -> None:
    """No record of its own, and no torch: a report is made wherever the records are."""
    item_folders = {subject: paths.items(subject) for subject in runs.ANSWERING}
    report.write_report(paths.RESULTS, item_folders, paths.REPORT)
    headline.write_metrics(paths.RESULTS, paths.METRICS)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
