"""Repair of lowered graphs. What is distribution is derived anew; what the model computes is never changed.

Three steps: wiring that has one legal reading is restored (program order, the KV version that a read must take, nodes
that nobody needs); everything that distributes is taken out; facts are stated again and the lowering passes let the
placements demand their collectives. No collective is ever copied from a template. The result must pass the verifier,
against the logical graph where there is one; else the graph is given back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from graphlib import CycleError

from ...compiler.diagnostics import Diagnostic, Fix, InternalError
from ...compiler.ir.graph import LEVELS, Arg, Block, Graph, Node, Param, Value
from ...compiler.ir.types import Placement, TensorType, replicated
from ..lowering import lowering_sequence
from ._changes import changes
from ._rewire import rewired
from .erasure import differences
from .verify import verify

__all__ = ["Fix", "repair"]

_REFUSED = (
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError),
    *(CycleError, InternalError),
)
"""What lowering raises on a graph that it cannot make sense of."""

_NEVER = frozenset({"PD401"})
"""Findings that are only ever rejected: a cycle has no one edge that is wrong."""

_SET_BY_PASSES = {
    "router": ("batch", "seq"),
    "route": ("batch", "seq"),
    "take_tokens": ("seq",),
    "attention": ("seq", "heads"),
    "kv_write": ("seq", "kv_heads"),
    "latent_expand": ("kv_heads",),
    "linear": ("seq",),
}
"""Constraints that the lowering passes state."""


def repair(graph: Graph, logical: Graph | None = None) -> tuple[Graph, list[Fix]]:
    """The graph with its distribution restored, and what was changed.

    Args:
        graph: A lowered graph, damaged or not.
        logical: The graph it was lowered from. With it sizes and cuts that were overwritten come back too, and the
            result is proved to compute the same; without it the result computes what ``graph`` says.

    Returns:
        A graph without errors and its fixes; or the graph as it was and no fix, where nothing is wrong or where no
        repair is safe (then :func:`paradag.passes.validation.verify` still tells why).
    """
    found = {d.code for d in _errors(graph, logical)}
    if not found or found & _NEVER or graph.level not in LEVELS:
        return graph, []
    try:
        wired = rewired(graph, logical)
        bare = _restated(wired, logical)
        if any(differences(bare, wired if logical is None else logical)):
            return graph, []
        candidate = _lowered(bare, graph)
        if _errors(candidate, logical or bare):
            return graph, []
    except _REFUSED:
        return graph, []
    return candidate, changes(graph, candidate, found)


def _errors(graph: Graph, logical: Graph | None) -> list[Diagnostic]:
    return [d for d in verify(graph, logical) if d.is_error]


def _lowered(bare: Graph, like: Graph) -> Graph:
    """The bare graph brought to the level and the stages of another."""
    for lowering in lowering_sequence(like.stages):
        if LEVELS.index(lowering.name) <= LEVELS.index(like.level):
            bare = lowering.run(bare)
    return bare


# --- facts ------------------------------------------------------------------------------------------------------------


def _restated(wired: Graph, logical: Graph | None) -> Graph:
    """The graph at level logical: nothing placed but the batch of the stream over attention DP.

    What the logical graph says of a block, node or argument of the same name is taken from there.
    """
    known = {b.name: b for b in logical.blocks} if logical is not None else {}
    stream = logical.stream if logical is not None else wired.stream
    batch = tuple(wired.mesh.view("adp") if name == "batch" else () for name in stream.names)
    blocks = tuple(_block(b, known.get(b.name)) for b in wired.blocks)
    stream = stream.placed(Placement(batch))
    return replace(wired, level=LEVELS[0], stages=(wired.layers,), blocks=blocks, stream=stream)


def _block(block: Block, reference: Block | None) -> Block:
    nodes = {n.name: n for n in reference.nodes} if reference is not None else {}
    kinds = {a.value.name: a.value.type for a in reference.args} if reference is not None else {}
    args = tuple(_arg(a, kinds.get(a.value.name)) for a in block.args)
    return replace(block, nodes=tuple(_node(n, nodes.get(n.name)) for n in block.nodes), args=args)


def _arg(arg: Arg, kind: TensorType | None) -> Arg:
    return replace(arg, value=Value(arg.value.name, kind or _whole(arg.value.type)))


def _node(node: Node, reference: Node | None) -> Node:
    """The node as no pass has touched it. Sizes come from its reference only where that is the same operator."""
    if reference is None or reference.op != node.op:
        own = _SET_BY_PASSES.get(node.op, ())
        return replace(
            node,
            outputs=tuple(Value(v.name, _whole(v.type)) for v in node.outputs),
            params=tuple(replace(p, type=_whole(p.type)) for p in node.params),
            constraints={k: v for k, v in node.constraints.items() if k not in own},
        )
    outputs: Mapping[str, TensorType] = {v.name: v.type for v in reference.outputs}
    params: Mapping[str, Param] = {p.name: p for p in reference.params}
    return replace(
        node,
        outputs=tuple(Value(v.name, outputs.get(v.name) or _whole(v.type)) for v in node.outputs),
        params=tuple(params.get(p.name) or replace(p, type=_whole(p.type)) for p in node.params),
        constraints=reference.constraints,
        origin=reference.origin,
    )


def _whole(kind: TensorType) -> TensorType:
    return kind.placed(replicated(len(kind.dims)))
