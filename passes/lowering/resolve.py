"""Placement resolution: infer every type anew and insert the collectives that mismatches demand.

A lowering pass states facts (a weight is cut, tokens must be cut, the stream lies so) and calls :func:`resolve`.
Resharding nodes of earlier passes are taken out first, so the collectives of a graph are a function of its placements
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...compiler.diagnostics import InternalError
from ...compiler.ir.graph import Arg, Block, Graph, Node, Param, Value, fresh_name
from ...compiler.ir.ops import Resharding, operator
from ...compiler.ir.reshard import reshard_nodes
from ...compiler.ir.types import Placement, TensorType


def resolve(graph: Graph, origin: str) -> Graph:
    """The graph with all types inferred and resharding nodes inserted on behalf of pass ``origin``."""
    blocks = tuple(_BlockResolver(graph, b, origin).run() for b in graph.blocks)
    return _link_steps(replace(graph, blocks=blocks))


def erase_resharding(block: Block) -> Block:
    """The block without resharding nodes; their users take the value from before."""
    alias: dict[str, str] = {}
    kept: list[Node] = []
    for node in block.nodes:
        inputs = tuple(alias.get(i, i) for i in node.inputs)
        if isinstance(operator(node), Resharding) and node.origin:
            alias[node.outputs[0].name] = inputs[0]
        else:
            kept.append(node if inputs == node.inputs else replace(node, inputs=inputs))
    args = tuple(replace(a, init=alias.get(a.init, a.init)) for a in block.args)
    return replace(block, nodes=tuple(kept), args=args, result=alias.get(block.result, block.result))


class _BlockResolver:
    """Walks one block in program order."""

    def __init__(self, graph: Graph, block: Block, origin: str) -> None:
        self.graph = graph
        self.block = erase_resharding(block)
        self.origin = origin
        # A collective that was there before stays the work of the pass that first demanded it.
        self.origins = {_identity(n): n.origin for n in block.nodes if isinstance(operator(n), Resharding)}
        self.types: dict[str, TensorType] = {}
        self.args: dict[str, Arg] = {a.value.name: a for a in self.block.args}
        self.nodes: list[Node] = []
        self.resharded: dict[tuple[str, Placement, str, str], str] = {}

    def run(self) -> Block:
        for arg in self.block.args:
            self.types[arg.value.name] = self.graph.stream if arg.carry == "layer" else arg.value.type
        for node in self.block.nodes:
            self._resolve(node)
        result = self.block.result
        if result:
            last = next(n for n in reversed(self.nodes) if any(v.name == result for v in n.outputs))
            result = self._demand(result, self.graph.stream.placement, last)
        args = tuple(self._settle(a) for a in self.args.values())
        return self._settle_inits(replace(self.block, args=args, nodes=tuple(self.nodes), result=result))

    def _resolve(self, node: Node) -> None:
        rule = operator(node)
        given = [self.types[i] for i in node.inputs]
        inferred = rule.infer(node, given, self.graph.mesh)
        inputs = tuple(self._demand(i, w, node) for i, w in zip(node.inputs, inferred.wants, strict=True))
        placed = [self.types[i] for i in inputs]
        if placed != given:
            inferred = rule.infer(node, placed, self.graph.mesh)
        if inferred.wants != tuple(self.types[i].placement for i in inputs):
            raise InternalError(f"the rule of {node.op} is not stable on its own wishes at {node.name}")
        params = tuple(Param(p.name, t, p.const) for p, t in zip(node.params, inferred.params, strict=True))
        outputs = tuple(Value(v.name, t) for v, t in zip(node.outputs, inferred.results, strict=True))
        self.types.update((v.name, v.type) for v in outputs)
        self.nodes.append(replace(node, inputs=inputs, outputs=outputs, params=params))

    def _demand(self, name: str, want: Placement, consumer: Node) -> str:
        """The value in the placement wanted; inserts resharding nodes, once for all consumers alike."""
        have = self.types[name]
        if have.placement == want:
            return name
        arg = self.args.get(name)
        if arg is not None and arg.carry != "layer":
            # A carried value lies wherever its producer puts it in the repetition before: let the type follow.
            self.types[name] = have.placed(want)
            return name
        key = (name, want, consumer.items, consumer.steps)
        if key not in self.resharded:
            base = fresh_name(name, (self._base(v) for n in self.nodes if n.origin for v in n.outputs))
            start = self._nearest(name, want, consumer)
            nodes = reshard_nodes(base, start, want, self.graph.mesh, self.origin, consumer)
            nodes = [self._as_before(n) for n in nodes]
            self.nodes.extend(nodes)
            self.types.update((v.name, v.type) for n in nodes for v in n.outputs)
            self.resharded[key] = nodes[-1].outputs[0].name
        return self.resharded[key]

    def _as_before(self, node: Node) -> Node:
        """The resharding node with the pass that first demanded it as its origin."""
        origin = self.origins.get(_identity(node)) if self.origins else None
        return replace(node, origin=origin) if origin else node

    def _nearest(self, name: str, want: Placement, consumer: Node) -> Value:
        """The value itself; of chunks that travel round a ring, the version that has come nearest to its place.

        So every hop goes to the next rank, and no chunk is sent twice by the rank that has it first.
        """
        hops = sum(want.shift)
        made = {
            sum(other.shift): result
            for (value, other, items, steps), result in self.resharded.items()
            if (value, items, steps) == (name, consumer.items, consumer.steps)
            and (other.shards, other.partial) == (want.shards, want.partial)
        }
        best = max((s for s in made if s < hops), default=None)
        found = name if best is None else made[best]
        return Value(found, self.types[found])

    @staticmethod
    def _base(value: Value) -> str:
        return value.name.rsplit(".", 1)[0]

    def _settle(self, arg: Arg) -> Arg:
        return replace(arg, value=Value(arg.value.name, self.types[arg.value.name]))

    def _settle_inits(self, block: Block) -> Block:
        """Sources that stand in for a carried value lie where the carried value lies."""
        placed: Mapping[str, TensorType] = {a.init: a.value.type for a in block.args if a.init}
        if not placed:
            return block

        def settle(node: Node) -> Node:
            outputs = tuple(
                replace(v, type=v.type.placed(placed[v.name].placement)) if v.name in placed else v
                for v in node.outputs
            )
            return replace(node, outputs=outputs)

        return block.map_nodes(settle)


def _identity(node: Node) -> tuple[str, str, tuple[str, ...]]:
    """What makes a resharding node the same before and after a pass: its value, operator and axes."""
    return node.name, node.op, tuple(node.attrs["axes"])


def _link_steps(graph: Graph) -> Graph:
    """Give arguments carried over decode steps the type of their source in the epilogue."""
    sources = {name: t for b in graph.with_role("epilogue") for name, t in b.types.items()}

    def link(block: Block) -> Block:
        if all(a.carry != "step" for a in block.args):
            return block
        args = tuple(
            replace(a, value=Value(a.value.name, sources[a.source])) if a.carry == "step" else a for a in block.args
        )
        return replace(block, args=args)

    return graph.map_blocks(link)
