"""Rules, typed, from the sections of the knowledge base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from ..diagnostics import Severity
from ..diagnostics._sections import KNOWLEDGE, RuleSection, rule_sections

_KEYS = frozenset({"severity", "stage", "applies", "fix"})
_EXAMPLE = re.compile(r"^```(\w+) fails(?: +([^\n]*))?\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Stage(StrEnum):
    """When a rule is checked, in the order in which rules run."""

    INPUT = "input"
    STRUCTURAL = "structural"
    SEMANTIC = "semantic"
    LEGALITY = "legality"
    RESOURCE = "resource"
    OBJECTIVE = "objective"
    GRAPH = "graph"
    DRAWING = "drawing"
    OUTPUT = "output"


class Applies(StrEnum):
    """What a rule looks at."""

    INPUT = "input"
    SPEC = "spec"
    STRATEGY = "strategy"
    GRAPH = "graph"
    FLAT = "flat"
    DRAWING = "drawing"
    RUN = "run"


class FixKind(StrEnum):
    """How a fault may be repaired, the preferred kinds first."""

    INSERT = "insert"
    REORDER = "reorder"
    REMOVE = "remove"
    REDUCE_DEGREE = "reduce-degree"
    CHANGE_KIND = "change-kind"
    REDUCE_WORKLOAD = "reduce-workload"


class MalformedRule(ValueError):
    """A rule section that cannot be read; says where and why."""


@dataclass(frozen=True)
class Example:
    """An input that breaks a rule and, at the rule's severity or above, no other.

    Attributes:
        kind: ``strat``, ``ir``, ``json``, ``dot`` or ``sh``: the language of the text.
        base: The graph that the text changes (``ir``: ``-`` and ``+`` lines, ``json``: one change per line); empty
            where the text stands alone.
        also: Codes that come along by nature.
        text: The example.
    """

    kind: str
    base: str
    also: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Rule:
    """One rule of the knowledge base.

    Attributes:
        code: Its diagnostic code.
        title: The fault.
        severity: Unless a finding says otherwise.
        stage: When it is checked.
        applies: What it looks at.
        fixes: Kinds of repair; empty where there is none.
        body: Statement, reason, detection, fix and example, in Markdown.
        file: File of the knowledge base, below its folder.
    """

    code: str
    title: str
    severity: Severity
    stage: Stage
    applies: Applies
    fixes: tuple[FixKind, ...]
    body: str
    file: str

    @property
    def fix(self) -> str:
        """Kinds of repair as the header has them: ``insert, remove`` or ``none``."""
        return ", ".join(self.fixes) or "none"

    @property
    def examples(self) -> tuple[Example, ...]:
        """Examples of the section that break the rule."""
        return tuple(_example(m[1], m[2] or "", m[3]) for m in _EXAMPLE.finditer(self.body))


def _example(kind: str, head: str, text: str) -> Example:
    base, _, also = head.partition("also ")
    return Example(kind, base.strip(), tuple(also.split()), text)


@cache
def rules(folder: Path = KNOWLEDGE) -> Mapping[str, Rule]:
    """All rules of a knowledge base by code, in the order of codes.

    Args:
        folder: The knowledge base; default the one that paradag ships with.

    Raises:
        MalformedRule: a header with an unknown or missing key or value, or a code given twice.
    """
    found: dict[str, Rule] = {}
    for section in rule_sections(folder):
        if section.code in found:
            raise MalformedRule(f"{section.code} stands in {found[section.code].file} and in {section.file}")
        found[section.code] = _rule(section)
    return MappingProxyType(found)


def _rule(section: RuleSection) -> Rule:
    header = section.header
    if wrong := sorted(header.keys() ^ _KEYS):
        what = "unknown" if wrong[0] in header else "missing"
        raise MalformedRule(f"{section.file}, {section.code}: {what} key `{wrong[0]}`")
    kinds = [] if header["fix"] == "none" else [k.strip() for k in header["fix"].split(",")]
    return Rule(
        section.code,
        section.title,
        _member(section, Severity, header["severity"]),
        _member(section, Stage, header["stage"]),
        _member(section, Applies, header["applies"]),
        tuple(_member(section, FixKind, k) for k in kinds),
        section.body,
        section.file,
    )


E = TypeVar("E", bound=StrEnum)


def _member(section: RuleSection, kind: type[E], value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(kind)
        raise MalformedRule(f"{section.file}, {section.code}: `{value}` is none of {known}") from None


def nearest_codes(text: str, count: int = 3) -> list[str]:
    """Codes that somebody who typed ``text`` may have meant: near in number, in spelling, or by a word of the title."""
    known = rules()
    if match := re.search(r"\d+", text):
        number = int(match[0][:6])
        return sorted(known, key=lambda code: (abs(int(code[2:]) - number), code))[:count]
    words = [w for w in re.findall(r"\w+", text.lower()) if len(w) > 2]
    found = [c for c, rule in known.items() if words and all(w in rule.title.lower() for w in words)]
    titles = {rule.title.lower(): c for c, rule in known.items()}
    found += [titles[t] for t in get_close_matches(text.lower(), titles, n=count, cutoff=0.5)]
    return list(dict.fromkeys(found))[:count]
