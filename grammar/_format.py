"""The canonical layout of a strategy file: words, figures and comments stay, blanks and line breaks are ours.

Blocks of the top level have a statement per line, a strategy and inner blocks stand on one line where they fit and hold
no comment. A comment keeps its place: above the statement that follows it, or behind the one on whose line it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from lark import Token

from ..compiler.diagnostics import DiagnosticError
from ._findings import Findings, TooManyErrors
from ._parse import parse
from ._scan import Lexeme, comments
from ._syntax import Quantity, Statement

__all__ = ["format_text"]

WIDTH = 110
"""Columns up to which a block stands on one line."""

_INDENT = 4
Place = tuple[int, int]
"""Line and column."""

_NOWHERE = (1 << 60, 0)
"""Behind everything."""


def format_text(text: str, file: str = "<text>") -> str:
    """The text in canonical layout; formatting it again changes nothing, and no comment is lost.

    Args:
        text: A strategy file's content.
        file: Its name in messages.

    Raises:
        DiagnosticError: the text does not parse (whether it makes sense is not asked).
    """
    findings = Findings()
    statements: list[Statement] = []
    with suppress(TooManyErrors):
        statements = parse(text, file, findings).statements
    if findings.errors:
        raise DiagnosticError(findings, {file: text})
    return _Layout(comments(text)).file(statements)


@dataclass
class _Layout:
    """Lines of the result as they are made; ``waiting`` holds the comments that have not been written yet."""

    waiting: list[Lexeme]
    lines: list[str] = field(default_factory=list)
    last: int = 0
    """Line of the source on which the last thing written ends."""

    def file(self, statements: list[Statement]) -> str:
        for statement, until in _with_limits(statements, _NOWHERE):
            lead = self._comments_before(_place(statement.key))
            self._blank()
            self._own_lines(lead, 0)
            if lead and _line(statement.key) - self.last > 1:
                self._blank()
            self._statement(statement, 0, until)
        if self.waiting:
            self._blank()
            self._own_lines(self.waiting, 0)
            self.waiting = []
        return "\n".join(self.lines) + "\n" if self.lines else ""

    # --- statements

    def _statement(self, statement: Statement, depth: int, until: Place) -> None:
        """Write a statement whose leading comments are written; what follows it begins at ``until``."""
        indent = " " * (_INDENT * depth)
        line = f"{indent}{_on_one_line(statement)}"
        inside = self._inside(statement)
        spread = depth == 0 and str(statement.key) != "strategy"
        if statement.block is None or statement.is_chain or not (inside or spread or len(line) > WIDTH):
            self.lines.append(line)
            self._ends(_end(statement), until)
            return
        self.lines.append(f"{indent}{_head(statement)} {{")
        closing = _place(statement.closing) if statement.closing is not None else until
        inner_limits = list(_with_limits(statement.block, closing))
        opening = statement.opening if statement.opening is not None else statement.key
        self._ends(_line(opening), _place(statement.block[0].key) if statement.block else closing)
        for inner, limit in inner_limits:
            self._own_lines(self._comments_before(_place(inner.key)), depth + 1)
            if _line(inner.key) - self.last > 1 and not self.lines[-1].endswith("{"):
                self._blank()
            self._statement(inner, depth + 1, limit)
        self._own_lines(self._comments_before(closing), depth + 1)
        self.lines.append(f"{indent}}}")
        self._ends(_end(statement), until)

    def _inside(self, statement: Statement) -> bool:
        """Whether comments stand between the braces of a block, or inside its head."""
        end = (_end(statement), 0) if statement.closing is None else _place(statement.closing)
        return any(_place(statement.key) < (c.line, c.column) < end for c in self.waiting)

    # --- comments

    def _comments_before(self, place: Place) -> list[Lexeme]:
        taken = [c for c in self.waiting if (c.line, c.column) < place]
        self.waiting = [c for c in self.waiting if (c.line, c.column) >= place]
        return taken

    def _own_lines(self, found: Iterable[Lexeme], depth: int) -> None:
        for comment in found:
            if comment.line - self.last > 1 and self.lines and not self.lines[-1].endswith("{"):
                self._blank()
            self.lines.append(f"{' ' * (_INDENT * depth)}{comment.text.rstrip()}")
            self.last = comment.line

    def _ends(self, line: int, until: Place) -> None:
        """The last thing written ends on that line: comments inside it, and on the rest of its line, follow it."""
        if trailing := self._comments_before(min((line + 1, 0), until)):
            self.lines[-1] += "  " + " ".join(c.text.rstrip() for c in trailing)
        self.last = line

    def _blank(self) -> None:
        if self.lines and self.lines[-1]:
            self.lines.append("")


# --- text of a statement


def _on_one_line(statement: Statement) -> str:
    if statement.is_chain:
        return " -> ".join(_on_one_line(term) for term in statement.block or ())
    if statement.block is None:
        return _head(statement)
    inner = "  ".join(_on_one_line(s) for s in statement.block)
    return f"{_head(statement)} {{ {inner} }}" if inner else f"{_head(statement)} {{ }}"


def _head(statement: Statement) -> str:
    """Key, values and efficiency."""
    words = [str(statement.key), *(_value(v) for v in statement.values)]
    if statement.efficiency is not None:
        words += ["at", _value(statement.efficiency)]
    return " ".join(words).replace(" .. ", "..")


def _value(value: Token | Quantity) -> str:
    if isinstance(value, Token):
        return str(value)
    if value.unit is None:
        return str(value.number)
    return f"{value.number}{'' if value.unit == '%' else ' '}{value.unit}"


# --- places


def _line(token: Token) -> int:
    return token.line or 1


def _place(token: Token) -> Place:
    return _line(token), token.column or 1


def _with_limits(statements: list[Statement], end: Place) -> Iterator[tuple[Statement, Place]]:
    """Statements, each with the place at which the next one, or the end of the block, begins."""
    return zip(statements, chain((_place(s.key) for s in statements[1:]), (end,)), strict=False)


def _end(statement: Statement) -> int:
    """Line of the statement's last word."""
    if statement.closing is not None:
        return _line(statement.closing)
    if statement.is_chain and statement.block:
        return _end(statement.block[-1])
    last = statement.efficiency or (statement.values[-1] if statement.values else statement.key)
    return _line(last if isinstance(last, Token) else last.unit or last.number)
