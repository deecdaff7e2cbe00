"""Findings of one kind told once: a message with the first places and a count, so that a large drawing gives a page."""

from __future__ import annotations

from collections.abc import Sequence

from ....compiler.diagnostics import Diagnostic, Severity
from ....grammar.dot_reader import Drawing, Place

__all__ = ["gathered", "some"]

_PLACES = 5


def some(names: Sequence[str], limit: int = _PLACES) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(f"`{n[:60]}`" for n in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def gathered(
    drawing: Drawing,
    code: str,
    found: Sequence[tuple[str, Place]],
    one: str,
    many: str,
    expected: str | None = None,
    help_: str | None = None,
    severity: Severity | None = None,
) -> list[Diagnostic]:
    """One diagnostic for all of ``found`` (what, where), at the first; none where it is empty.

    ``one`` and ``many`` begin the message, for instance "node without a device" and "nodes without a device".
    """
    if not found:
        return []
    names = list(dict.fromkeys(name for name, _ in found))
    lines = list(dict.fromkeys(drawing.line(place) for _, place in found))
    text = f"{one}: {some(names)}" if len(found) == 1 else f"{len(found)} {many}: {some(names)}"
    if len(lines) > 1:
        text += f" (lines {', '.join(map(str, lines[:_PLACES]))}{', ...' if len(lines) > _PLACES else ''})"
    return [Diagnostic(code, text, drawing.span(found[0][1]), expected, help_, severity)]
