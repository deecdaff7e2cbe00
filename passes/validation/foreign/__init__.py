"""Checks on drawings and strategy files that paradag did not write."""

from __future__ import annotations

import re
from pathlib import Path

from ....compiler.diagnostics import Diagnostic, DiagnosticError
from ....grammar import read_source
from ....grammar.dot_reader import read_dot
from .drawing import check_drawing
from .strategy_json import check_strategy_json

__all__ = ["check_drawing", "check_foreign", "check_foreign_text", "check_strategy_json", "foreign_kind"]

_DOT = re.compile(r"(?im)^[^\n]{0,80}?\b(?:di)?graph\b[^\n{;]{0,200}\{")
_SUFFIXES = {".dot": "dot", ".gv": "dot", ".json": "json"}


def check_foreign(path: str | Path) -> list[Diagnostic]:
    """Check a Graphviz drawing or a strategy file in JSON, whatever its state.

    Returns:
        All findings; PD001 to PD003 where the file cannot be read. Nothing is raised.
    """
    path = Path(path)
    try:
        text = read_source(path)
    except DiagnosticError as error:
        return list(error.diagnostics)
    return check_foreign_text(text, str(path))


def check_foreign_text(text: str, file: str) -> list[Diagnostic]:
    """Check text that is already read; ``file`` is its name in spans, and its suffix tells the kind."""
    return check_drawing(read_dot(text, file)) if foreign_kind(text, file) == "dot" else check_strategy_json(text, file)


def foreign_kind(text: str, file: str) -> str:
    """``dot`` or ``json``: by the suffix, else by the text."""
    known = _SUFFIXES.get(Path(file).suffix.lower())
    if known is not None:
        return known
    return "dot" if _DOT.search(text[:20_000]) else "json"
