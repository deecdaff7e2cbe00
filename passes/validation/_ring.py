"""Ring attention: every block of keys and values visits every rank once, and nothing counts twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ...compiler.diagnostics import Diagnostic
from ...compiler.ir.graph import Block, Graph, Node
from ...compiler.ir.ops.ring import ring_ends, ring_states
from ._report import consumers, finding, listed


def rings_whole(graph: Graph) -> Iterator[Diagnostic]:
    """The states of all hops of a ring are merged, each once, one of them with the sinks."""
    for block in graph.blocks:
        names = {n.name: n for n in block.nodes}
        merged: set[str] = set()
        for end in ring_ends(block.nodes):
            times = ring_states(block.nodes, end)
            merged |= times.keys()
            yield from _ring(block, end, [(names[name], many) for name, many in times.items()])
        for node in block.nodes:
            users = [u for v in node.outputs for u in consumers(block, v.name)]
            strange = [u.name for u in users if u.op != "attention_merge"]
            if node.op == "attention_partial" and "hop" in node.attrs and (strange or node.name not in merged):
                message = f"its state goes to {listed(strange) or 'no merge'}"
                yield finding("PD448", block, node, message, "an attention_merge, with the states of the other hops")


def _ring(block: Block, end: Node, times: list[tuple[Node, int]]) -> Iterator[Diagnostic]:
    states = [n for n, _ in times]
    strange = [n.name for n in states if n.op != "attention_partial" or not isinstance(n.attrs.get("hop"), int)]
    rings = {repr(n.attrs.get("ring")) for n in states}
    ranks = states[0].attrs.get("ring") if states else None
    if strange or len(rings) != 1 or not isinstance(ranks, int):
        what = f"results of {listed(strange)}" if strange else f"rings of {', '.join(sorted(rings)) or 'no'} ranks"
        yield finding("PD448", block, end, f"merges {what}", "the states of one ring")
        return
    hops = Counter[int]()
    for node, many in times:
        hops[node.attrs["hop"]] += many
    # among one hop more than there are states at least one is missing, so that a ring may claim any size
    missing = [h for h in range(min(ranks, len(hops) + 8)) if h not in hops]
    again = sorted(h for h, many in hops.items() if many > 1)
    for fault, wrong in (("merges nothing of", missing), ("merges more than once", again)):
        if wrong:
            told = ", ".join(map(str, wrong[:7])) + (", ..." if len(wrong) > 7 else "")
            yield finding("PD448", block, end, f"{fault} hop {told} of a ring of {ranks}", "the state of each hop once")
    counted = [n for n in states if any(p.name == "sinks" for p in n.params)]
    if len(counted) > 1:
        told = ", ".join(str(n.attrs["hop"]) for n in counted)
        yield finding("PD448", block, counted[1], f"sinks are counted at hops {told}", "sinks at one hop")


CHECKS = (rings_whole,)
