"""From a changed spec to the edits of its text. Whatever a change does not concern stays as it is, byte for byte."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from ....compiler.diagnostics import Span
from ....compiler.spec import ChainTerm, LoadedSpec, Spec, StrategySpec
from ....compiler.spec.strategy import Phase

_TOKEN = re.compile(
    r"""
      (?P<skip> \s+ | \#[^\n]* )
    | (?P<sign> -> | [{}] )
    | (?P<number> -?\d+(?:_\d+)*(?:\.\d+)?(?:[eE][+-]?\d+)? )
    | (?P<name> [A-Za-z_]\w*(?:-\w+)* )
    | (?P<other> \S )
    """,
    re.VERBOSE | re.ASCII,
)
_BLANKS = " \t"
_OPTIONS = ("ranks", "microbatches", "chunk", "placement", "pools")
_TERM_OPTIONS = {"layers": (), "etp": None, "redundant": 0}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, order=True)
class _Edit:
    start: int
    end: int
    new: str


@dataclass
class _Term:
    """Where the parts of a chain term stand."""

    name: _Token
    degree: _Token | None = None
    kind: tuple[int, int] | None = None
    head_end: int = 0
    braces: tuple[int, int] | None = None
    options: dict[str, list[_Token]] = field(default_factory=dict)

    @property
    def start(self) -> int:
        return self.name.start

    @property
    def end(self) -> int:
        return self.braces[1] if self.braces else self.head_end


@dataclass(frozen=True)
class Patched:
    """A text after one step, and for each block that changed the exact text before and after."""

    text: str
    changes: tuple[tuple[str, str], ...]


def blocks(loaded: LoadedSpec) -> dict[Phase, tuple[Phase, ...]]:
    """For each phase those that share its block."""
    phases = [s.phase for s in loaded.spec.strategies]
    places = {p: loaded.span(f"strategy.{p}") for p in phases}
    shared = len(phases) == 2 and places[phases[0]] is not None and places[phases[0]] == places[phases[1]]
    return {p: tuple(phases) if shared else (p,) for p in phases}


def patch(loaded: LoadedSpec, new: Spec) -> Patched:
    """The text of ``loaded`` changed so that it reads as ``new``, which differs in strategies or in the batch.

    Raises:
        LookupError: the text does not hold what should be changed.
    """
    (text,) = loaded.texts.values()
    patcher = _Patcher(text, loaded)
    pieces: list[tuple[list[_Edit], list[tuple[int, int]]]] = []
    for phases in dict.fromkeys(blocks(loaded).values()):
        before, after = loaded.spec.strategy(phases[0]), new.strategy(phases[0])
        assert before is not None and after is not None
        if before != after:
            pieces.append(patcher.strategy(before, after))
    if loaded.spec.workload.batch != new.workload.batch:
        pieces.append(patcher.batch(new.workload.batch))
    return _applied(text, pieces)


def _applied(text: str, pieces: list[tuple[list[_Edit], list[tuple[int, int]]]]) -> Patched:
    edits = sorted(edit for piece, _ in pieces for edit in piece)
    if not edits or any(a.end > b.start for a, b in pairwise(edits)):
        raise LookupError("edits overlap")
    changes = []
    for piece, regions in pieces:
        start, end = _trimmed(text, min(e.start for e in piece), max(e.end for e in piece))
        inside = [r for r in regions if r[0] <= start and end <= r[1]]
        start, end = min(inside, key=lambda r: r[1] - r[0]) if inside else (start, end)
        start, end = min(start, *(e.start for e in piece)), max(end, *(e.end for e in piece))
        changes.append((text[start:end].strip(), _replaced(text, start, end, piece).strip()))
    return Patched(_replaced(text, 0, len(text), edits), tuple(changes))


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A range without the white space at its ends."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def _replaced(text: str, start: int, end: int, edits: list[_Edit]) -> str:
    parts = []
    for edit in sorted(edits):
        parts += [text[start : edit.start], edit.new]
        start = edit.end
    return "".join([*parts, text[start:end]])


class _Patcher:
    def __init__(self, text: str, loaded: LoadedSpec) -> None:
        self.text = text
        self.loaded = loaded
        # str.splitlines decides what a line is, as it does for the places of diagnostics
        self.lines = [0]
        for line in text.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    # --- places

    def place(self, path: str) -> tuple[int, int]:
        span = self.loaded.sources[path]
        return self._offset(span.line, span.column), self._end(span)

    def _offset(self, line: int, column: int) -> int:
        return self.lines[line - 1] + column - 1

    def _end(self, span: Span) -> int:
        return self._offset(span.end_line, span.end_column)

    def tokens(self, start: int, end: int | None = None) -> Iterator[_Token]:
        """Words, numbers and signs from an offset on."""
        limit = len(self.text) if end is None else end
        while start < limit:
            match = _TOKEN.match(self.text, start, limit)
            if match is None:
                return
            if match.lastgroup != "skip":
                yield _Token(str(match.lastgroup), match.group(), match.start(), match.end())
            start = match.end()

    def term(self, start: int) -> _Term:
        """The parts of the term that begins at an offset."""
        stream = self.tokens(start)
        term = _Term(next(stream))
        second = next(stream)
        term.head_end = second.end
        if second.kind == "number":
            term.degree = second
        token = next(stream, None)
        if token is not None and token.text == "kind":
            name = next(stream)
            term.kind, term.head_end = (token.start, name.end), name.end
            token = next(stream, None)
        if token is None or token.text != "{":
            return term
        opening, option = token.start, ""
        for token in stream:
            if token.text == "}":
                term.braces = (opening, token.end)
                return term
            if token.kind == "name" and token.text in _TERM_OPTIONS:
                option = token.text
                term.options[option] = []
            term.options[option].append(token)
        raise LookupError("term not closed")

    # --- one strategy

    def strategy(self, old: StrategySpec, new: StrategySpec) -> tuple[list[_Edit], list[tuple[int, int]]]:
        """Edits, and the regions (terms, chain, options) in which they may be shown."""
        path = f"strategy.{old.phase}"
        terms = [self.term(self.place(f"{path}.chain.{i}")[0]) for i in range(len(old.chain))]
        regions = [(t.start, t.end) for t in terms]
        if terms:
            regions.append((terms[0].start, terms[-1].end))
        edits = self._chain(old.chain, new.chain, terms, path)
        for option in _OPTIONS:
            if getattr(old, option) != getattr(new, option):
                edit, region = self._option(option, getattr(new, option), path, terms)
                edits.append(edit)
                regions.append(region)
        return edits, regions

    def batch(self, value: int | None) -> tuple[list[_Edit], list[tuple[int, int]]]:
        start, end = self.place("workload.batch")
        _, number, *_ = self.tokens(start, end)
        return [_Edit(number.start, number.end, str(value))], [(start, end)]

    def _option(self, name: str, value: object, path: str, terms: list[_Term]) -> tuple[_Edit, tuple[int, int]]:
        shown = " ".join(value) if isinstance(value, tuple) else str(value)
        known = f"{path}.{name}" in self.loaded.sources
        if not known:
            new = f"{name} {shown}"
            if terms:
                at = terms[-1].end
                return _Edit(at, at, f"  {new}"), (at, at)
            return self._first(path, new), (0, 0)
        start, end = self.place(f"{path}.{name}")
        if value is None or value == ():
            return self._cut(start, end), (start, end)
        _, first, *_ = self.tokens(start, end)
        unit = " tokens" if name == "chunk" and self.text[start:end].endswith("tokens") else ""
        return _Edit(first.start, end, shown + unit), (start, end)

    def _first(self, path: str, new: str) -> _Edit:
        """``new`` as the first thing in a strategy's braces."""
        _, head_end = self.place(path)
        brace = next(t for t in self.tokens(head_end) if t.text == "{")
        gap = "" if self.text[brace.end : brace.end + 1].isspace() else " "
        return _Edit(brace.end, brace.end, f" {new}{gap}")

    # --- the chain

    def _chain(
        self, old: tuple[ChainTerm, ...], new: tuple[ChainTerm, ...], terms: list[_Term], path: str
    ) -> list[_Edit]:
        origin = _origins(old, new)
        known = [o for o in origin if o is not None]
        if known != sorted(known):
            return [
                _Edit(at.start, at.end, self.text[terms[o].start : terms[o].end])
                for at, o in zip(terms, known, strict=True)
                if at is not terms[o]
            ]
        edits = [
            edit for t, o in zip(new, origin, strict=True) if o is not None for edit in self._term(old[o], t, terms[o])
        ]
        edits += self._removed([i for i in range(len(old)) if i not in known], terms)
        for index, o in enumerate(origin):
            if o is None:
                edits.append(self._inserted(_shown(new[index]), origin[index + 1 :], known, terms, path))
        return edits

    def _removed(self, gone: list[int], terms: list[_Term]) -> list[_Edit]:
        """Without some terms, and for each without the arrow to what stays."""
        arrows = []
        for a, b in pairwise(terms):
            arrow = next(t for t in self.tokens(a.end, b.start) if t.text == "->")
            arrows.append((arrow.start, arrow.end))
        ranges: list[tuple[int, int]] = []
        kept = False
        for index, term in enumerate(terms):
            if index not in gone:
                kept = True
                continue
            ranges.append((term.start, term.end))
            if kept:
                ranges.append(arrows[index - 1])
            elif index < len(arrows):
                ranges.append(arrows[index])
        merged: list[tuple[int, int]] = []
        for start, end in sorted(ranges):
            if merged and not self.text[merged[-1][1] : start].strip(_BLANKS):
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        return [self._cut(*each) for each in merged]

    def _inserted(self, new: str, after: list[int | None], known: list[int], terms: list[_Term], path: str) -> _Edit:
        following = next((o for o in after if o is not None), None)
        if following is not None:
            at = terms[following].start
            return _Edit(at, at, f"{new} -> ")
        if known:
            at = terms[known[-1]].end
            return _Edit(at, at, f" -> {new}")
        return self._first(path, new)

    def _term(self, old: ChainTerm, new: ChainTerm, at: _Term) -> Iterator[_Edit]:
        if old.name != new.name:
            yield _Edit(at.name.start, at.name.end, new.name)
        if old.degree != new.degree:
            if at.degree is None:
                raise LookupError("term without a degree")
            yield _Edit(at.degree.start, at.degree.end, str(new.degree))
        if old.kind != new.kind:
            if new.kind is not None or at.kind is None:
                raise LookupError("kinds are only removed")
            yield self._cut(*at.kind)
        changed = [o for o in _TERM_OPTIONS if getattr(old, o) != getattr(new, o)]
        left = [o for o, empty in _TERM_OPTIONS.items() if getattr(new, o) != empty]
        if changed and not left and at.braces and "#" not in self.text[slice(*at.braces)]:
            yield self._cut(*at.braces)
            return
        fresh = []
        for option in changed:
            value = getattr(new, option)
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            tokens = at.options.get(option)
            if not tokens:
                fresh.append(f"{option} {shown}")
            elif option in left:
                yield _Edit(tokens[1].start, tokens[-1].end, shown)
            else:
                yield self._cut(tokens[0].start, tokens[-1].end)
        if fresh:
            yield self._with_options("  ".join(fresh), at)

    def _with_options(self, new: str, at: _Term) -> _Edit:
        if at.braces is None:
            return _Edit(at.head_end, at.head_end, f" {{ {new} }}")
        if at.options:
            end = max(t.end for tokens in at.options.values() for t in tokens)
            return _Edit(end, end, f"  {new}")
        return _Edit(at.braces[0] + 1, at.braces[0] + 1, f" {new} ")

    def _cut(self, start: int, end: int) -> _Edit:
        """The removal of a piece with the blanks, or the whole line, that are left over."""
        text = self.text
        left, right = start, end
        while left and text[left - 1] in _BLANKS:
            left -= 1
        while right < len(text) and text[right] in _BLANKS:
            right += 1
        line_end = right == len(text) or text[right] in "\r\n"
        line_start = left == self.lines[bisect_right(self.lines, start) - 1]
        if line_start and line_end:
            newline = 2 if text[right : right + 2] == "\r\n" else 1
            return _Edit(left, min(len(text), right + newline), "")
        if line_end:
            return _Edit(left, right, "")
        if line_start or left == start:
            return _Edit(start, right, "")
        return _Edit(left, end, "")


def _origins(old: tuple[ChainTerm, ...], new: tuple[ChainTerm, ...]) -> list[int | None]:
    """For each new term the old one that it comes from: itself, one of its name, or the one in its place."""
    where = {id(t): i for i, t in enumerate(old)}
    origin: list[int | None] = [where.get(id(t)) for t in new]
    free = [i for i in range(len(old)) if i not in origin]
    for index, term in enumerate(new):
        if origin[index] is None:
            found = next((i for i in free if old[i].name == term.name), None)
            if found is None and len(old) == len(new) and index in free:
                found = index
            if found is not None:
                free.remove(found)
            origin[index] = found
    return origin


def _shown(term: ChainTerm) -> str:
    """A term that a repair adds: name and degree."""
    return f"{term.name} {term.degree}"
