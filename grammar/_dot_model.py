"""What a Graphviz text says: graphs, their nodes, edges and clusters, each with its place in the text."""

from __future__ import annotations

import html
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..compiler.diagnostics import Diagnostic, Span

__all__ = ["Cluster", "DotEdge", "DotGraph", "DotNode", "Drawing", "Html", "Place"]

Place = tuple[int, int]
"""Offsets of the first character and of the one past the last."""

_NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})
_BREAK = re.compile(r"(?i)<br\b[^<>]*>|</(?:tr|p|li|div)\s*>")
_TAG = re.compile(r"<[^<>]*>")


class Html(str):
    """An HTML-like string: the text between its outer angle brackets."""

    __slots__ = ()


def text_of(value: str, name: str) -> str:
    r"""A label as its reader sees it: ``\n``, ``\l``, ``\r`` and ``<br/>`` are line ends, ``\N`` is the node's name."""
    if isinstance(value, Html):
        return html.unescape(_TAG.sub("", _BREAK.sub("\n", value)))
    if "\\" not in value:
        return value
    return re.sub(r"\\([\s\S])", lambda m: "\n" if m[1] in "nlr" else name if m[1] in "NG" else str(m[1]), value)


@dataclass(slots=True)
class DotNode:
    """A node; ``defaults`` are the ``node [...]`` attributes in force where it first appeared."""

    name: str
    place: Place
    own: dict[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=lambda: _NO_ATTRIBUTES)
    declared: bool = False
    """Whether a node statement names it; else an edge alone created it."""
    labels: list[tuple[str, Place]] = field(default_factory=list)
    """Every label that a statement gave it."""
    cluster: Cluster | None = None
    """The innermost cluster that holds it."""

    def attribute(self, key: str, default: str = "") -> str:
        return self.own.get(key, self.defaults.get(key, default))

    @property
    def label(self) -> str:
        """The label as drawn; without one, the name."""
        value = self.attribute("label", "\\N")
        return text_of(value, self.name)


@dataclass(slots=True)
class DotEdge:
    """An edge from node to node; edges to subgraphs are already spread out."""

    source: str
    target: str
    place: Place
    own: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=lambda: _NO_ATTRIBUTES)

    def attribute(self, key: str, default: str = "") -> str:
        return self.own.get(key, self.defaults.get(key, default))

    @property
    def label(self) -> str:
        texts = [text_of(v, "") for k in ("label", "xlabel") if (v := self.attribute(k))]
        return "\n".join(texts)


@dataclass(slots=True)
class Cluster:
    """A subgraph that is drawn as a box: its name begins with ``cluster``."""

    name: str
    place: Place
    parent: Cluster | None
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return text_of(self.attributes.get("label", ""), self.name)

    def outward(self) -> Iterator[Cluster]:
        """This cluster and those around it, innermost first."""
        at: Cluster | None = self
        while at is not None:
            yield at
            at = at.parent


@dataclass(slots=True)
class DotGraph:
    """One graph of a file."""

    name: str
    directed: bool
    strict: bool
    place: Place
    nodes: dict[str, DotNode] = field(default_factory=dict)
    edges: list[DotEdge] = field(default_factory=list)
    clusters: list[Cluster] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)
    """Comments before its first statement."""

    @property
    def label(self) -> str:
        return text_of(self.attributes.get("label", ""), self.name)


@dataclass
class Drawing:
    """A file of Graphviz text, as much of it as could be read."""

    file: str
    text: str
    graphs: list[DotGraph] = field(default_factory=list)
    findings: list[Diagnostic] = field(default_factory=list)
    """What is wrong with the text itself."""
    _lines: list[int] = field(default_factory=list, repr=False)

    def span(self, place: Place) -> Span:
        """Lines and columns of a place."""
        line, column = self._position(place[0])
        end_line, end_column = self._position(max(place[1], place[0] + 1))
        return Span(self.file, line, column, end_line, end_column)

    def line(self, place: Place) -> int:
        return self._position(place[0])[0]

    def _position(self, offset: int) -> tuple[int, int]:
        if not self._lines:
            self._lines = [0, *(m.end() for m in re.finditer("\n", self.text))]
        line = bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1
