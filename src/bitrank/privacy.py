"""What leaves the project for MLflow: files without a path of a home folder, which names a person.

A model or rows of the user's own may lie there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

TEXT_SUFFIXES = {".csv", ".html", ".json", ".lock", ".md", ".svg", ".tex", ".yaml"}


def hide_home(text: str) -> str:
    home = Path.home().as_posix()
    return text if home == "/" else text.replace(f"{home}/", "~/")


def publishable(file: Path) -> bytes:
    body = file.read_bytes()
    if file.suffix not in TEXT_SUFFIXES:
        return body
    return hide_home(body.decode("utf-8", "replace")).encode()


def report_files(report: Path) -> Iterator[tuple[str, bytes]]:
    """As artifacts; none where there is no report."""
    for file in sorted(report.rglob("*")):
        if file.is_file():
            yield f"report/{file.relative_to(report).as_posix()}", publishable(file)
