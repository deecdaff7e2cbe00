"""Where each field of a spec came from, and what was assumed for the user."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..diagnostics import Diagnostic, Span
from .pack import Pack
from .spec import Spec

SourceMap = dict[str, Span]
"""Dotted field paths to spans: ``model.attention.heads``, ``strategy.decode.tp``, ``strategy.prefill.microbatches``.

A block's own path (``model``, ``strategy.decode``) gives the span of its head line.
"""


@dataclass(frozen=True)
class Assumption:
    """A value that the file leaves out: what was taken, and why."""

    name: str
    value: str
    why: str
    sensitivity: str = ""
    """How much results depend on it, where that can be said."""


@dataclass(frozen=True)
class LineUse:
    """What became of one line of a condition file.

    Attributes:
        line: Number, from 1.
        text: The line.
        use: ``field`` (it set fields of the spec), ``unused``, ``contradiction`` (another line says otherwise and was
            believed) or ``layout`` (headings, rules, blank lines).
        detail: The fields with their values, why it is unused, or what it contradicts.
    """

    line: int
    text: str
    use: Literal["field", "unused", "contradiction", "layout"]
    detail: str = ""


@dataclass(frozen=True)
class LoadedSpec:
    """A spec with its sources. ``diagnostics`` holds no errors (those are raised), but warnings and notes."""

    spec: Spec
    sources: SourceMap = field(default_factory=dict)
    assumptions: tuple[Assumption, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    """File names to their text, for carets."""
    lines: tuple[LineUse, ...] = ()
    """Of a condition file: what became of each line."""

    @property
    def pack(self) -> Pack | None:
        """The knowledge pack that the spec is judged by."""
        return self.spec.pack

    def span(self, *paths: str) -> Span | None:
        """The span of the first path that is known."""
        return next((self.sources[p] for p in paths if p in self.sources), None)
