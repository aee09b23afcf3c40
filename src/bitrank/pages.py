"""Pages that need nothing beside them: sections of text, figures and tables, as Markdown and HTML.

Both kinds are filled from the same sections, so they say the same. A page's figures are inline, its
style too, and its content policy forbids it to load anything. The same content gives the same
bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from bitrank import figures
from bitrank.tables import Table, to_csv

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Figure:
    name: str
    alt: str
    drawing: figures.Drawing
    caption: str = ""

    @property
    def inline(self) -> Markup:
        """Safe to stand in HTML as it is: matplotlib escapes every label."""
        return Markup(figures.inline_svg(self.drawing, self.name, self.alt))


@dataclass(frozen=True, kw_only=True)
class Section:
    key: str
    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    data: Sequence[Table] = ()
    """Tables that are written as CSV only, because a figure shows them."""
    folded: bool = False
    """Closed on the page until asked for, and left to the CSV files in Markdown."""


def fill(content: Mapping[str, Any]) -> dict[str, str]:
    """`report.md` and `report.html`; the keys of `content` are those of the templates."""
    return {name: page.render(content) for name, page in _templates().items()}


def files_of(sections: Sequence[Section]) -> dict[str, bytes]:
    """What stands beside the pages, by its path: `figures/` and `tables/*.csv`."""
    files: dict[str, bytes] = {}
    for section in sections:
        for table in (*section.tables, *section.data):
            files[f"tables/{table.name}.csv"] = to_csv(table).encode()
        for figure in section.figures:
            files[f"figures/{figure.name}.svg"] = figure.drawing.svg.encode()
            files[f"figures/{figure.name}.png"] = figure.drawing.png
            files[f"figures/{figure.name}.pdf"] = figure.drawing.pdf
    return files


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, body in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(body.encode() if isinstance(body, str) else body)


def _templates() -> dict[str, Template]:
    """The template of each file. In both kinds whatever comes from a record is escaped."""
    loader = FileSystemLoader(TEMPLATES)
    rules: dict[str, Any] = {
        "undefined": StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
    }
    page = Environment(loader=loader, autoescape=True, **rules)
    plain = Environment(loader=loader, finalize=escape_markdown, **rules)
    return {
        "report.html": page.get_template("report.html.jinja"),
        "report.md": plain.get_template("report.md.jinja"),
    }


def escape_markdown(value: object) -> str:
    """Text in which nothing starts a link, an image, a tag, code or a table cell; on one line."""
    escaped = str(value).replace("\n", " ↵ ")
    escaped = re.sub(r"([\\`\[\]<>|])", r"\\\1", escaped)
    return " ".join(escaped.split())
