"""SP: the residual stream cut over tokens (prefill only)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.ir.graph import Block, Graph, Node
from ...compiler.ir.mesh import Mesh
from ...compiler.ir.ops import Resharding, operator
from ...compiler.ir.ops.attention import kv_head_axes
from ...compiler.ir.types import Placement
from .resolve import resolve
from .ring import ring_attention


@dataclass(frozen=True)
class LowerSp:
    """Cut the stream's sequence over sp, and over tp for the Megatron kind.

    What attention does about it is the kind of SP. ``allgather``: every rank keeps the KV of its own tokens and gathers
    the context. ``ring``: the same, but the blocks travel and attention works on one at a time. ``ulysses``: attention
    has all tokens of some heads, so that queries, keys and values change their cut before it and its output after it.
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
        kind = graph.meta.get("sp_kind")
        if sp and kind == "ring":
            lowered = lowered.map_blocks(lambda b: ring_attention(b, sp, mesh.size(sp)))
        elif sp and kind == "ulysses":
            lowered = lowered.map_blocks(lambda b: exchange_heads(b, mesh, sp))
        return lowered


def exchange_heads(block: Block, mesh: Mesh, heads: tuple[str, ...]) -> Block:
    """The block whose attention has whole sequences and its heads cut over ``heads`` (Ulysses, arXiv 2309.14509).

    KV heads are cut as far as they go round and replicated over the other axes; a latent cache, which has no heads, is
    replicated, and every rank expands it for its own heads.
    """
    attention = next((n for n in block.nodes if n.op == "attention"), None)
    written = next((n for n in block.nodes if n.op == "kv_write"), None)
    if attention is None or written is None:
        return block
    cache = kv_head_axes(block.types[attention.inputs[0]], written.outputs[0].type, heads, mesh)

    results = {v.name for n in (attention, *_resharded(block, attention)) for v in n.outputs}

    def constrained(node: Node) -> Node:
        whole: dict[str, tuple[str, ...]]
        if node is attention:
            whole = {"seq": (), "heads": heads}
        elif node is written:
            whole = {"seq": (), "kv_heads": cache} if cache else {"seq": ()}
        elif node.op == "latent_expand":
            whole = {"kv_heads": heads}
        elif results & set(node.inputs) and not isinstance(operator(node), Resharding):
            whole = {"seq": mesh.view("sp")}
        else:
            return node
        return replace(node, constraints={**node.constraints, **whole})

    return block.map_nodes(constrained)


def _resharded(block: Block, node: Node) -> list[Node]:
    """Resharding nodes that carry the results of a node to its users."""
    found: list[Node] = []
    carried = {v.name for v in node.outputs}
    for other in block.nodes:
        if carried & set(other.inputs) and isinstance(operator(other), Resharding):
            found.append(other)
            carried |= {v.name for v in other.outputs}
    return found
