"""The syntax tree of the textual IR, and the parser that makes it. Nothing here knows what the words mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple, cast

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from ..diagnostics import Diagnostic, Span

__all__ = [
    "ArgSyntax",
    "BlockSyntax",
    "CutSyntax",
    "DimSyntax",
    "GraphSyntax",
    "Literal",
    "NodeSyntax",
    "ParamSyntax",
    "RangeSyntax",
    "SizeSyntax",
    "TypeSyntax",
    "parse_syntax",
    "syntax_error",
    "token_span",
]

Pairs = Sequence[tuple[Token, "Literal"]]


class Literal(NamedTuple):
    """A number, word, string, or a collection of such; ``depth`` of nesting; ``twice`` is a key given twice inside."""

    value: Any
    depth: int = 0
    twice: Token | None = None


class CutSyntax(NamedTuple):
    """``name{axis,axis}``."""

    name: Token
    axes: Sequence[Token]


class SizeSyntax(NamedTuple):
    """A dimension's size: ``fixed`` 4096, ``extent`` past, ``window`` window(128), ``rows`` (batch{..} * new{..})."""

    form: str
    words: Sequence[Token]
    cuts: Sequence[Sequence[Token]] = ()


class DimSyntax(NamedTuple):
    """``name:size{axes} shift 1``."""

    name: Token
    size: SizeSyntax | None
    axes: Sequence[Token]
    shift: Token | None


class TypeSyntax(NamedTuple):
    """A tensor type."""

    dtype: Token
    dims: Sequence[DimSyntax]
    partial: Sequence[tuple[Token, Token]]
    density: tuple[Token, Token | None] | None


class ParamSyntax(NamedTuple):
    """A weight or constant."""

    const: bool
    name: Token
    type: TypeSyntax


class NodeSyntax(NamedTuple):
    """A node; ``suffixes`` are (keyword, argument) pairs."""

    label: Token | None
    outputs: Sequence[Token]
    op: Token
    inputs: Sequence[Token]
    params: Sequence[ParamSyntax]
    attrs: Pairs
    types: Sequence[TypeSyntax]
    suffixes: Sequence[tuple[str, Any]]


class ArgSyntax(NamedTuple):
    """A block argument."""

    name: Token
    type: TypeSyntax
    carry: Token
    source: Token | None
    init: Token | None


class RangeSyntax(NamedTuple):
    """``first..last by step``."""

    first: Token
    last: Token | None
    step: Token | None


class BlockSyntax(NamedTuple):
    """A block."""

    role: Token
    name: Token | None
    layers: Sequence[RangeSyntax]
    args: Sequence[ArgSyntax]
    nodes: Sequence[NodeSyntax]
    result: Token | None


class GraphSyntax(NamedTuple):
    """The whole text."""

    name: Token
    phase: Token
    level: Token
    axes: Sequence[tuple[Token, Token, Token]]
    mesh_facts: Sequence[tuple[Token, ...]]
    views: Sequence[CutSyntax]
    stages: Sequence[Token]
    steps: Token | None
    items: Sequence[tuple[RangeSyntax, Sequence[Sequence[tuple[Token, Token]]]]]
    stream: TypeSyntax
    meta: Pairs
    blocks: Sequence[BlockSyntax]


def parse_syntax(text: str) -> GraphSyntax:
    """The syntax tree of ``text``.

    Raises:
        lark.exceptions.UnexpectedInput: see :func:`syntax_error`.
    """
    return cast("GraphSyntax", _parser().parse(text))


def token_span(token: Token, file: str) -> Span:
    """The span of a token, end exclusive."""
    line, column = token.line or 1, token.column or 1
    return Span(file, line, column, token.end_line or line, token.end_column or column + len(token))


def syntax_error(error: UnexpectedInput, text: str, file: str) -> Diagnostic:
    """What the parser stumbled over, in the words of the language."""
    names: set[str] = set()
    if isinstance(error, UnexpectedToken) and error.token.type != "$END":
        names = error.accepts or error.expected
        span = token_span(error.token, file)
        source = text[error.token.start_pos : error.token.end_pos]
        found = f"`{source[:40]}{'…' if len(source) > 40 else ''}`"
    elif isinstance(error, UnexpectedCharacters):
        names = error.allowed
        span = Span(file, error.line, error.column, error.line, error.column + 1)
        found = f"character {error.char!r}"
    else:
        names = error.accepts or error.expected if isinstance(error, UnexpectedToken) else set()
        if isinstance(error, UnexpectedEOF):
            names = set(error.expected)
        lines = text.splitlines() or [""]
        span = Span(file, len(lines), len(lines[-1]) + 1, len(lines), len(lines[-1]) + 2)
        found = "end of the text"
    return Diagnostic("PD418", f"unexpected {found}", span, _expectation(names))


_SPOKEN = {
    "NAME": "a name", "STRING": "a quoted string", "NUMBER": "a number", "VALUE": "a value such as `%x`",
    "$END": "the end of the text",
}  # fmt: skip


def _expectation(names: set[str]) -> str | None:
    patterns = {t.name: t.pattern for t in _parser().terminals}
    spoken = {_SPOKEN.get(n) or f"`{patterns[n].value}`" for n in names if n in _SPOKEN or n in patterns}
    words = sorted(w for w in spoken if not w.startswith("`/"))
    if len(words) < 2:
        return "".join(words) or None
    return f"{', '.join(words[:-1])} or {words[-1]}"


@cache
def _parser() -> Lark:
    grammar = files(__package__).joinpath("ir.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="contextual", transformer=_ToSyntax(), maybe_placeholders=True)


def _some(items: Sequence[Any]) -> list[Any]:
    """Without the placeholders of absent optional lists."""
    return [i for i in items if i is not None]


@v_args(inline=True)
class _ToSyntax(Transformer[Token, GraphSyntax]):
    """Builds the tree while parsing, so that tokens live no longer than needed."""

    def STRING(self, token: Token) -> Token:
        return Token.new_borrow_pos("STRING", json.loads(token), token)

    def VALUE(self, token: Token) -> Token:
        name = token[1:]
        return Token.new_borrow_pos("VALUE", json.loads(name) if name.startswith('"') else str(name), token)

    def start(self, *parts: Any) -> GraphSyntax:
        name, phase, level, (axes, facts), views, stages, steps, items, stream, meta, *blocks = parts
        return GraphSyntax(name, phase, level, axes, facts, views, stages, steps, items, stream, meta or (), blocks)

    def mesh(self, *parts: Any) -> tuple[list[Any], list[Any]]:
        return [p for p in _some(parts) if len(p) == 3 and p[0].type in _NAMES], [
            p for p in _some(parts) if p[0].type not in _NAMES
        ]

    def mesh_fact(self, *parts: Token) -> tuple[Token, ...]:
        return parts

    def axis(self, name: Token, size: Token, stride: Token) -> tuple[Token, Token, Token]:
        return name, size, stride

    def steps(self, number: Token) -> Token:
        return number

    def stream(self, t: TypeSyntax) -> TypeSyntax:
        return t

    def meta(self, pairs: Pairs) -> Pairs:
        return pairs

    def microbatch(self, numbers: RangeSyntax, *chunks: Any) -> tuple[RangeSyntax, Any]:
        return numbers, chunks

    def chunk_fact(self, key: Token, value: Token) -> tuple[Token, Token]:
        return key, value

    def block(self, role: Token, name: Token | None, layers: Any, *body: Any) -> BlockSyntax:
        args = [b for b in body if isinstance(b, ArgSyntax)]
        nodes = [b for b in body if isinstance(b, NodeSyntax)]
        return BlockSyntax(role, name, layers or (), args, nodes, body[-1])

    def arg(self, name: Token, t: TypeSyntax, carry: Token, source: Any, init: Any) -> ArgSyntax:
        return ArgSyntax(name, t, carry, source, init)

    def result(self, value: Token) -> Token:
        return value

    def node(
        self, label: Any, outputs: Any, op: Token, inputs: Any, params: Any, attrs: Any, types: Any, *suffixes: Any
    ) -> NodeSyntax:
        return NodeSyntax(label, outputs or (), op, inputs, params or (), attrs or (), types or (), suffixes)

    def param(self, const: Token | None, name: Token, t: TypeSyntax) -> ParamSyntax:
        return ParamSyntax(const is not None, name, t)

    def module(self, name: Token) -> tuple[str, Token]:
        return "@", name

    def where(self, *cuts: CutSyntax) -> tuple[str, Any]:
        return "where", cuts

    def mask(self, keyword: Token, name: Token) -> tuple[str, Token]:
        return str(keyword), name

    def tensor(self, dtype: Token, *parts: Any) -> TypeSyntax:
        *dims, partial, density = parts
        return TypeSyntax(dtype, _some(dims), partial or (), density)

    def dim(self, name: Token, size: SizeSyntax | None, axes: Any, shift: Token | None) -> DimSyntax:
        return DimSyntax(name, size, axes or (), shift)

    def fixed(self, number: Token) -> SizeSyntax:
        return SizeSyntax("fixed", [number])

    def extent(self, kind: Token) -> SizeSyntax:
        return SizeSyntax("extent", [kind])

    def window(self, kind: Token, width: Token) -> SizeSyntax:
        return SizeSyntax("window", [kind, width])

    def rows(self, batch: Token, batch_axes: Any, new: Token, new_axes: Any) -> SizeSyntax:
        return SizeSyntax("rows", [batch, new], [batch_axes or (), new_axes or ()])

    def cut_name(self, name: Token, axes: Any) -> CutSyntax:
        return CutSyntax(name, axes)

    def reduction(self, axis: Token, kind: Token) -> tuple[Token, Token]:
        return axis, kind

    def density(self, number: Token, by: Token | None) -> tuple[Token, Token | None]:
        return number, by

    def pair(self, key: Token, value: Literal) -> tuple[Token, Literal]:
        return key, value

    def name(self, token: Token) -> Token:
        return token

    def number(self, token: Token) -> Literal:
        return Literal(float(token) if set(token) & set(".einEI") else int(token))

    def word(self, token: Token) -> Literal:
        named = {"true": True, "false": False, "none": None}
        return Literal(named.get(token, str(token)))

    def string(self, token: Token) -> Literal:
        return Literal(str(token))

    def tuple_value(self, *values: Literal | None) -> Literal:
        return _collection([v.value for v in _some(values)], _some(values), tuple)

    def list_value(self, *values: Literal | None) -> Literal:
        return _collection([v.value for v in _some(values)], _some(values), list)

    def run(self, first: Token, last: Token | None, step: Token | None) -> RangeSyntax:
        return RangeSyntax(first, last, step)

    def _children(self, *items: Any) -> list[Any]:
        return _some(items)

    # Rules that mean the list of their children.
    views = stages = items = chunk = ranges = outputs = inputs = params = types = cuts = partial = pairs = _children

    def mapping(self, pairs: Pairs) -> Literal:
        keys = [str(k) for k, _ in pairs]
        twice = next((k for i, (k, _) in enumerate(pairs) if str(k) in keys[:i]), None)
        made = _collection([(str(k), v.value) for k, v in pairs], [v for _, v in pairs], dict)
        return made._replace(twice=made.twice or twice)


_NAMES = {"NAME", "STRING"}


def _collection(values: Sequence[Any], parts: Sequence[Literal], kind: Any) -> Literal:
    depth = 1 + max((p.depth for p in parts), default=0)
    return Literal(kind(values), depth, next((p.twice for p in parts if p.twice is not None), None))
