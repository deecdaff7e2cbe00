"""Expressions of a knowledge pack: whole arithmetic and conditions over named numbers, and nothing else of Python.

Values are computed in float64, which is exact for whole numbers up to 2^53, and the same for numbers and arrays. No
branch is left out: both sides of ``and``, ``or`` and ``if`` are computed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np

from ..diagnostics import Diagnostic, DiagnosticError, Span

MAX_LENGTH = 500
"""Characters of an expression."""

MAX_DEPTH = 50
"""Levels of nesting."""

MAX_NUMBER = 1e12
"""Largest number that may stand in one."""

Kind = Literal["number", "condition"]
Compute = Callable[[Mapping[str, Any]], Any]

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_SEVERAL: dict[str, Callable[[Any, Any], Any]] = {"max": np.maximum, "min": np.minimum}
_ONE: dict[str, Callable[[Any], Any]] = {"ceil": np.ceil, "floor": np.floor}

_ALLOWED = "numbers, names, + - * / // %, comparisons, and, or, not, `a if c else b`, max, min, ceil, floor"


class BadExpression(ValueError):
    """What is wrong with an expression; ``column`` counts from 0, ``end`` is exclusive."""

    def __init__(self, message: str, expected: str, node: ast.AST | None = None) -> None:
        super().__init__(message)
        self.expected = expected
        self.column: int = getattr(node, "col_offset", 0)
        self.end: int = getattr(node, "end_col_offset", None) or self.column + 1


@dataclass(frozen=True, eq=False)
class Expression:
    """A compiled expression.

    Attributes:
        text: As written.
        names: What it reads.
        kind: Whether it gives a number or a condition.
        span: Its place.
        compute: Its meaning.
    """

    text: str
    names: frozenset[str]
    kind: Kind
    span: Span
    compute: Compute

    def __reduce__(self) -> tuple[Callable[..., Expression], tuple[str, frozenset[str], Kind, Span]]:
        """It travels between processes as its text."""
        return parse_expression, (self.text, self.names, self.kind, self.span)

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Its value, a numpy scalar or an array; see :class:`paradag.compiler.spec.pack.Formula`."""
        try:
            with np.errstate(divide="raise", invalid="raise", over="raise"):
                return self.compute({n: np.asarray(values[n], dtype=np.float64) for n in self.names})
        except FloatingPointError:
            given = ", ".join(f"{n} = {values[n]}" for n in sorted(self.names) if np.ndim(values[n]) == 0)
            raise DiagnosticError(
                [
                    Diagnostic(
                        "PD043",
                        f"`{self.text}` divides by zero or overflows" + (f" with {given}" if given else ""),
                        self.span,
                        "a finite number for every strategy",
                        "divide by degrees only; both sides of `and`, `or` and `if` are computed",
                    )
                ]
            ) from None


def parse_expression(text: str, known: frozenset[str], kind: Kind, span: Span) -> Expression:
    """Compile an expression.

    Args:
        text: The expression.
        known: Names that it may read.
        kind: Whether it has to be a number or a condition.
        span: Its place, for what goes wrong later.

    Raises:
        BadExpression: it is none.
    """
    if len(text) > MAX_LENGTH:
        raise BadExpression(f"an expression of {len(text):,} characters", f"at most {MAX_LENGTH}")
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        told = error.msg if isinstance(error, SyntaxError) else "nested too deeply"
        found = BadExpression(f"`{text}` is no expression: {told}", _ALLOWED)
        found.column = max(0, (getattr(error, "offset", None) or 1) - 1)
        found.end = found.column + 1
        raise found from None
    builder = _Builder(known)
    compute = builder.node(body, kind)
    return Expression(text.strip(), frozenset(builder.names), kind, span, compute)


class _Builder:
    """Turns a syntax tree into functions, kind by kind."""

    def __init__(self, known: frozenset[str]) -> None:
        self.known = known
        self.names: set[str] = set()
        self.depth = 0

    def node(self, node: ast.expr, wanted: Kind) -> Compute:
        """The meaning of a node that has to be of the wanted kind."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise BadExpression("an expression nested too deeply", f"at most {MAX_DEPTH} levels", node)
        kind, compute = self._any(node)
        self.depth -= 1
        if kind != wanted:
            shown = ast.unparse(node)
            example = "such as `tp <= 8`" if wanted == "condition" else "such as `ep * etp`"
            raise BadExpression(f"`{shown}` is a {kind}", f"a {wanted}, {example}", node)
        return compute

    def _any(self, node: ast.expr) -> tuple[Kind, Compute]:
        match node:
            case ast.Constant(value=bool(value)):
                return "condition", lambda _: np.bool_(value)
            case ast.Constant(value=int(value) | float(value)) if abs(value) <= MAX_NUMBER:
                number = np.float64(value)
                return "number", lambda _: number
            case ast.Name(id=name):
                return "number", self._name(name, node)
            case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
                return "number", _both(_ARITHMETIC[type(op)], self.node(node.left, "number"), self._right(node))
            case ast.UnaryOp(op=ast.USub()):
                inner = self.node(node.operand, "number")
                return "number", lambda values: -inner(values)
            case ast.UnaryOp(op=ast.Not()):
                inner = self.node(node.operand, "condition")
                return "condition", lambda values: np.logical_not(inner(values))
            case ast.BoolOp(op=op):
                parts = [self.node(v, "condition") for v in node.values]
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return "condition", lambda values: reduce(join, (p(values) for p in parts))
            case ast.Compare():
                return "condition", self._compared(node)
            case ast.IfExp():
                return self._chosen(node)
            case ast.Call():
                return "number", self._called(node)
        raise BadExpression(f"`{ast.unparse(node)[:60]}` is not understood here", _ALLOWED, node)

    def _right(self, node: ast.BinOp) -> Compute:
        return self.node(node.right, "number")

    def _name(self, name: str, node: ast.expr) -> Compute:
        if name not in self.known:
            raise BadExpression(f"unknown name `{name}`", f"one of {', '.join(sorted(self.known))}", node)
        self.names.add(name)
        return lambda values: values[name]

    def _compared(self, node: ast.Compare) -> Compute:
        sides = [self.node(n, "number") for n in (node.left, *node.comparators)]
        for op in node.ops:
            if type(op) not in _COMPARISONS:
                raise BadExpression(f"`{ast.unparse(node)[:60]}` is not understood here", _ALLOWED, node)
        pairs = list(zip([_COMPARISONS[type(op)] for op in node.ops], sides, sides[1:], strict=False))
        parts = [_both(compare, left, right) for compare, left, right in pairs]
        return lambda values: reduce(np.logical_and, (p(values) for p in parts))

    def _chosen(self, node: ast.IfExp) -> tuple[Kind, Compute]:
        test = self.node(node.test, "condition")
        kind = self._any(node.body)[0]
        yes, no = self.node(node.body, kind), self.node(node.orelse, kind)
        return kind, lambda values: _where(test(values), yes(values), no(values))

    def _called(self, node: ast.Call) -> Compute:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        arguments = [self.node(a, "number") for a in node.args if not isinstance(a, ast.Starred)]
        fits = len(arguments) == 1 if name in _ONE else len(arguments) >= 2 and name in _SEVERAL
        if not fits or node.keywords or len(arguments) != len(node.args):
            expected = "max(a, b, ...), min(a, b, ...), ceil(a) or floor(a)"
            raise BadExpression(f"`{ast.unparse(node)[:60]}` is not understood here", expected, node)
        if name in _ONE:
            one, inner = _ONE[name], arguments[0]
            return lambda values: one(inner(values))
        several = _SEVERAL[name]
        return lambda values: reduce(several, (a(values) for a in arguments))


def _where(test: Any, yes: Any, no: Any) -> Any:
    return np.asarray(np.where(test, yes, no))[()]


def _both(operation: Callable[[Any, Any], Any], left: Compute, right: Compute) -> Compute:
    return lambda values: operation(left(values), right(values))
