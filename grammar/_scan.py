"""Text to lexemes: words, numbers, strings and signs, each with its place. Context plays no part yet."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from ..compiler.diagnostics import Span

__all__ = ["MAX_LEXEMES", "Lexeme", "comments", "scan"]

MAX_LEXEMES = 50_000
"""Bound on the work that one file can ask for; the longest sensible list (a pattern of every layer) has 10,000."""

_LEXEME = re.compile(
    r"""
      (?P<space>   \s+ | \#[^\n]* )
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


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A piece of text and its place.

    ``kind`` is a terminal's name, or ``word``, ``unit``, ``open`` (a string without its end), ``curly`` (a string in
    other quotes) or ``junk``.
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
    return [lexeme for lexeme in _pieces(text) if lexeme.kind != "space"]


def comments(text: str) -> list[Lexeme]:
    """All comments of ``text``, as far as :func:`scan` reads."""
    return [lexeme for lexeme in _pieces(text) if lexeme.text.startswith("#")]


def _pieces(text: str) -> Iterator[Lexeme]:
    """Lexemes and what stands between them: stretches of blanks, and comments, of kind ``space``."""
    starts = [0]
    # str.splitlines decides what a line is, as it does where diagnostics are shown.
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    if len(starts) > 1 and not text.endswith(("\n", "\r")):
        starts.pop()

    def place(offset: int) -> tuple[int, int]:
        line = bisect_right(starts, offset)
        return line, offset - starts[line - 1] + 1

    count = offset = 0
    while offset < len(text) and count <= MAX_LEXEMES:
        match = _LEXEME.match(text, offset)
        kind = match.lastgroup if match else None
        piece = match.group() if match else text[offset]
        count += kind != "space"
        yield Lexeme(kind or "junk", piece, *place(offset))
        offset += len(piece)
    yield Lexeme("$END", "", *place(len(text)))
