"""Erasure: what is left of a graph when all distribution is dropped must be the logical graph.

Placements prove that values lie where operators want them; they cannot see that the right values are wired together.
Erasure takes out resharding nodes, sends, receives and stage boundaries, forgets placements and groups, expands fused
operators by their declared decomposition, folds every whole ring of partial attentions into the attention that it
computes, and compares what remains node by node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ...compiler.diagnostics import Diagnostic
from ...compiler.ir.graph import Arg, Block, Graph, Node, Param, Value
from ...compiler.ir.ops import GROUP, OPERATORS, fold_rings, operator
from ...compiler.ir.types import Dim, Extent, TensorType, replicated
from ._report import finding, is_resharding, listed

_TRANSPORT = frozenset({"send", "recv"})


def erase(graph: Graph) -> Graph:
    """The graph without distribution: its normal form at level logical.

    Values keep their names; a node that transported a value is gone, and its users take the value itself.
    """
    kept = [b for b in graph.blocks if b.role != "boundary"]
    aliases = {b.name: _aliases(b) for b in kept}
    returned: dict[str, str] = {}
    for block in graph.with_role("epilogue"):
        returned |= aliases[block.name]
    blocks = tuple(_erase_block(b, aliases[b.name], returned) for b in kept)
    stream = _erase_type(graph.stream)
    return replace(graph, level="logical", stages=(graph.layers,), blocks=blocks, stream=stream)


def _aliases(block: Block) -> dict[str, str]:
    """Transported values to the values they carry."""
    alias: dict[str, str] = {}
    for node in block.nodes:
        if (is_resharding(node) or node.op in _TRANSPORT) and node.inputs:
            alias.update((v.name, alias.get(node.inputs[0], node.inputs[0])) for v in node.outputs)
    return alias


def _erase_block(block: Block, alias: dict[str, str], returned: dict[str, str]) -> Block:
    nodes: list[Node] = []
    for node in block.nodes:
        if is_resharding(node) or node.op in _TRANSPORT:
            continue
        parts = operator(node).decompose(node) if node.op in OPERATORS else (node,)
        nodes += [_erase_node(part, alias) for part in parts]
    nodes = fold_rings(nodes)
    args = tuple(_erase_arg(a, alias if a.carry == "version" else returned, alias) for a in block.args)
    return replace(block, nodes=tuple(nodes), args=args, result=alias.get(block.result, block.result))


def _erase_node(node: Node, alias: dict[str, str]) -> Node:
    return Node(
        node.name,
        node.op,
        tuple([alias.get(i, i) for i in node.inputs]),
        tuple([Value(v.name, _erase_type(v.type)) for v in node.outputs]),
        tuple([Param(p.name, _erase_type(p.type), p.const) for p in node.params]),
        node.attrs,
        node.module,
        node.view,
        items=node.items,
        steps=node.steps,
    )


def _erase_arg(arg: Arg, sources: dict[str, str], alias: dict[str, str]) -> Arg:
    value = Value(arg.value.name, _erase_type(arg.value.type))
    return replace(arg, value=value, source=sources.get(arg.source, arg.source), init=alias.get(arg.init, arg.init))


def _erase_type(kind: TensorType) -> TensorType:
    """The type held whole: without routing groups, whose number is a matter of distribution."""
    dims = tuple(
        Dim(d.name, Extent("rows")) if isinstance(d.size, Extent) and d.size.kind == "rows" else d
        for d in kind.dims
        if not d.name.startswith(GROUP)
    )
    return TensorType(kind.dtype, dims, replicated(len(dims)), kind.density)


def differences(graph: Graph, logical: Graph) -> Iterator[Diagnostic]:
    """The first difference of each block between a graph's normal form and that of its logical graph."""
    mine, reference = erase(graph), _reference(logical)
    theirs = reference.graph
    if not mine.blocks:
        return
    for what in ("phase", "items", "steps", "layers"):
        if getattr(mine, what) != getattr(theirs, what):
            yield finding("PD414", mine.blocks[0], None, f"{what} are not those of the logical graph")
    seen: set[tuple[str, str]] = set()
    for block, other in _pairs(mine, theirs):
        if (block.name, other.name) not in seen:
            seen.add((block.name, other.name))
            yield from _compare(block, other, reference)


def _pairs(mine: Graph, theirs: Graph) -> Iterator[tuple[Block, Block]]:
    """Blocks that stand for the same: by role, and layer blocks by the layers they have in common."""
    for role in ("prologue", "epilogue"):
        yield from zip(mine.with_role(role), theirs.with_role(role), strict=False)
    home = {layer: b for b in theirs.with_role("layer") for layer in b.layers}
    for block in mine.with_role("layer"):
        yield from ((block, home[layer]) for layer in block.layers if layer in home)


@dataclass
class _Numbers:
    """Equal numbers for equal computations: what a value is, whatever it is called."""

    known: dict[object, int] = field(default_factory=dict)

    def of(self, key: object) -> int:
        return self.known.setdefault(key, len(self.known))

    def block(self, block: Block) -> tuple[dict[str, int], dict[str, int]]:
        """Numbers of the block's values and of its nodes."""
        values: dict[str, int] = {}
        ordinal: dict[str, int] = {}
        for arg in block.args:
            place = ordinal[arg.carry] = ordinal.get(arg.carry, -1) + 1
            values[arg.value.name] = self.of(("arg", arg.carry, place, _signature(arg.value.type)))
        nodes: dict[str, int] = {}
        for node in block.nodes:
            operands = tuple(values.get(i, -1) for i in node.inputs)
            number = self.of((_identity(node), operands))
            nodes[node.name] = number
            for index, value in enumerate(node.outputs):
                values[value.name] = self.of((number, index))
        return values, nodes


class _Reference:
    """The normal form of a logical graph, which graphs of all levels are compared with."""

    def __init__(self, logical: Graph) -> None:
        self.logical = logical
        self.graph = erase(logical)
        self.numbers = _Numbers()
        self._known: dict[int, tuple[dict[str, int], dict[str, int]]] = {}

    def of(self, block: Block) -> tuple[dict[str, int], dict[str, int]]:
        """Numbers of the values and nodes of one of the graph's blocks."""
        if id(block) not in self._known:
            self._known[id(block)] = self.numbers.block(block)
        return self._known[id(block)]


_last: list[_Reference] = []
"""The last one: the levels of one phase are verified one after the other."""


def _reference(logical: Graph) -> _Reference:
    found = _last[0] if _last and _last[0].logical is logical else _Reference(logical)
    _last[:] = [found]
    return found


def _identity(node: Node) -> tuple[object, ...]:
    """All of a node but its operands. Weights belong to the node's name, so a node that owns some keeps it."""
    owns = any(not p.const for p in node.params)
    return (
        node.name if owns else "",
        node.op,
        _attributes(node),
        tuple(_parameter(p) for p in node.params),
        tuple(_signature(v.type) for v in node.outputs),
        node.module,
        node.items,
        node.steps,
    )


def _attributes(node: Node) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((k, repr(v)) for k, v in node.attrs.items()))


def _parameter(param: Param) -> tuple[object, ...]:
    return (param.name, param.const, _signature(param.type))


def _signature(kind: TensorType) -> tuple[object, ...]:
    return (kind.dtype, tuple((d.name, str(d.size)) for d in kind.dims), kind.density)


def _compare(block: Block, reference: Block, known: _Reference) -> Iterator[Diagnostic]:
    their_values, their_nodes = known.of(reference)
    my_values, my_nodes = known.numbers.block(block)
    theirs, mine = set(their_nodes.values()), set(my_nodes.values())
    for node in block.nodes:
        if my_nodes[node.name] not in theirs:
            yield finding("PD414", block, node, _difference(node, reference), "the node of the logical graph")
            return
    for node in reference.nodes:
        if their_nodes[node.name] not in mine:
            yield finding("PD414", block, None, f"node `{node.name}` of the logical graph is missing")
            return
    if my_values.get(block.result) != their_values.get(reference.result):
        yield finding("PD414", block, block.result, f"the block's result is `{reference.result}` in the logical graph")
    for arg, other in zip(block.args, reference.args, strict=False):
        ends = [(arg.init, other.init)] + ([(arg.source, other.source)] if arg.carry == "version" else [])
        if any(my_values.get(a) != their_values.get(b) for a, b in ends):
            yield finding("PD414", block, arg.value.name, "carries another value than in the logical graph")
        if arg.carry == "step" and arg.source != other.source:
            yield finding("PD414", block, arg.value.name, f"carries `{arg.source}` instead of `{other.source}`")
    if len(block.args) != len(reference.args):
        yield finding("PD414", block, None, f"{len(block.args)} arguments instead of {len(reference.args)}")


def _difference(node: Node, reference: Block) -> str:
    """How a node differs from the logical node of its name."""
    other = next((n for n in reference.nodes if n.name == node.name), None)
    if other is None:
        return f"`{node.op}` of {listed(node.inputs)} stands nowhere in the logical graph"
    if node.inputs != other.inputs:
        return f"takes {listed(node.inputs)} instead of {listed(other.inputs)}"
    changed = sorted({k for k, _ in {*_attributes(node)} ^ {*_attributes(other)}})
    if changed:
        return "; ".join(f"attribute {k} is {node.attrs.get(k)} instead of {other.attrs.get(k)}" for k in changed)
    for what, mine, theirs in (
        ("operator", node.op, other.op),
        ("parameters", _shapes(node.params), _shapes(other.params)),
        ("results", _shapes(node.outputs), _shapes(other.outputs)),
        ("module", node.module, other.module),
        ("masks", f"{node.items}/{node.steps}", f"{other.items}/{other.steps}"),
    ):
        if mine != theirs:
            return f"{what} {mine} instead of {theirs}"
    return "its operands are not those of the logical graph"


def _shapes(tensors: Sequence[Value | Param]) -> str:
    """``gate bf16[batch=batch, seq=new, ffn=2048]``."""
    return ", ".join(
        f"{t.name} {t.type.dtype}[{', '.join(f'{d.name}={d.size}' for d in t.type.dims)}]" for t in tensors
    )
