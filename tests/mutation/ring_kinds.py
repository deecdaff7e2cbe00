"""Damage to the ways in which attention sees other ranks' tokens: rings of partial attentions, heads exchanged."""

from __future__ import annotations

import random
from dataclasses import replace

from paradag.compiler.ir.graph import Block, Graph, Node
from paradag.tests.mutation.damage import Damage, pick
from paradag.tests.mutation.graph_kinds import PREFILL, kind, nodes
from paradag.tests.passes.validation import damage as d


def _op(graph: Graph, op: str) -> list[tuple[Block, Node]]:
    return nodes(graph, lambda _, n: n.op == op)


def _shift_dropped(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _op(graph, "ring_shift"))
    return d.bypass(graph, block.name, node.name)


def _shift_too_far(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, [(b, n) for b, n in _op(graph, "ring_shift") if n.attrs["ring"] > 2])
    return d.node(graph, block.name, node.name, attrs={**node.attrs, "hops": 2})


def _merge_skipped(graph: Graph, rng: random.Random) -> Graph:
    """The states so far are not merged with that of this hop."""
    merges = [(b, n) for b, n in _op(graph, "attention_merge") if n.outputs[0].type.has("state")]
    block, node = pick(rng, merges)
    return d.bypass(graph, block.name, node.name)


def _hop_doubled(graph: Graph, rng: random.Random) -> Graph:
    """One hop's state stands in for another's."""
    block, node = pick(rng, _op(graph, "attention_merge"))
    states = {n.outputs[0].name for n in block.nodes if n.op == "attention_partial"} - {node.inputs[1]}
    before = sorted(states & _defined_before(block, node))
    return d.rewire(graph, block.name, node.name, node.inputs[1], pick(rng, before))


def _defined_before(block: Block, node: Node) -> set[str]:
    place = [n.name for n in block.nodes].index(node.name)
    return {v.name for n in block.nodes[:place] for v in n.outputs}


def _hop_misnumbered(graph: Graph, rng: random.Random) -> Graph:
    block, node = pick(rng, _op(graph, "attention_partial"))
    hop = pick(rng, [h for h in range(node.attrs["ring"]) if h != node.attrs["hop"]])
    return d.node(graph, block.name, node.name, attrs={**node.attrs, "hop": hop})


def _sinks_twice(graph: Graph, rng: random.Random) -> Graph:
    found = [(b, n) for b, n in _op(graph, "attention_partial") if any(p.name == "sinks" for p in n.params)]
    block, first = pick(rng, found)
    others = [n for n in block.nodes if n.op == "attention_partial" and n.name != first.name]
    other = pick(rng, others)
    return d.node(graph, block.name, other.name, params=(*other.params, first.param("sinks")))


def _sinks_lost(graph: Graph, rng: random.Random) -> Graph:
    found = [(b, n) for b, n in _op(graph, "attention_partial") if any(p.name == "sinks" for p in n.params)]
    block, node = pick(rng, found)
    return d.node(graph, block.name, node.name, params=tuple(p for p in node.params if p.name != "sinks"))


def _block_of_another_latent(graph: Graph, rng: random.Random) -> Graph:
    """The latent block of a hop is expanded by weights that change places."""
    block, node = pick(rng, [(b, n) for b, n in _op(graph, "latent_expand") if n.attrs.get("hop")])
    first, second = node.params
    swapped = (replace(first, name=second.name), replace(second, name=first.name))
    return d.node(graph, block.name, node.name, params=swapped)


def _exchange_dropped(graph: Graph, rng: random.Random) -> Graph:
    found = [(b, n) for b, n in _op(graph, "all_to_all") if n.module == "attention"]
    block, node = pick(rng, found)
    return d.bypass(graph, block.name, node.name)


RING_KINDS: tuple[Damage[Graph], ...] = (
    kind("ring shift dropped", "PD405 PD407", _shift_dropped, repaired=True, phases=PREFILL, must="ring"),
    kind("ring shift too far", "PD407 PD405", _shift_too_far, repaired=True, phases=PREFILL, must="ring"),
    kind("merge of a hop skipped", "PD448", _merge_skipped, repaired=True, phases=PREFILL, must="ring"),
    kind("hop merged twice", "PD448", _hop_doubled, repaired=True, phases=PREFILL, must="ring"),
    kind("hop misnumbered", "PD448", _hop_misnumbered, repaired=True, phases=PREFILL, must="ring",
         seen="never: on a rank, positions alone tell whom a token sees"),
    kind("sinks counted twice", "PD448", _sinks_twice, repaired=True, phases=PREFILL, must="ring sinks heads"),
    kind("sinks of a ring lost", "PD414", _sinks_lost, repaired=True, phases=PREFILL, must="ring sinks heads"),
    kind("weights of a travelling latent swapped", "PD403 PD414", _block_of_another_latent, phases=PREFILL,
         must="ring mla", repaired=True),
    kind("exchange of heads and tokens dropped", "PD405", _exchange_dropped, repaired=True, phases=PREFILL,
         must="ulysses heads"),
)  # fmt: skip
