"""TP: heads, FFN width, vocabulary and expert width cut over ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.ir.graph import Graph, Node
from ...compiler.ir.mesh import Mesh
from .ep import cut_params
from .resolve import resolve
from .sp import exchange_heads


@dataclass(frozen=True)
class LowerTp:
    """Cut weights over tp (and the inside of an expert over etp); placements demand the reductions."""

    name: ClassVar[str] = "tp"

    def run(self, graph: Graph) -> Graph:
        return resolve(self.place(graph), self.name)

    def place(self, graph: Graph) -> Graph:
        """The facts alone: how weights are cut, and which heads each rank attends with."""
        mesh = graph.mesh
        lowered = replace(graph, level="tp").map_nodes(lambda n: _cut(n, mesh))
        if mesh.view("sp") and graph.meta.get("sp_kind") == "ulysses":
            heads = (*mesh.view("tp"), *mesh.view("sp"))
            lowered = lowered.map_blocks(lambda b: exchange_heads(b, mesh, heads))
        return lowered


def _cut(node: Node, mesh: Mesh) -> Node:
    tp, kv, etp = mesh.view("tp"), mesh.view("kv"), mesh.view("etp")
    if node.op == "expert":
        return cut_params(node, {"expert_ffn": etp})
    return cut_params(node, {"heads": tp, "kv_heads": kv, "ffn": tp, "vocab": tp})
