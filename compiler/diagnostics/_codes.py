"""Every diagnostic code, with its title and default severity: the headers of the knowledge base's rules.

A new code is a new section in a file of ``docs/knowledge`` (see its README). Ranges: PD0xx input and syntax, PD1xx
meaning of a spec, PD2xx parallelism legality, PD3xx resources and objectives, PD4xx the graph (lowered or flat), PD5xx
passes and plugins, PD6xx outputs, PD7xx drawings and strategy files from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from ._sections import rule_sections


@dataclass(frozen=True)
class CodeInfo:
    """Title (the fault, never the cure) and default severity of a code."""

    title: str
    severity: str = "error"


class _Codes(Mapping[str, CodeInfo]):
    """Codes in ascending order. The files are read when the first code is asked for, and once."""

    def __getitem__(self, code: str) -> CodeInfo:
        return _table()[code]

    def __iter__(self) -> Iterator[str]:
        return iter(_table())

    def __len__(self) -> int:
        return len(_table())


@cache
def _table() -> dict[str, CodeInfo]:
    return {s.code: CodeInfo(s.title, s.header.get("severity", "error")) for s in rule_sections()}


CODES: Mapping[str, CodeInfo] = _Codes()
"""All diagnostic codes."""
