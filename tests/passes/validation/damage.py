"""Ways to damage a graph. Each takes block and node by name and returns the damaged graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from paradag.compiler.ir.graph import Block, Graph, Node, Value
from paradag.compiler.ir.types import Dim, Placement, TensorType


def on_block(graph: Graph, block: str, change: Callable[[Block], Block]) -> Graph:
    """The graph with one block changed."""
    assert any(b.name == block for b in graph.blocks), block
    return graph.map_blocks(lambda b: change(b) if b.name == block else b)


def block(graph: Graph, name: str, **fields: Any) -> Graph:
    """Other fields for a block."""
    return on_block(graph, name, lambda b: replace(b, **fields))


def node(graph: Graph, where: str, name: str, /, **fields: Any) -> Graph:
    """Other fields for a node."""
    graph.block(where).node(name)
    return on_block(graph, where, lambda b: b.map_nodes(lambda n: replace(n, **fields) if n.name == name else n))


def attrs(graph: Graph, where: str, name: str, **changes: Any) -> Graph:
    """Other attributes for a node."""
    return node(graph, where, name, attrs={**graph.block(where).node(name).attrs, **changes})


def rewire(graph: Graph, where: str, name: str, old: str, new: str) -> Graph:
    """A node that takes another operand."""
    inputs = graph.block(where).node(name).inputs
    assert old in inputs, (old, inputs)
    return node(graph, where, name, inputs=tuple(new if i == old else i for i in inputs))


def bypass(graph: Graph, where: str, name: str, value: str | None = None) -> Graph:
    """Without the node; its users take ``value``, by default its first operand."""
    gone = graph.block(where).node(name)
    new = value or gone.inputs[0]
    old = {v.name for v in gone.outputs}

    def change(b: Block) -> Block:
        nodes = tuple(
            replace(n, inputs=tuple(new if i in old else i for i in n.inputs)) for n in b.nodes if n.name != name
        )
        return replace(b, nodes=nodes, result=new if b.result in old else b.result)

    return on_block(graph, where, change)


def remove(graph: Graph, where: str, name: str) -> Graph:
    """Without the node, its users left in the air."""
    return on_block(graph, where, lambda b: replace(b, nodes=tuple(n for n in b.nodes if n.name != name)))


def insert(graph: Graph, where: str, after: str, *new: Node, users: Mapping[str, str] | None = None) -> Graph:
    """With nodes after the one called ``after``; later nodes take values by the names in ``users``."""
    renamed = users or {}

    def change(b: Block) -> Block:
        index = next(i for i, n in enumerate(b.nodes) if n.name == after) + 1
        rest = tuple(replace(n, inputs=tuple(renamed.get(i, i) for i in n.inputs)) for n in b.nodes[index:])
        return replace(b, nodes=(*b.nodes[:index], *new, *rest), result=renamed.get(b.result, b.result))

    return on_block(graph, where, change)


def move(graph: Graph, where: str, name: str, before: str) -> Graph:
    """The node earlier in program order."""
    moved = graph.block(where).node(name)

    def change(b: Block) -> Block:
        rest = [n for n in b.nodes if n.name != name]
        index = next(i for i, n in enumerate(rest) if n.name == before)
        return replace(b, nodes=(*rest[:index], moved, *rest[index:]))

    return on_block(graph, where, change)


def again(n: Node, name: str) -> Node:
    """A second copy of a node behind it: takes the first one's result."""
    return replace(n, name=name, inputs=(n.outputs[0].name,), outputs=(Value(name, n.outputs[0].type),))


def place(kind: TensorType, **cuts: tuple[str, ...]) -> TensorType:
    """The type with other axes on some dimensions, nowhere partial."""
    shards = tuple(cuts.get(d, a) for d, a in zip(kind.names, kind.placement.shards, strict=True))
    return kind.placed(Placement(shards))


def resize(kind: TensorType, **sizes: int) -> TensorType:
    """The type with other sizes of some dimensions."""
    return replace(kind, dims=tuple(Dim(d.name, sizes.get(d.name, d.size)) for d in kind.dims))


def retype(graph: Graph, where: str, value: str, kind: TensorType) -> Graph:
    """Another type for a value, at its node or argument."""

    def change(b: Block) -> Block:
        nodes = tuple(
            replace(n, outputs=tuple(Value(v.name, kind) if v.name == value else v for v in n.outputs)) for n in b.nodes
        )
        args = tuple(replace(a, value=Value(value, kind)) if a.value.name == value else a for a in b.args)
        return replace(b, nodes=nodes, args=args)

    return on_block(graph, where, change)


def recut(graph: Graph, where: str, name: str, param: str, **cuts: tuple[str, ...]) -> Graph:
    """Another cut of a weight."""
    params = graph.block(where).node(name).params
    changed = tuple(replace(p, type=place(p.type, **cuts)) if p.name == param else p for p in params)
    return node(graph, where, name, params=changed)
