"""The pages that a person reads, in a real browser at the width of a phone."""

from __future__ import annotations

import re
from pathlib import Path

import fake_run
import pytest
import servers

from bitrank import paths, report

pytestmark = [pytest.mark.system, pytest.mark.chromium]
FRAME = """<iframe id=page src="{page}" style="width:360px;height:800px;border:0"></iframe>
<script>
page.onload = () => {{
  const inner = page.contentDocument.documentElement;
  document.title = `too wide by ${{inner.scrollWidth - inner.clientWidth}}, broken images ` +
    [...page.contentDocument.images].filter(i => !i.naturalWidth).length;
}};
</script>"""


def look(page: Path) -> str:
    """The title that the frame gives itself once the page inside it is laid out."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(page=page.name))
    shown = servers.browse(frame.as_uri(), page.parent / "profile")
    title = re.search(r"<title>(.*?)</title>", shown)
    assert title is not None, shown[-2000:]
    return title.group(1)


def test_the_report_fits_a_phone(tmp_path: Path) -> None:
    results, folders = fake_run.write_run(tmp_path)
    report.write_report(results, folders, tmp_path / "report")
    assert look(tmp_path / "report" / "report.html") == "too wide by 0, broken images 0"


def test_the_audit_page_fits_a_phone(prepared: Path) -> None:
    page = prepared.parent / paths.AUDIT.name / "label_audit.html"
    assert look(page) == "too wide by 0, broken images 0"
