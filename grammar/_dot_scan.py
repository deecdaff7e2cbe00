"""DOT text to tokens, with the places where the text is damaged reported and, as far as possible, read on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from lark import Lark, Token

from ._dot_actions import Actions
from ._dot_model import Html
from ._dot_report import Report

__all__ = ["HEAD", "Scanner", "dot_grammar"]

HEAD = re.compile(
    r"(?im)(?<![\w.])(?:strict\s{1,99})?(?:di)?graph(?:\s{1,99}(?:\"(?:[^\"\\\n]|\\.){0,200}\"|"
    r"[^\s{}\[\]\"=;][^{}\[\]\"=;\n]{0,200}))?\s{0,99}\{"
)
"""The head of a graph up to its brace."""

_KEYWORDS = {k: k.upper() for k in ("strict", "graph", "digraph", "node", "edge", "subgraph")}
_DAMAGE = (
    ("LOOP", r"for\s{0,9}\([^(){}\n]{0,200}\)\s{0,9}\{"),
    ("ELLIPSIS", r"\.{3,}|\u2026"),
    (
        "JOINED",
        r"[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_\u0080-\U0010ffff]*(?:[-./@](?=[A-Za-z0-9_])[A-Za-z0-9_\u0080-\U0010ffff]+)+",
    ),
    ("GLUED", r"[0-9]+[A-Za-z_][A-Za-z0-9_]*"),
)
_HOLE = re.compile(
    r"(?:\{[A-Za-z_][A-Za-z0-9_+\-*/ ]{0,40}\}[A-Za-z0-9_]*)+(?=[A-Za-z0-9_]*\s{0,99}(?:\[|->|\{|\s*$))", re.M
)
_PROGRAM = re.compile(r"\.write\(|'''|\"\"\"|\brange\(|\bprint\(f?[\"']")
_AFTER_HTML = re.compile(r"[^\S\n]*(?:[,;\]}\n+]|$|[A-Za-z_]+[^\S\n]*=)")
_MAX_HTML = 65_536
_HEAD_TOKENS = 4
_MAX_REREADS = 40
"""Strings without an end for which the text is searched; later ones end with their line, so that time stays linear."""


@cache
def dot_grammar() -> Lark:
    """The grammar of DOT, from ``dot.lark`` beside this file."""
    text = files(__package__).joinpath("dot.lark").read_text(encoding="utf-8")
    return Lark(
        text, parser="lalr", lexer="basic", keep_all_tokens=True, maybe_placeholders=False, transformer=Actions()
    )


@cache
def _master() -> re.Pattern[str]:
    patterns = {
        t.name: t.pattern.to_regexp() for t in dot_grammar().terminals if t.name not in _KEYWORDS.values() and t.pattern
    }
    order = ["COMMENT", "STRING", "EDGEOP", *(n for n, _ in _DAMAGE), "NUMERAL", "NAME"]
    order += [n for n in patterns if n not in order]
    patterns |= dict(_DAMAGE)
    return re.compile("|".join([r"(?P<SPACE>\s+)", *(f"(?P<{n}>{patterns[n]})" for n in order)]))


class Scanner:
    """Reads tokens from ``text``. A NAME that is a keyword has that keyword's type; ``UNKNOWN`` is no terminal."""

    def __init__(self, text: str, report: Report) -> None:
        self.text = text
        self.report = report
        self.comments: list[str] = []
        """Comments before the first statement."""
        self._yielded = 0
        self.is_program = _PROGRAM.search(text) is not None
        self._rereads = 0

    def tokens(self, start: int) -> Iterator[Token]:
        """Tokens from ``start`` on, strings decoded, ``$END`` last. ``line`` is 1 where a token begins its line."""
        first = 1
        for token in self._tokens(start):
            if token.type == "NEWLINE":
                first = 1
                continue
            token.line, first = first, 0
            self._yielded += 1
            yield token

    def _tokens(self, start: int) -> Iterator[Token]:
        text, at, match, make = self.text, start, _master().match, Token
        while at < len(text):
            found = match(text, at)
            kind = found.lastgroup if found else None
            if found is None or kind is None:
                token, at = self._odd(at)
                yield token
                continue
            begin, at = at, found.end()
            if kind == "SPACE":
                if "\n" in found.group():
                    yield make("NEWLINE", "", begin)
                continue
            if kind == "NAME":
                value = found.group()
                kind = _KEYWORDS.get(value.lower(), "NAME")
                if self.is_program and text.startswith("{", at) and (hole := _HOLE.match(text, at)):
                    self.report.add(
                        "PD704",
                        "hole",
                        (at, hole.end()),
                        "a placeholder of the program that should have written the drawing",
                    )
                    value, at = text[begin : hole.end()], hole.end()
                    kind = "NAME"
                yield make(kind, value, begin, end_pos=at)
            elif kind == "STRING":
                value, at = self._string(found.group(), begin)
                yield make("STRING", value, begin, end_pos=at)
            elif kind == "COMMENT":
                if self._yielded <= _HEAD_TOKENS:
                    self.comments.append(found.group())
            elif kind in ("LOOP", "ELLIPSIS", "JOINED", "GLUED"):
                yield from self._damaged(kind, found.group(), begin, at)
            else:
                yield make(kind, found.group(), begin, end_pos=at)
        yield make("$END", "", len(text), end_pos=len(text))

    def _damaged(self, kind: str, value: str, begin: int, end: int) -> Iterator[Token]:
        place = (begin, end)
        if kind == "LOOP":
            self.report.add("PD704", "loop", place, "a loop where nodes and edges belong: Graphviz runs no programs")
            yield Token("LBRACE", "{", end - 1, end_pos=end)
        elif kind == "ELLIPSIS":
            self.report.add(
                "PD701", "ellipsis", place, "`...` where nodes and edges belong", "write every node and edge"
            )
        else:
            self.report.add(
                "PD701", "bare name", place, f"`{value[:60]}` is not one name without quotes", f'write `"{value[:60]}"`'
            )
            yield Token("NAME", value, begin, end_pos=end)

    def _odd(self, at: int) -> tuple[Token, int]:
        """What no pattern takes: HTML, a string or comment without an end, or a character of no use."""
        text = self.text
        if text[at] == "<" and (found := self._html(at)):
            return found
        if text[at] == '"':
            end = text.find("\n", at)
            end = len(text) if end < 0 else end
            if end == len(text) or self._rereads > _MAX_REREADS:
                self.report.add(
                    "PD703" if end == len(text) else "PD701",
                    "open string",
                    (at, end),
                    "a string without its closing quote",
                )
                return Token("STRING", _unescape(text[at + 1 : end]), at, end_pos=end), end
            self._rereads += 1
            return self._cut(at, end)
        if text.startswith("/*", at):
            self.report.add("PD703", "open comment", (at, at + 2), "a comment without its `*/`")
            return Token("$END", "", len(text), end_pos=len(text)), len(text)
        end = at + 1
        while end < len(text) and text[end] == text[at]:
            end += 1
        return Token("UNKNOWN", text[at:end], at, end_pos=end), end

    def _string(self, raw: str, begin: int) -> tuple[str, int]:
        """A quoted string and where it ends. One that ran on to the quote after the next `name=` lacked its own."""
        end = begin + len(raw)
        if "\n" in raw and re.search(r"[A-Za-z_]\s{0,9}=\s{0,9}$", raw[-40:-1]) and self._rereads <= _MAX_REREADS:
            self._rereads += 1
            token, end = self._cut(begin, self.text.index("\n", begin))
            return str(token), end
        return _unescape(raw[1:-1]), end

    def _cut(self, begin: int, line_end: int) -> tuple[Token, int]:
        """A string without its end: it ends with its line, before the line's closing bracket."""
        line = self.text[begin:line_end]
        stripped = line.rstrip().rstrip(";").rstrip()
        end = begin + (len(stripped) - 1 if stripped.endswith("]") else len(stripped))
        end = max(end, begin + 1)
        self.report.add("PD701", "open string", (begin, end), "a string without its closing quote", 'add `"`')
        return Token("STRING", _unescape(self.text[begin + 1 : end]), begin, end_pos=end), end

    def _html(self, begin: int) -> tuple[Token, int] | None:
        text, depth, at = self.text, 0, begin
        if self._rereads > _MAX_REREADS:
            return None
        for bracket in re.compile("[<>]").finditer(text, begin, begin + _MAX_HTML):
            at = bracket.end()
            depth += 1 if bracket.group() == "<" else -1
            if depth > 0:
                continue
            if not _AFTER_HTML.match(text, at):
                # `->` and `>` in the text should have been `&gt;`; the string goes on
                self.report.add(
                    "PD701", "html", (at - 1, at), "`>` in an HTML-like label ends the label", "write `&gt;`"
                )
                depth = 1
                continue
            return Token("HTML", Html(text[begin + 1 : at - 1]), begin, end_pos=at), at
        self._rereads += 1
        return None


def _unescape(inner: str) -> str:
    """DOT itself knows two escapes, the quote and the joined line; the others belong to labels."""
    return inner.replace("\\\r\n", "").replace("\\\n", "").replace('\\"', '"') if "\\" in inner else inner
