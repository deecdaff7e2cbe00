"""Rule sections of the knowledge base, as text. The files are package data: `docs/knowledge` below the package's root.

A section begins with ``### CODE title``, followed by a block fenced as ``rule`` that holds one ``key: value`` per line,
and ends before the next heading of its level or above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

KNOWLEDGE = Path(__file__).resolve().parents[2] / "docs" / "knowledge"
"""Folder of the knowledge base that paradag ships with."""

_SECTION = re.compile(r"^### (PD\d{3}) +(\S[^\n]*)\n+```rule\n(.*?)\n```\n", re.MULTILINE | re.DOTALL)
_END = re.compile(r"^#{1,3} ", re.MULTILINE)


@dataclass(frozen=True)
class RuleSection:
    """One rule as its file has it.

    Attributes:
        code: Diagnostic code.
        title: The fault, never the cure.
        header: Keys and values of the ``rule`` block.
        body: Markdown behind the header.
        file: Path below the folder of the knowledge base, with forward slashes.
    """

    code: str
    title: str
    header: dict[str, str]
    body: str
    file: str


@cache
def rule_sections(folder: Path = KNOWLEDGE) -> tuple[RuleSection, ...]:
    """All rule sections of a knowledge base, by code.

    Args:
        folder: Its folder, searched with all folders below it.

    Raises:
        OSError: a file cannot be read.
    """
    found = [s for path in sorted(folder.rglob("*.md")) for s in _sections(path, folder)]
    return tuple(sorted(found, key=lambda s: s.code))


def _sections(path: Path, folder: Path) -> Iterator[RuleSection]:
    text = path.read_text(encoding="utf-8")
    for match in _SECTION.finditer(text):
        end = _END.search(text, match.end())
        body = text[match.end() : end.start() if end else len(text)].strip()
        lines = (line.partition(":") for line in match[3].splitlines())
        header = {key.strip(): value.strip() for key, _, value in lines}
        yield RuleSection(match[1], match[2].strip(), header, body, path.relative_to(folder).as_posix())
