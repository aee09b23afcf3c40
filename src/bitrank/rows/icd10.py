"""ICD-10-CM diagnoses and their chapters, from the official tabular list (public domain, US).

A row is a code that has no finer one below it. Its group is the three-character category, because
codes of one category have nearly the same description. The chapter is told by one common word, one
token in most vocabularies. Chapter 22 (codes for special purposes) has no theme and is left out.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from bitrank import wheels
from bitrank.pins import Icd10Rows
from bitrank.rows import Loaded, RawRow

CHAPTERS = {
    "1": "infection",
    "2": "cancer",
    "3": "blood",
    "4": "hormones",
    "5": "mental",
    "6": "nerves",
    "7": "eye",
    "8": "ear",
    "9": "heart",
    "10": "lungs",
    "11": "stomach",
    "12": "skin",
    "13": "bones",
    "14": "kidneys",
    "15": "pregnancy",
    "16": "newborn",
    "17": "birth",
    "18": "symptoms",
    "19": "injury",
    "20": "accident",
    "21": "health",
}


def load(rows: Icd10Rows, downloads: Path) -> Loaded:
    with wheels.unpacked(rows, downloads) as file:
        root = ElementTree.parse(file).getroot()
    leaves = [
        RawRow({"text": text, "label": CHAPTERS[number]}, category, code)
        for chapter in root.iter("chapter")
        if (number := chapter.findtext("name", "")) in CHAPTERS
        for category, code, text in _leaves(chapter)
    ]
    return Loaded(leaves, {})


def _leaves(chapter: ElementTree.Element) -> Iterator[tuple[str, str, str]]:
    """(category, code, description) of each diagnosis without a finer one, in the list's order."""
    for section in chapter.findall("section"):
        for category in section.findall("diag"):
            name = category.findtext("name", "")
            for diagnosis in category.iter("diag"):
                if diagnosis.find("diag") is None:
                    yield name, diagnosis.findtext("name", ""), diagnosis.findtext("desc", "")
