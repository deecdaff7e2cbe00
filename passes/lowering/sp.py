"""SP: the residual stream cut over tokens (prefill only)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.ir.graph import Graph, Node
from ...compiler.ir.types import Placement
from .resolve import resolve


@dataclass(frozen=True)
class LowerSp:
    """Cut the stream's sequence over sp, and over tp for the Megatron kind.

    Kind allgather: every rank keeps the KV of its own tokens and gathers the context before attention.
    """

    name: ClassVar[str] = "sp"

    def run(self, graph: Graph) -> Graph:
        return resolve(self.place(graph), self.name)

    def place(self, graph: Graph) -> Graph:
        """The facts alone: how the stream is cut."""
        mesh = graph.mesh
        sp = mesh.view("sp")
        seq = (*sp, *(mesh.view("tp") if graph.meta.get("megatron_sp") else ()))
        lowered = replace(graph, level="sp")
        if seq:
            shards = graph.stream.placement.shards
            lowered = replace(lowered, stream=graph.stream.placed(Placement((shards[0], seq, *shards[2:]))))

            def cut(node: Node) -> Node:
                if node.op != "take_tokens":
                    return node
                return replace(node, constraints={**node.constraints, "seq": sp})

            lowered = lowered.map_nodes(cut)
        return lowered
