"""The parse of a DOT text as plain data: what the grammar's rules make of their parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lark import Token, Transformer

from ._dot_model import Html, Place

__all__ = [
    "Actions",
    "Assignment",
    "Attribute",
    "Defaults",
    "EdgeChain",
    "Endpoint",
    "GraphText",
    "NodeText",
    "Statements",
    "Subgraph",
]

Attribute = tuple[str, str]


class Statements(list[Any]):
    """The statements of one body, so far."""

    place: Place = (0, 0)


@dataclass(slots=True)
class Name:
    text: str
    place: Place


@dataclass(slots=True)
class Assignment:
    key: str
    value: str


@dataclass(slots=True)
class Defaults:
    target: str
    """``graph``, ``node`` or ``edge``."""
    attributes: list[Attribute]


@dataclass(slots=True)
class Subgraph:
    name: str
    place: Place
    statements: Statements


Endpoint = Name | Subgraph


@dataclass(slots=True)
class NodeText:
    node: Endpoint
    attributes: list[Attribute]
    place: Place


@dataclass(slots=True)
class EdgeChain:
    ends: list[Endpoint]
    operators: list[Token]
    attributes: list[Attribute]


@dataclass(slots=True)
class GraphText:
    strict: bool
    directed: bool
    name: str
    place: Place
    statements: Statements = field(default_factory=Statements)


def _place(token: Token) -> Place:
    return (token.start_pos or 0, token.end_pos or 0)


class Actions(Transformer[Token, Any]):
    """One method per rule. A body is a list that grows, so that reading is linear in the text."""

    def start(self, parts: list[Any]) -> GraphText:
        tokens = [p for p in parts if isinstance(p, Token)]
        name = next((p.text for p in parts if isinstance(p, Name)), "")
        strict, directed = (any(t.type == kind for t in tokens) for kind in ("STRICT", "DIGRAPH"))
        return GraphText(strict, directed, name, (_place(tokens[0])[0], _place(tokens[-1])[1]), parts[-1])

    def body(self, parts: list[Any]) -> Statements:
        statements: Statements = parts[1]
        statements.place = _place(parts[0])
        return statements

    def statements(self, parts: list[Any]) -> Statements:
        if not parts:
            return Statements()
        if not isinstance(parts[1], Token):
            parts[0].append(parts[1])
        return parts[0]  # type: ignore[no-any-return]

    def statement(self, parts: list[Any]) -> Token:
        return parts[0]  # type: ignore[no-any-return]

    def assignment(self, parts: list[Any]) -> Assignment:
        return Assignment(parts[0].text, parts[2].text)

    def defaults(self, parts: list[Any]) -> Defaults:
        return Defaults(parts[0].type.lower(), parts[1])

    def node(self, parts: list[Any]) -> NodeText:
        return NodeText(parts[0], parts[1], parts[0].place)

    def edge(self, parts: list[Any]) -> EdgeChain:
        return EdgeChain(parts[0:-1:2], parts[1:-1:2], parts[-1])

    def endpoint(self, parts: list[Any]) -> Endpoint:
        return parts[0]  # type: ignore[no-any-return]  # the port is where on the node's border, no matter here

    def subgraph(self, parts: list[Any]) -> Subgraph:
        name = next((p.text for p in parts if isinstance(p, Name)), "")
        place = _place(parts[0]) if isinstance(parts[0], Token) else parts[-1].place
        return Subgraph(name, place, parts[-1])

    def attr_lists(self, parts: list[Any]) -> list[Attribute]:
        if not parts:
            return []
        parts[0].extend(parts[1])
        return parts[0]  # type: ignore[no-any-return]

    def attr_lists1(self, parts: list[Any]) -> list[Attribute]:
        if len(parts) > 1:
            parts[0].extend(parts[1])
        return parts[0]  # type: ignore[no-any-return]

    def attr_list(self, parts: list[Any]) -> list[Attribute]:
        return parts[1]  # type: ignore[no-any-return]

    def attrs(self, parts: list[Any]) -> list[Attribute]:
        if not parts:
            return []
        if isinstance(parts[1], tuple):
            parts[0].append(parts[1])
        return parts[0]  # type: ignore[no-any-return]

    def attr(self, parts: list[Any]) -> Attribute:
        return (parts[0].text, parts[2].text if len(parts) > 2 else "true")

    def id(self, parts: list[Any]) -> Name:
        part = parts[0]
        if isinstance(part, Name):
            return part
        return Name(part.value if isinstance(part.value, Html) else str(part.value), _place(part))

    def string(self, parts: list[Any]) -> Name:
        if len(parts) == 1:
            return Name(str(parts[0].value), _place(parts[0]))
        return Name(parts[0].text + str(parts[2].value), (parts[0].place[0], _place(parts[2])[1]))
