"""The parsed file as plain data: statements with key, values and block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from lark import Token, Tree

from ..compiler.diagnostics import Span

__all__ = ["File", "Quantity", "Statement", "statements", "token_span"]


@dataclass(frozen=True)
class Quantity:
    """A number and its unit, as written."""

    number: Token
    unit: Token | None


@dataclass
class Statement:
    """``key values { block }``. A chain has no key: its terms, themselves statements, are its ``block``."""

    key: Token
    values: list[Token | Quantity] = field(default_factory=list)
    efficiency: Quantity | None = None
    """The quantity after ``at``."""
    block: list[Statement] | None = None
    is_chain: bool = False
    opening: Token | None = None
    """The ``{`` of the block."""
    closing: Token | None = None
    """The ``}`` of the block."""

    def quantities(self) -> list[Quantity]:
        return [v for v in self.values if isinstance(v, Quantity)]

    def tokens(self, *types: str) -> list[Token]:
        return [v for v in self.values if isinstance(v, Token) and v.type in types]

    def span(self, file: str) -> Span:
        """From the key to the last value, the block excluded."""
        last = self.key
        for value in self.values:
            last = value if isinstance(value, Token) else value.unit or value.number
        if self.efficiency is not None:
            last = self.efficiency.unit or self.efficiency.number
        start, end = token_span(self.key, file), token_span(last, file)
        return Span(file, start.line, start.column, end.end_line, end.end_column)


File = list[Statement]


def token_span(token: Token, file: str) -> Span:
    """The span of a token, end exclusive."""
    line, column = token.line or 1, token.column or 1
    return Span(file, line, column, token.end_line or line, token.end_column or column + len(token))


def statements(tree: Tree[Token]) -> File:
    """The top-level statements of a parse tree."""
    return [_statement(cast("Tree[Token]", child)) for child in tree.children]


def _statement(tree: Tree[Token]) -> Statement:
    first = tree.children[0]
    if isinstance(first, Tree):
        terms = [_statement(t) for t in first.children if isinstance(t, Tree)]
        return Statement(terms[0].key, block=terms, is_chain=True)
    statement = Statement(first)
    for child in tree.children[1:]:
        if isinstance(child, Token):
            if child.type == "LBRACE":
                statement.block, statement.opening = [], child
            elif child.type == "RBRACE":
                statement.closing = child
            else:
                statement.values.append(child)
        elif child.data == "quantity":
            statement.values.append(_quantity(child))
        elif child.data == "efficiency":
            statement.efficiency = _quantity(cast("Tree[Token]", child.children[1]))
        elif statement.block is not None:
            statement.block.append(_statement(child))
    return statement


def _quantity(tree: Tree[Token]) -> Quantity:
    number, *unit = cast("list[Token]", tree.children)
    return Quantity(number, unit[0] if unit else None)
