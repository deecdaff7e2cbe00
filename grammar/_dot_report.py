"""Findings on a text, gathered by kind: one diagnostic with its first places and a count, however often it occurs."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..compiler.diagnostics import Diagnostic
from ._dot_model import Drawing, Place

__all__ = ["Report"]

_PLACES = 5


@dataclass
class _Kind:
    code: str
    message: str
    help: str | None
    places: list[Place] = field(default_factory=list)
    count: int = 0


class Report:
    """Kinds of findings, in order of their first places."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def add(self, code: str, kind: str, place: Place, message: str, help_: str | None = None) -> None:
        """A finding of that kind; the first one's message and help stand for all."""
        known = self._kinds.setdefault((code, kind), _Kind(code, message, help_))
        known.count += 1
        if len(known.places) < _PLACES and (not known.places or known.places[-1][0] != place[0]):
            known.places.append(place)

    def diagnostics(self, drawing: Drawing) -> list[Diagnostic]:
        """All kinds, by place."""
        found = sorted(self._kinds.values(), key=lambda k: k.places[0])
        return [self._diagnostic(kind, drawing) for kind in found]

    @staticmethod
    def _diagnostic(kind: _Kind, drawing: Drawing) -> Diagnostic:
        message = kind.message
        if kind.count > 1:
            others = ", ".join(dict.fromkeys(str(drawing.line(p)) for p in kind.places[1:]))
            more = ", ..." if kind.count > len(kind.places) else ""
            message += f" ({kind.count} times" + (f", also on lines {others}{more})" if others else ")")
        return Diagnostic(kind.code, message, drawing.span(kind.places[0]), None, kind.help)
