"""Reading the textual IR back: ``parse_graph(print_graph(g)) == g``. All mistakes of a text are reported in one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, cast, get_args

from lark import Token
from lark.exceptions import UnexpectedInput

from ..diagnostics import Diagnostic, DiagnosticError
from ..spec.dtypes import DTYPES, INDEX_DTYPES
from ..spec.model import MAX_LAYERS
from . import _text_syntax as syntax
from .graph import LEVELS, Arg, Block, Graph, Item, ItemMask, Node, Param, Phase, StepMask, Value
from .mesh import Axis, Mesh
from .ops import OPERATORS
from .text import NATURAL_SIZES
from .types import REDUCTIONS, Dim, Extent, Placement, Size, TensorType

__all__ = ["MAX_CHARACTERS", "MAX_ITEMS", "parse_graph"]

MAX_CHARACTERS = 4 * 2**20
"""Longest text: some hundred distinct layers, and about ten seconds of reading."""

MAX_ITEMS = 1_000_000
"""Most pipeline items that a text may ask for."""

_MAX_SIZE = 2**63 - 1
_MAX_DEPTH = 32
_MAX_ERRORS = 20

_ROLES = ("prologue", "layer", "boundary", "epilogue")
_CARRIES = ("layer", "version", "step")
_EXTENTS = ("batch", "new", "context", "past")
_MASKS: Mapping[str, tuple[str, ...]] = {
    "view": ("attention", "expert"),
    "items": get_args(ItemMask),
    "steps": get_args(StepMask),
}


def parse_graph(text: str, file: str = "<ir>") -> Graph:
    """The graph that ``text`` describes.

    Args:
        text: As :func:`paradag.compiler.ir.text.print_graph` writes it, or by hand.
        file: How messages call the text.

    Raises:
        DiagnosticError: PD418 for each mistake, with its place; PD002 where the text is too long to be read.
    """
    if len(text) > MAX_CHARACTERS:
        expected = f"at most {MAX_CHARACTERS:,} characters"
        raise DiagnosticError([Diagnostic("PD002", f"`{file}` has {len(text):,} characters", None, expected)])
    try:
        tree = syntax.parse_syntax(text)
    except UnexpectedInput as error:
        raise DiagnosticError([syntax.syntax_error(error, text, file)], {file: text}) from None
    reader = _Reader(file)
    try:
        graph = reader.graph(tree)
    except DiagnosticError as error:
        raise DiagnosticError(error.diagnostics, {file: text}) from None
    if reader.diagnostics:
        raise DiagnosticError(reader.diagnostics, {file: text})
    return graph


class _Reader:
    """Turns the syntax tree into a graph; collects every mistake and goes on with what is sound."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.diagnostics: list[Diagnostic] = []
        self.axes: frozenset[str] = frozenset()
        self.layers = 0

    # --- mistakes and words -----------------------------------------------------------------------------------------

    def _fault(self, at: Token, message: str, expected: str, fix: str | None = None) -> None:
        self.diagnostics.append(Diagnostic("PD418", message, syntax.token_span(at, self.file), expected, fix))
        if len(self.diagnostics) == _MAX_ERRORS:
            raise DiagnosticError(self.diagnostics)

    def _one_of(self, word: Token, known: Collection[str], what: str) -> str:
        """The word, which must be known; else a diagnostic that names the nearest."""
        if word not in known:
            sign = _sign(word)
            near = get_close_matches(word, known, n=1)
            listed = ", ".join(f"{sign}{k}" for k in sorted(known))
            expected = listed if len(known) <= 12 else f"one of {len(known)} known names"
            fix = f"write `{sign}{near[0]}`" if near else None
            self._fault(word, f"unknown {what} `{sign}{word}`", expected or f"no {what} is defined here", fix)
        return str(word)

    def _distinct(self, words: Sequence[Token], what: str) -> None:
        seen: set[str] = set()
        for word in words:
            if word in seen:
                self._fault(
                    word, f"{what} `{_sign(word)}{word}` is given twice", f"each {what} once", "rename or remove one"
                )
            seen.add(str(word))

    def _int(self, token: Token, low: int = 0, high: int = _MAX_SIZE) -> int:
        """A whole number within bounds; ``low`` stands in for a wrong one."""
        if set(token) & set(".einEI") or not low <= int(token) <= high:
            shown = token if len(token) <= 20 else f"{token[:20]}…"
            self._fault(token, f"`{shown}` is no number that fits here", f"a whole number from {low} to {high}")
            return low
        return int(token)

    def _run(self, run: syntax.RangeSyntax, high: int) -> range:
        first = self._int(run.first, 0, high)
        if run.last is None:
            return range(first, first + 1)
        last = self._int(run.last, 0, high)
        step = 1 if run.step is None else self._int(run.step, 1)
        if last < first:
            self._fault(run.last, f"the range ends at {last}, before it begins", f"a number from {first} on")
        return range(first, last + 1, step)

    def _pairs(self, pairs: syntax.Pairs) -> dict[str, Any]:
        self._distinct([k for k, _ in pairs], "key")
        for key, value in pairs:
            if value.twice is not None:
                self._fault(value.twice, f"key `{value.twice}` is given twice", "each key once")
            if value.depth > _MAX_DEPTH:
                self._fault(key, f"`{key}` nests {value.depth} deep", f"at most {_MAX_DEPTH} levels")
        return {str(k): v.value for k, v in pairs if v.depth <= _MAX_DEPTH}

    def _atoms(self, words: Sequence[Token]) -> tuple[str, ...]:
        """Mesh axes, each known and named once."""
        self._distinct(words, "mesh axis")
        return tuple(dict.fromkeys(self._one_of(w, self.axes, "mesh axis") for w in words))

    # --- header -----------------------------------------------------------------------------------------------------

    def graph(self, tree: syntax.GraphSyntax) -> Graph:
        phase = cast("Phase", self._one_of(tree.phase, get_args(Phase), "phase"))
        level = self._one_of(tree.level, LEVELS, "level")
        mesh = self._mesh(tree)
        stages = tuple(self._int(s, 0, MAX_LAYERS) for s in tree.stages)
        self.layers = sum(stages)
        if self.layers > MAX_LAYERS:
            self._fault(tree.stages[0], f"the stages have {self.layers} layers", f"at most {MAX_LAYERS}")
        steps = 1 if tree.steps is None else self._int(tree.steps, 1)
        items = self._items(tree)
        stream, meta = self._type(tree.stream), self._pairs(tree.meta)
        blocks = self._blocks(tree.blocks)
        return Graph(str(tree.name), phase, level, mesh, items, steps, stages, blocks, stream, meta)

    def _mesh(self, tree: syntax.GraphSyntax) -> Mesh:
        self._distinct([name for name, _, _ in tree.axes], "mesh axis")
        axes = tuple(Axis(str(n), self._int(size, 1), self._int(stride, 1)) for n, size, stride in tree.axes)
        self.axes = frozenset(a.name for a in axes)
        self._distinct([v.name for v in tree.views], "view")
        views = {str(v.name): self._atoms(v.axes) for v in tree.views}
        facts: dict[str, int] = {}
        self._distinct([keyword for keyword, *_ in tree.mesh_facts], "fact")
        for keyword, number, *stride in tree.mesh_facts:
            facts[str(keyword)] = self._int(number, 0 if keyword.type == "FIRST_RANK" else 1)
            if stride:
                facts["pp_stride"] = self._int(stride[0], 1)
        facts.setdefault("pp_stride", Mesh(axes, views).stage_ranks)
        return Mesh(axes, views, **facts)

    def _items(self, tree: syntax.GraphSyntax) -> tuple[Item, ...]:
        items: list[Item] = []
        for numbers, chunks in tree.items:
            microbatches = self._run(numbers, MAX_ITEMS)
            if len(items) + len(microbatches) * len(chunks) > MAX_ITEMS:
                self._fault(numbers.first, "too many pipeline items", f"at most {MAX_ITEMS:,}")
                break
            facts = [self._chunk(facts, place, len(chunks)) for place, facts in enumerate(chunks)]
            items += [Item(m, **f) for m in microbatches for f in facts]
        return tuple(items)

    def _chunk(self, facts: Sequence[tuple[Token, Token]], place: int, count: int) -> dict[str, Any]:
        """Fields of an item; its place among the chunks of its micro-batch tells what is not said."""
        self._distinct([k for k, _ in facts], "key")
        found: dict[str, Any] = {"chunk": place, "past": 0, "first": place == 0, "last": place == count - 1}
        for key, value in facts:
            name = self._one_of(key, ("batch", "new", "past", "chunk", "first", "last"), "key")
            if name in {"first", "last"}:
                found[name] = self._one_of(value, ("true", "false"), "truth value") == "true"
            else:
                found[name] = self._int(value)
        for missing in {"batch", "new"} - found.keys():
            self._fault(facts[0][0], f"the item has no `{missing}`", "[batch 2, new 16] with more keys where needed")
            found[missing] = 0
        known = ("chunk", "batch", "new", "past", "first", "last")
        return {k: found[k] for k in known}

    # --- types ------------------------------------------------------------------------------------------------------

    def _type(self, tree: syntax.TypeSyntax) -> TensorType:
        dtype = self._one_of(tree.dtype, {**DTYPES, **INDEX_DTYPES}, "dtype")
        dims = tuple(Dim(str(d.name), self._size(d)) for d in tree.dims)
        used = [axis for d in tree.dims for axis in d.axes] + [axis for axis, _ in tree.partial]
        counts = Counter(map(str, used))
        for axis in used:
            if counts.pop(str(axis), 1) > 1:
                self._fault(axis, f"axis `{axis}` is used twice in one placement", "each mesh axis at most once")
        left = set(map(str, used))

        def atoms(axes: Sequence[Token]) -> tuple[str, ...]:
            names = [self._one_of(a, self.axes, "mesh axis") for a in axes]
            kept = tuple(n for n in dict.fromkeys(names) if n in left)
            left.difference_update(kept)
            return kept

        shards = tuple(atoms(d.axes) for d in tree.dims)
        kinds = [(atoms([axis]), self._one_of(kind, REDUCTIONS, "reduction")) for axis, kind in tree.partial]
        partial = tuple((axis, kind) for axes, kind in kinds for axis in axes)
        shift = tuple(0 if d.shift is None else self._shift(d) for d in tree.dims)
        return TensorType(dtype, dims, Placement(shards, partial, shift), self._density(tree))

    def _shift(self, dim: syntax.DimSyntax) -> int:
        assert dim.shift is not None
        if not dim.axes:
            self._fault(dim.shift, f"`{dim.name}` is shifted, yet no axis cuts it", "`context{sp} shift 1`")
        return self._int(dim.shift, 1)

    def _density(self, tree: syntax.TypeSyntax) -> float:
        if tree.density is None:
            return 1.0
        number, by = tree.density
        value = float(number) / (1 if by is None else self._int(by, 1))
        if not 0 <= value <= 1:
            self._fault(number, f"a density of {value} is no share", "a number from 0 to 1")
        return value

    def _size(self, dim: syntax.DimSyntax) -> Size:
        if dim.size is None:
            if dim.name not in NATURAL_SIZES:
                expected = f"`{dim.name}:4096`, or one of {', '.join(NATURAL_SIZES)}, which need none"
                self._fault(dim.name, f"dimension `{dim.name}` has no size", expected)
            return NATURAL_SIZES.get(str(dim.name), 1)
        form, words = dim.size.form, dim.size.words
        if form == "fixed":
            return self._int(words[0])
        if form == "extent":
            return Extent(self._one_of(words[0], _EXTENTS, "extent"))
        if form == "window":
            self._one_of(words[0], ("window",), "extent")
            return Extent("window", self._int(words[1], 1))
        for word, known in zip(words, ("batch", "new"), strict=True):
            self._one_of(word, (known,), "extent")
        batch, new = (self._atoms(c) for c in dim.size.cuts)
        return Extent("rows", batch_axes=batch, new_axes=new)

    # --- blocks -----------------------------------------------------------------------------------------------------

    def _blocks(self, trees: Sequence[syntax.BlockSyntax]) -> tuple[Block, ...]:
        self._distinct([t.name or t.role for t in trees], "block")
        step_values = {str(v) for t in trees if t.role == "epilogue" for n in t.nodes for v in n.outputs}
        count = 0
        blocks = []
        for tree in trees:
            runs = [self._run(run, MAX_LAYERS) for run in tree.layers]
            count += sum(map(len, runs))
            if count > 2 * MAX_LAYERS:
                self._fault(tree.layers[0].first, "the blocks have too many layers", f"at most {MAX_LAYERS} in all")
                break
            layers = tuple(layer for run in runs for layer in run)
            if layers and max(layers) >= self.layers:
                message = f"layer {max(layers)} lies in no stage"
                self._fault(tree.layers[0].first, message, f"layers below {self.layers}")
            blocks.append(self._block(tree, layers, step_values))
        return tuple(blocks)

    def _block(self, tree: syntax.BlockSyntax, layers: tuple[int, ...], step_values: Collection[str]) -> Block:
        role = cast("Literal['prologue', 'layer', 'boundary', 'epilogue']", self._one_of(tree.role, _ROLES, "role"))
        self._distinct([a.name for a in tree.args] + [v for n in tree.nodes for v in n.outputs], "value")
        self._distinct([_node_name(n) for n in tree.nodes], "node")
        given = {str(a.name) for a in tree.args}
        every = given | {str(v) for n in tree.nodes for v in n.outputs}
        args = tuple(self._arg(a, every, step_values) for a in tree.args)
        nodes = []
        known = set(given)
        for node in tree.nodes:
            nodes.append(self._node(node, known, every))
            known.update(map(str, node.outputs))
        result = "" if tree.result is None else self._one_of(tree.result, every, "value")
        return Block(str(tree.name or tree.role), role, layers, args, tuple(nodes), result)

    def _arg(self, tree: syntax.ArgSyntax, values: Collection[str], step_values: Collection[str]) -> Arg:
        carry = cast("Literal['layer', 'version', 'step']", self._one_of(tree.carry, _CARRIES, "carry"))
        source = init = ""
        if tree.source is not None:
            epilogue = carry == "step"
            source = self._one_of(tree.source, step_values if epilogue else values, "value")
        if tree.init is not None:
            init = self._one_of(tree.init, values, "value")
        return Arg(Value(str(tree.name), self._type(tree.type)), carry, source, init)

    def _node(self, tree: syntax.NodeSyntax, known: Collection[str], every: Collection[str]) -> Node:
        op = self._one_of(tree.op, OPERATORS, "operator")
        for value in tree.inputs:
            if value in every and value not in known:
                self._fault(value, f"value `%{value}` is used before it is defined", "a value of an earlier node",
                            "move the node behind the one that gives the value")  # fmt: skip
            elif value not in every:
                self._one_of(value, known, "value")
        if len(tree.types) != len(tree.outputs):
            message = f"{len(tree.outputs)} results, but {len(tree.types)} types"
            self._fault(tree.op, message, "one type per result, after `:`")
        self._distinct([p.name for p in tree.params], "parameter")
        outputs = tuple(Value(str(v), self._type(t)) for v, t in zip(tree.outputs, tree.types, strict=False))
        params = tuple(Param(str(p.name), self._type(p.type), p.const) for p in tree.params)
        return Node(
            str(_node_name(tree)), op, tuple(map(str, tree.inputs)), outputs, params, self._pairs(tree.attrs),
            **self._suffixes(tree),
        )  # fmt: skip

    def _suffixes(self, tree: syntax.NodeSyntax) -> dict[str, Any]:
        """Module, view, constraints, masks and origin of a node."""
        fields: dict[str, Any] = {}
        for keyword, found in tree.suffixes:
            name = {"@": "module", "where": "constraints", "by": "origin"}.get(keyword, keyword)
            if name in fields:
                self._fault(tree.op, f"`{keyword}` is given twice", "each at most once for a node")
            if name == "constraints":
                self._distinct([c.name for c in found], "dimension")
                fields[name] = {str(c.name): self._atoms(c.axes) for c in found}
            elif name in _MASKS:
                fields[name] = self._one_of(found, _MASKS[name], name)
            else:
                fields[name] = str(found)
        return fields


def _sign(word: Token) -> str:
    """The ``%`` that a value has in the text."""
    return "%" if word.type == "VALUE" else ""


def _node_name(tree: syntax.NodeSyntax) -> Token:
    """The label, or else the first result, or else the operator."""
    return tree.label or (tree.outputs[0] if tree.outputs else tree.op)
