"""Text to lexemes: words, numbers, strings and signs, each with its place. Context plays no part yet."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from ..compiler.diagnostics import Span

__all__ = ["MAX_LEXEMES", "Lexeme", "comments", "scan"]

MAX_LEXEMES = 50_000
"""Bound on the work that one file can ask for; the longest sensible list (a pattern of every layer) has 10,000."""

_LEXEME = re.compile(
    r"""
      (?P<space>   \s+ )
    | (?P<comment> \#[^\n]* )
    | (?P<ARROW>   -> )
    | (?P<DOTDOT>  \.\. )
    | (?P<AT_MOST> <= )
    | (?P<AT_LEAST> >= )
    | (?P<LBRACE>  \{ )
    | (?P<RBRACE>  \} )
    | (?P<STRING>  "(?:[^"\\\n]|\\.)*" )
    | (?P<open>    "[^\n]* )
    | (?P<NUMBER>  -?\d+(?:_\d+)*(?:\.\d+)?(?:[eE][+-]?\d+)? )
    | (?P<curly>   [\u201c-\u201e\u2018'«»][^\u201c\u201d\u2018\u2019'«»\n]*[\u201c\u201d\u2018\u2019'«»] )
    | (?P<unit>    % | [A-Za-z]+/[A-Za-z]+ )
    | (?P<word>    [A-Za-z_]\w*(?:-\w+){0,20} )
    | (?P<junk>    \S )
    """,
    re.VERBOSE | re.ASCII,
)


class Lexeme(NamedTuple):
    """A piece of text and its place.

    ``kind`` is a terminal's name, or ``word``, ``unit``, ``open`` (a string without its end), ``curly`` (a string in
    other quotes), ``junk`` or ``comment``.
    """

    kind: str
    text: str
    line: int
    column: int

    @property
    def end_column(self) -> int:
        return self.column + len(self.text)

    def span(self, file: str) -> Span:
        return Span(file, self.line, self.column, self.line, self.end_column)


def scan(text: str) -> list[Lexeme]:
    """All lexemes of ``text`` and a last one of kind ``$END``; stops one past :data:`MAX_LEXEMES`."""
    return [lexeme for lexeme in _pieces(text) if lexeme.kind != "comment"]


def comments(text: str) -> list[Lexeme]:
    """All comments of ``text``, as far as :func:`scan` reads."""
    return [lexeme for lexeme in _pieces(text) if lexeme.kind == "comment"]


def _pieces(text: str) -> Iterator[Lexeme]:
    """Lexemes and, of kind ``comment``, comments."""
    starts = [0]
    # str.splitlines decides what a line is, as it does where diagnostics are shown.
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    if len(starts) > 1 and not text.endswith(("\n", "\r")):
        starts.pop()
    count = offset = 0
    row = 1
    while offset < len(text) and count <= MAX_LEXEMES:
        match = _LEXEME.match(text, offset)
        kind = match.lastgroup if match else None
        piece = match.group() if match else text[offset]
        if kind != "space":
            count += kind != "comment"
            row = bisect_right(starts, offset, row - 1)
            yield Lexeme(kind or "junk", piece, row, offset - starts[row - 1] + 1)
        offset += len(piece)
    row = bisect_right(starts, len(text))
    yield Lexeme("$END", "", row, len(text) - starts[row - 1] + 1)
