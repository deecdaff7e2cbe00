"""A ring of partial attentions, whole or damaged, back to the one attention that it stands for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ...compiler.ir.graph import Block, Node, Value

_RING = frozenset({"attention_partial", "attention_merge"})


def unringed(block: Block, like: Block | None) -> Block:
    """The block with one attention in place of its ring, where one can be told; resharding is out already.

    Args:
        block: A block, perhaps with a ring.
        like: The block of the logical graph; its attention is put back as it stands there.
    """
    ring = [n for n in block.nodes if n.op in _RING]
    states = [n for n in ring if n.op == "attention_partial" and len(n.inputs) == 2 and n.outputs]
    if not ring or any(n.op == "attention" for n in block.nodes):
        return block
    reference = next((n for n in like.nodes if n.op == "attention"), None) if like is not None else None
    attention = reference or _read(block, states, ring)
    if attention is None:
        return block
    given = {v.name for n in ring for v in n.outputs}
    output = attention.outputs[0].name
    nodes: list[Node] = []
    for node in block.nodes:
        if node.op not in _RING:
            nodes.append(replace(node, inputs=tuple(output if i in given else i for i in node.inputs)))
        elif node is ring[-1]:
            nodes.append(attention)
    return replace(block, nodes=tuple(nodes))


def _read(block: Block, states: list[Node], ring: list[Node]) -> Node | None:
    """The attention as the ring itself tells it: the query of most hops over the cache of those at home."""
    inside = {n.name for n in ring}
    taken = {i for n in block.nodes if n.name not in inside for i in n.inputs} | {block.result}
    outputs = [v for n in ring for v in n.outputs if v.name in taken]
    if not states or len(outputs) != 1:
        return None
    copies = {v.name: n.attrs["weights_of"] for n in block.nodes if "weights_of" in n.attrs for v in n.outputs}
    homes = {n.name: n.outputs[0].name for n in block.nodes if n.outputs}
    query = Counter(n.inputs[0] for n in states).most_common(1)[0][0]
    caches = Counter(homes.get(copies[c], c) if c in copies else c for c in (n.inputs[1] for n in states))
    first = next((n for n in states if any(p.name == "sinks" for p in n.params)), states[0])
    # a state that is taken for the output has a feature more than it
    kind = next((n.outputs[0] for n in ring if n.outputs and not n.outputs[0].type.has("state")), outputs[0])
    return replace(
        first,
        name=first.name.rpartition("_hop")[0] or first.name,
        op="attention",
        inputs=(query, caches.most_common(1)[0][0]),
        outputs=(Value(outputs[0].name, kind.type),),
        attrs={k: v for k, v in first.attrs.items() if k not in ("hop", "ring")},
        constraints={},
        origin="",
    )
