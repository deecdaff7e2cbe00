"""EP: whole experts to ranks, and tokens cut over those ranks so that dispatch and combine carry them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.ir.graph import Graph, Node, Param
from ...compiler.ir.mesh import Mesh
from ...compiler.ir.types import Placement
from .resolve import resolve


@dataclass(frozen=True)
class LowerEp:
    """Cut expert slots over ep, and the tokens of every MoE module over ep and the expert replicas (edp).

    On etp axes routed tokens are replicated: every rank of an expert sees all of its rows.
    """

    name: ClassVar[str] = "ep"

    def run(self, graph: Graph) -> Graph:
        return resolve(self.place(graph), self.name)

    def place(self, graph: Graph) -> Graph:
        """The facts alone: how experts and routed tokens are cut."""
        lowered = replace(graph, level="ep")
        mesh = graph.mesh
        if mesh.view("ep") or mesh.view("edp") or graph.stream.placement.used & set(mesh.view("etp")):
            tokens = token_axes(mesh, graph.phase)
            lowered = lowered.map_nodes(lambda n: _place(n, mesh, tokens))
        return lowered


def token_axes(mesh: Mesh, phase: str) -> dict[str, tuple[str, ...]]:
    """Axes that cut batch and sequence while tokens are routed: every ep and edp axis, once.

    Attention DP already cuts the batch and SP the sequence; a tp axis, on which tokens are replicated, cuts the
    sequence in prefill and the batch in decode, where a sequence has one token.
    """
    routed = {*mesh.view("ep"), *mesh.view("edp")}
    batch = tuple(a for a in mesh.view("adp") if a in routed)
    seq = tuple(a for a in mesh.view("sp") if a in routed)
    extra = tuple(a for a in mesh.view("tp") if a in routed)
    if phase == "prefill":
        return {"batch": batch, "seq": (*seq, *extra)}
    return {"batch": (*batch, *extra), "seq": seq}


def _place(node: Node, mesh: Mesh, tokens: dict[str, tuple[str, ...]]) -> Node:
    if node.op in {"router", "route"}:
        return replace(node, constraints={**node.constraints, **tokens})
    if node.op == "expert":
        return cut_params(node, {"slot": mesh.view("ep")})
    return node


def cut_params(node: Node, cuts: dict[str, tuple[str, ...]]) -> Node:
    """The node with its weights cut over axes, by dimension name (an empty cut changes nothing)."""
    cuts = {dim: axes for dim, axes in cuts.items() if axes}
    if not any(dim in cuts for p in node.params for dim in p.type.names):
        return node
    return replace(node, params=tuple(p if p.const else _cut_param(p, cuts) for p in node.params))


def _cut_param(param: Param, cuts: dict[str, tuple[str, ...]]) -> Param:
    have = param.type.placement
    shards = tuple(cuts.get(d, axes) for d, axes in zip(param.type.names, have.shards, strict=True))
    if shards == have.shards:
        return param
    return Param(param.name, param.type.placed(Placement(shards, have.partial, have.shift)))
