"""Markdown condition files: bullets ``* **Key**: value`` under headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ._claims import Claims
from ._phrases import NotUnderstood, meaning

__all__ = ["read_markdown"]

_HEADING = re.compile(r"\s{0,3}#{1,6}\s*(.*)")
_RULE = re.compile(r"\s*(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,}|`{3,}.*|~{3,}.*|\|?(?:\s*:?-{2,}:?\s*\|)+.*)")
_BULLET = re.compile(r"\s*(?:[-*+•]|[0-9]{1,3}[.)])\s+(.*)")
_MARKS = re.compile(r"\*\*|__|`")
_MAX_LINE = 2_000


@dataclass(frozen=True)
class Entry:
    """A line that may state something.

    Attributes:
        line: Its number.
        section: The heading above it, in lower case.
        key: What stands before the colon.
        value: What stands behind it.
    """

    line: int
    section: str
    key: str
    value: str


def read_markdown(claims: Claims) -> None:
    """Read all lines; what they state, and what became of each, goes to ``claims``."""
    for entry in _entries(claims):
        try:
            values = meaning(entry.section, entry.key, entry.value)
        except NotUnderstood as fault:
            claims.use(entry.line, "unused", f"not understood: {fault}")
            claims.report("PD018", f"`{entry.key}`: {fault}", entry.line, fault.expected, "write the value that way")
            continue
        if values is None:
            claims.use(entry.line, "unused", "no field of the spec")
        elif isinstance(values, str):
            claims.use(entry.line, "unused", values)
        else:
            claims.state(entry.line, values)


def _entries(claims: Claims) -> Iterator[Entry]:
    section = ""
    for number, line in enumerate(claims.source, 1):
        text = line[:_MAX_LINE]
        if not text.strip() or _RULE.fullmatch(text):
            claims.use(number, "layout")
        elif heading := _HEADING.fullmatch(text):
            section = _MARKS.sub("", heading[1]).strip().lower()
            claims.use(number, "layout", f"section {section}" if section else "")
            if section in ("prefill", "decode"):
                claims.state(number, {"workload.mode": section})
        else:
            key, value = _parts(text)
            yield Entry(number, section, key, value)


def _parts(text: str) -> tuple[str, str]:
    """Key and value of a bullet, a row of a table, or a plain line."""
    bullet = _BULLET.fullmatch(text)
    plain = _MARKS.sub("", bullet[1] if bullet else text).strip()
    if plain.startswith("|"):
        cells = [c.strip() for c in plain.strip("|").split("|")]
        return cells[0], " ".join(cells[1:])
    key, sign, value = plain.partition(":")
    equals = plain.find("=")
    if not sign or 0 <= equals < len(key):
        key, _, value = plain.partition("=")
    return key.strip(), value.strip()
