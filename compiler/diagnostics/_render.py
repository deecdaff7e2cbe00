"""Diagnostics as text: place, source line, carets, expectation and fix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ._diagnostic import Diagnostic

_MAX_LINE = 160


def render_diagnostic(diagnostic: Diagnostic, sources: Mapping[str, str] | None = None) -> str:
    """One diagnostic as text; ``sources`` maps file names to their text so that the line can be shown."""
    span = diagnostic.span
    place = f"{span.file}:{span.line}:{span.column}: " if span else ""
    lines = [f"{place}{diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}"]
    if span and sources and span.file in sources:
        lines += _excerpt(sources[span.file], span.line, span.column, span.end_line, span.end_column)
    if diagnostic.expected:
        lines.append(f"  expected: {diagnostic.expected}")
    if diagnostic.help:
        lines.append(f"  help: {diagnostic.help}")
    return "\n".join(lines)


def render_diagnostics(diagnostics: Iterable[Diagnostic], sources: Mapping[str, str] | None = None) -> str:
    """Several diagnostics, a blank line between."""
    return "\n\n".join(render_diagnostic(d, sources) for d in diagnostics)


def _excerpt(text: str, line: int, column: int, end_line: int, end_column: int) -> list[str]:
    source_lines = text.splitlines()
    if not 1 <= line <= len(source_lines):
        return []
    source = source_lines[line - 1].replace("\t", " ")
    end = end_column if end_line == line else len(source) + 1
    offset = max(0, column - 1 - _MAX_LINE // 2) if len(source) > _MAX_LINE else 0
    shown = source[offset : offset + _MAX_LINE]
    start = column - 1 - offset
    width = max(1, min(end - column, len(shown) - start))
    gutter = f"{line:>5} | "
    return [gutter + shown, " " * (len(gutter) - 2) + "| " + " " * start + "^" * width]
