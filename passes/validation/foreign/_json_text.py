"""JSON text to its leaves with paths and places, however damaged the text is."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field

from ....compiler.diagnostics import Diagnostic, Span

__all__ = ["JsonText", "Leaf", "Scalar", "read_json"]

Scalar = str | int | float | bool | None

_MAX_DEPTH = 100
_MAX_LEAVES = 100_000
_TOKEN = re.compile(
    r'(?P<space>\s+|//[^\n]*|/\*[\s\S]*?\*/)|(?P<string>"[^"\\]*(?:\\[\s\S][^"\\]*)*")|(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)'
    r"|(?P<word>[A-Za-z_]\w*)|(?P<mark>[\[\]{},:])|(?P<other>.)"
)
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


@dataclass(frozen=True)
class Leaf:
    """A value with the keys that lead to it; positions in lists are numbers among them."""

    path: tuple[str | int, ...]
    value: Scalar
    start: int
    end: int

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(k for k in self.path if isinstance(k, str))

    @property
    def name(self) -> str:
        """The path as people write it."""
        return ".".join(str(k) for k in self.path)

    @property
    def in_list(self) -> bool:
        return any(isinstance(k, int) for k in self.path)


@dataclass
class JsonText:
    """The leaves of a text, in order, and what is wrong with the text."""

    file: str
    text: str
    leaves: list[Leaf] = field(default_factory=list)
    findings: list[Diagnostic] = field(default_factory=list)
    _lines: list[int] = field(default_factory=list, repr=False)

    def span(self, start: int, end: int) -> Span:
        if not self._lines:
            self._lines = [0, *(m.end() for m in re.finditer("\n", self.text))]
        ends = []
        for offset in (start, max(end, start + 1)):
            line = bisect_right(self._lines, offset)
            ends.append((line, offset - self._lines[line - 1] + 1))
        return Span(self.file, *ends[0], *ends[1])

    def place(self, leaf: Leaf) -> Span:
        return self.span(leaf.start, leaf.end)


def read_json(text: str, file: str) -> JsonText:
    """The leaves of ``text``; a comma too many, a comment or a missing end is one finding, the rest is read on."""
    return _Reader(text, file).read()


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        self.out = JsonText(file, text)
        self.first: tuple[int, str] | None = None
        self.path: list[str | int] = []
        self.closers: list[str] = []
        """The bracket that closes each open value."""
        self.key: str | None = None
        self.expects_value = False

    def read(self) -> JsonText:
        text = self.out.text
        begin = re.search(r"[{\[]", text)
        if begin is None:
            self._fault(0, "no JSON object")
            return self._done()
        if text[: begin.start()].strip():
            self._fault(0, "text before the JSON object")
        for match in _TOKEN.finditer(text, begin.start()):
            if match.lastgroup == "space":
                if match.group().startswith("/"):
                    self._fault(match.start(), "a comment, which JSON does not have")
                continue
            if not self._take(match.lastgroup or "other", match):
                break
            if not self.closers:
                if text[match.end() :].strip():
                    self._fault(match.end(), "text after the JSON object")
                break
        if self.closers:
            self._fault(max(0, len(text) - 1), f"the text ends before `{self.closers[-1]}`")
        return self._done()

    def _take(self, kind: str, match: re.Match[str]) -> bool:
        """One token; False where reading stops."""
        text, at = match.group(), match.start()
        if kind == "mark" and text in "{[":
            if len(self.closers) >= _MAX_DEPTH or len(self.out.leaves) >= _MAX_LEAVES:
                self._fault(at, "reading stopped here: too deep or too long")
                self.closers.clear()
                return False
            self._begin("}" if text == "{" else "]")
        elif kind == "mark" and text in "}]":
            self._close(text, at)
        elif kind == "mark":
            self.expects_value = text == ":" or (bool(self.closers) and self.closers[-1] == "]")
        elif self.closers and self.closers[-1] == "}" and not self.expects_value:
            self.key = _decoded(text) if kind == "string" else text
            if kind not in ("string", "word"):
                self._fault(at, f"`{text}` where a key belongs")
            elif kind == "word":
                self._fault(at, f"the key `{text[:40]}` without quotes")
        else:
            self._leaf(kind, text, at, match.end())
        return True

    def _here(self) -> tuple[str | int, ...]:
        """The path of the value that begins now; counts positions of lists."""
        if not self.closers:
            return ()
        if self.closers[-1] == "}":
            return (*self.path[: len(self.closers) - 1], self.key or "")
        position = self.path[len(self.closers) - 1]
        index = position + 1 if isinstance(position, int) else 0
        self.path[len(self.closers) - 1] = index
        return (*self.path[: len(self.closers) - 1], index)

    def _begin(self, closer: str) -> None:
        self.path = list(self._here())
        self.closers.append(closer)
        self.path.append(-1 if closer == "]" else "")
        self.key, self.expects_value = None, closer == "]"

    def _close(self, mark: str, at: int) -> None:
        if mark != self.closers[-1]:
            self._fault(at, f"`{mark}` where `{self.closers[-1]}` belongs")
            if mark not in self.closers:
                return
        while self.closers.pop() != mark:
            self.path.pop()
        self.path.pop()
        self.expects_value = bool(self.closers) and self.closers[-1] == "]"
        self.key = None

    def _leaf(self, kind: str, text: str, at: int, end: int) -> None:
        value: Scalar = text
        if kind == "string":
            value = _decoded(text)
        elif kind == "number":
            value = float(text) if not text.lstrip("-").isdigit() or len(text) > 18 else int(text)
        elif text in _WORDS:
            value = _WORDS[text]
            if text[0].isupper():
                self._fault(at, f"`{text}` is Python, not JSON")
        else:
            self._fault(at, f"unexpected `{text[:40]}`")
            if kind == "other":
                return
        if len(self.out.leaves) < _MAX_LEAVES:
            self.out.leaves.append(Leaf(self._here(), value, at, end))
        self.expects_value = self.closers[-1] == "]"

    def _fault(self, at: int, message: str) -> None:
        if self.first is None:
            self.first = (at, message)

    def _done(self) -> JsonText:
        """Report the first fault, and whatever the strict reader finds besides."""
        out = self.out
        if self.first is None and out.leaves:
            try:
                json.loads(out.text)
            except (ValueError, RecursionError) as error:
                self.first = (getattr(error, "pos", 0), getattr(error, "msg", "malformed").lower())
        if self.first is not None:
            at, message = self.first
            out.findings.append(
                Diagnostic("PD750", f"malformed JSON: {message}", out.span(at, at + 1), "one JSON object")
            )
        return out


def _decoded(text: str) -> str:
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text[1:-1]
