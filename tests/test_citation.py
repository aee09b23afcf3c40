"""CITATION.cff says what the citation file format 1.2.0 asks for, and nothing else.

Keys and types are those of that format's schema, as far as this file may use them.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml
from fake_project import ROOT

KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi",
    "identifiers", "keywords", "license", "license-url", "message", "preferred-citation",
    "references", "repository", "repository-artifact", "repository-code", "title", "type", "url",
    "version",
}  # fmt: skip
REQUIRED = {"authors", "cff-version", "message", "title"}
ENTITY = {
    "address", "alias", "city", "country", "date-end", "date-start", "email", "fax", "location",
    "name", "orcid", "post-code", "region", "tel", "website",
}  # fmt: skip


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return found


def test_it_has_the_required_keys_and_no_unknown_ones(citation: dict[str, Any]) -> None:
    assert set(citation) >= REQUIRED
    assert set(citation) <= KEYS
    assert re.fullmatch(r"1\.2\.0", citation["cff-version"])
    assert citation["type"] in ("software", "dataset")
    texts = [citation[key] for key in ("message", "title", "abstract", "version", "license")]
    assert all(isinstance(value, str) and value.strip() for value in texts)


def test_authors_and_keywords_are_lists_without_doubles(citation: dict[str, Any]) -> None:
    for key in ("authors", "keywords"):
        assert citation[key]
        assert len({str(entry) for entry in citation[key]}) == len(citation[key])
    for author in citation["authors"]:
        assert author["name"]
        assert set(author) <= ENTITY


def test_it_is_the_version_and_licence_of_the_package(citation: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert "doi" not in citation, "none was given"
