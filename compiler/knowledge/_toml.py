"""TOML with places: what the standard library reads, and where each key stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...grammar import read_source
from ..diagnostics import Diagnostic, DiagnosticError, Span

_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
_AT = re.compile(r"\(at line (\d+), column (\d+)\)$")


@dataclass(frozen=True)
class Toml:
    """A file read.

    Attributes:
        file: Its name.
        text: Its text.
        data: What it says.
        spans: Places by path: of a table its header, of a key its line from the key on.
    """

    file: str
    text: str
    data: dict[str, Any]
    spans: dict[tuple[str, ...], Span]

    def span(self, *path: str) -> Span:
        """The place of the key at ``path``, or of the innermost table around it that has one."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.spans:
                return self.spans[path[:length]]
        return Span(self.file, 1, 1, 1, 1)

    def inside(self, span: Span, part: str, start: int = 0, end: int | None = None) -> Span:
        """The place of ``part``, or of its columns from ``start`` to ``end``, in the line of ``span``."""
        line = self.text.splitlines()[span.line - 1] if self.text else ""
        at = line.find(part, span.column - 1)
        if at < 0 or not part:
            return span
        last = len(part) if end is None else min(end, len(part))
        return Span(self.file, span.line, at + start + 1, span.line, at + max(last, start + 1) + 1)


def read_toml(path: Path) -> Toml:
    """Read a file.

    Raises:
        DiagnosticError: PD001 to PD003, it cannot be read; PD040, it is no TOML.
    """
    text = read_source(path)
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        told = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "nested too deeply"
        at = _AT.search(told)
        line, column = (int(at[1]), int(at[2])) if at else (max(1, len(text.splitlines())), 1)
        found = Diagnostic(
            "PD040",
            f"not TOML: {_AT.sub('', told).strip()}",
            Span(str(path), line, column, line, column + 1),
            "tables `[law]`, `[limits]`, `[rules]`, `[values]`, `[accelerators.NAME]` with `key = value` lines",
            "put expressions and names into double quotes; `docs/packs.md` shows a whole pack",
        )
        raise DiagnosticError([found], {str(path): text}) from None
    return Toml(str(path), text, data, dict(_places(text, str(path), data)))


def _places(text: str, file: str, data: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Span]]:
    """Paths and places of headers and keys, line by line. A line inside a longer text is taken for no key of ours."""
    table: tuple[str, ...] = ()
    seen: set[tuple[str, ...]] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.match(line)
        match = header or _KEY.match(line)
        if match is None:
            continue
        parts = tuple(p.strip("\"'") for p in _PART.findall(match[1]))
        path = parts if header else (*table, *parts)
        if path in seen or not _stands(data, path):
            continue
        seen.add(path)
        if header:
            table = path
        end = len(line.rstrip()) + 1
        yield path, Span(file, number, match.start(1) + 1, number, end)


def _stands(data: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True
