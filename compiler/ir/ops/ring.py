"""Attention in parts: partial states over some of the keys, their merge by log-sum-exp, and the ring made of them.

A *state* is ``[batch, seq, heads, v_dim + 1]``: the attention output over the keys seen so far, normalised among them,
and in the last feature the logarithm of its denominator. Two states of the same queries over disjoint keys merge into
the state over both (Milakov and Gimelshein, arXiv 1805.02867; Liu et al., Ring Attention, arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..graph import Node
from ..mesh import Mesh
from ..types import Number, Placement, TensorType, ceil_div
from ._base import Array, CostClass, Inference, Kind, Operator, Shard, Work, register
from .attention import attend, causal_pairs, kv_head_axes

ATTENTION_OPS = frozenset({"attention", "attention_partial"})
"""Operators that attend."""


@register
class AttentionPartial(Operator):
    """Attention over some of the keys:  ``%state = attention_partial %q, %kv``; see this module on states.

    With ``hop`` and ``ring``: over the keys that a rank sees at that hop of a ring of so many ranks. Tokens lie in
    ``ring`` chunks, and the queries of chunk i see the keys of chunk i - hop (modulo the ring). The pass that makes a
    ring says in ``where seq{..}, context{..}`` which axes are the ring; uncut operands hold all chunks.

    Without them: over all keys, and a context that is cut where the queries are not gives Partial(lse). Sinks are
    keys that no rank has; they belong to exactly one of the states that are merged.
    """

    name = "attention_partial"
    public = "Attention"
    cost_class = CostClass.ATTENTION

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        query, cache = inputs
        hop, ring = node.attrs.get("hop"), node.constraints.get("seq", ())
        if hop is not None and ring and (mesh.size(ring) != node.attrs["ring"] or not 0 <= hop < node.attrs["ring"]):
            raise ValueError(f"hop {hop} of a ring of {node.attrs['ring']}, whose axes have {mesh.size(ring)} ranks")
        if ring != node.constraints.get("context", ()):
            raise ValueError(
                f"queries lie on the ring of {ring}, keys on that of {node.constraints.get('context', ())}"
            )
        batch, seq, heads = (tuple(a for a in query.axes_of(d) if a not in ring) for d in ("batch", "seq", "heads"))
        context: tuple[str, ...] = ring
        partial: tuple[tuple[str, str], ...] = ()
        if hop is not None:
            seq = ring
        elif not any(p.name == "sinks" for p in node.params):
            context = tuple(a for a in cache.axes_of("context") if a not in (*batch, *seq, *heads))
            partial = tuple((a, "lse") for a in sorted(context))
        want_query = Placement((batch, seq, heads, ()))
        per_dim = {"batch": batch, "context": context, "kv_heads": kv_head_axes(query, cache, heads, mesh)}
        hops = tuple((hop or 0) if d == "context" and context else 0 for d in cache.names)
        want_cache = Placement(tuple(per_dim.get(d, ()) for d in cache.names), (), hops)
        consts = {
            "positions": Placement((seq,)),
            "key_positions": Placement((context,), (), (sum(hops),)),
            "sinks": Placement((heads,)),
        }
        params = tuple(p.type.placed(consts[p.name]) for p in node.params)
        result = node.outputs[0].type.placed(Placement((batch, seq, heads, ()), partial))
        return Inference((want_query, want_cache), params, (result,))

    def flops(self, work: Work) -> Number:
        """Of one hop: an equal share of the rank's pairs, which the zig-zag order makes exact."""
        q = work.input(0)
        new, context = work.extents["new"], work.extents["context"]
        pairs = causal_pairs(new, context - new, work.attrs.get("window")) * (q["seq"] / new)
        share = 1 / work.attrs["ring"] if "ring" in work.attrs else work.input(1)["context"] / context
        return 2 * q["batch"] * pairs * share * q["heads"] * (q["head_dim"] + work.attrs["v_dim"])

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        unseen = None
        if "hop" in shard.attrs and not shard.is_cut("context"):
            parts, hop = shard.attrs["ring"], shard.attrs["hop"]
            queries, keys = (_chunk_of(x.shape[1], parts) for x in inputs)
            unseen = keys[None, :] != (queries[:, None] - hop) % parts
        output, denominator = attend(shard, inputs, params, unseen)
        return [np.concatenate([output, denominator[..., None]], axis=-1)]


def _chunk_of(size: int, parts: int) -> Array:
    """Number of the ceiling chunk of each index."""
    chunks: Array = np.arange(size) // max(1, ceil_div(size, parts))
    return chunks


@register
class AttentionMerge(Operator):
    """The state over the keys of two states:  ``%state = attention_merge %a, %b``.

    The last merge of a ring gives the output alone: its result has ``v_dim`` in place of ``state``.
    """

    name = "attention_merge"
    public = "Aggregate"
    kind = Kind.CONTROL
    shape = "parallelogram"

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"state", node.outputs[0].type.names[-1]})

    def flops(self, work: Work) -> Number:
        return 4 * work.input_elements(0)

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        merged = merge_states(*inputs)
        return [merged if shard.node.outputs[0].type.has("state") else merged[..., :-1]]


def merge_states(a: Array, b: Array) -> Array:
    """The state over the keys of both; associative and commutative up to rounding."""
    total = np.logaddexp(a[..., -1:], b[..., -1:])
    # a query that sees no key yet has the denominator 0 and the output 0
    reference = np.where(np.isfinite(total), total, 0.0)
    output = a[..., :-1] * np.exp(a[..., -1:] - reference) + b[..., :-1] * np.exp(b[..., -1:] - reference)
    return np.concatenate([output, total], axis=-1)


# --- the ring as one attention --------------------------------------------------------------------------------------


def ring_ends(nodes: Sequence[Node]) -> list[Node]:
    """The last merge of each ring."""
    merged = {i for n in nodes if n.op == "attention_merge" for i in n.inputs}
    return [n for n in nodes if n.op == "attention_merge" and n.outputs and n.outputs[0].name not in merged]


def ring_states(nodes: Sequence[Node], end: Node) -> dict[str, int]:
    """Names of the nodes whose states lead to ``end``, and how often each is merged: once, or 2 for more than once."""
    merged: dict[str, dict[str, int]] = {}
    for node in nodes:
        total: dict[str, int] = {}
        if node.op == "attention_merge":
            for states in (merged.get(value, {}) for value in node.inputs):
                total.update((name, min(2, times + total.get(name, 0))) for name, times in states.items())
            if node.name == end.name:
                return total
        else:
            total[node.name] = 1
        merged.update((v.name, total) for v in node.outputs)
    return {}


def fold_rings(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with every whole ring as the one Attention that it computes.

    A ring is whole where its merges take the state of each hop once, all of the same query, cache and attributes, one
    of them with the sinks if any; what is not stays as it is. Hops of a latent cache expand the blocks that travel with
    the weights of one node (``weights_of``); they fold into that node. Resharding is to be taken out before.
    """
    nodes = _without_copies(nodes)
    result = list(nodes)
    by_name = {n.name: n for n in nodes}
    for end in ring_ends(nodes):
        times = ring_states(nodes, end)
        states = [by_name[name] for name in times]
        folded = folded_ring(states, end)
        if folded is None or set(times.values()) != {1} or not _is_whole(states):
            continue
        gone = {n.name for n in states} | {n.name for n in _merges(nodes, end)} - {end.name}
        result = [folded if n.name == end.name else n for n in result if n.name not in gone]
    return result


def folded_ring(states: Sequence[Node], end: Node) -> Node | None:
    """The Attention that these states make together, or None where none of them attends."""
    attending = [n for n in states if n.op == "attention_partial"]
    if not attending:
        return None
    first = next((n for n in attending if any(p.name == "sinks" for p in n.params)), attending[0])
    attrs = {k: v for k, v in first.attrs.items() if k not in ("hop", "ring")}
    name = first.name.rpartition("_hop")[0] or first.name
    return replace(first, name=name, op="attention", attrs=attrs, outputs=end.outputs, constraints={})


def _is_whole(states: Sequence[Node]) -> bool:
    hops = {n.attrs.get("hop") for n in states}
    like = states[0]
    ranks = like.attrs.get("ring")
    alike = all(
        (n.op, n.inputs, n.module, n.items, n.steps) == (like.op, like.inputs, like.module, like.items, like.steps)
        and {**n.attrs, "hop": 0} == {**like.attrs, "hop": 0}
        for n in states
    )
    sinks = [sum(p.name == "sinks" for p in n.params) for n in states]
    return alike and ranks == len(states) and hops == set(range(len(states))) and sum(sinks) <= 1


def _merges(nodes: Sequence[Node], end: Node) -> list[Node]:
    """The merges that lead to ``end``, itself included."""
    producers = {v.name: n for n in nodes for v in n.outputs}
    found, front = {end.name: end}, [end]
    while front:
        for value in front.pop().inputs:
            maker = producers.get(value)
            if maker is not None and maker.op == "attention_merge" and maker.name not in found:
                found[maker.name] = maker
                front.append(maker)
    return list(found.values())


def _without_copies(nodes: Sequence[Node]) -> list[Node]:
    """Nodes that do on a travelling block what another does at home, with its weights, are that other one."""
    home = {n.name: n for n in nodes}
    alias: dict[str, str] = {}
    kept: list[Node] = []
    for node in nodes:
        if not alias.keys().isdisjoint(node.inputs):
            node = replace(node, inputs=tuple(alias.get(i, i) for i in node.inputs))
        owner = home.get(node.attrs.get("weights_of", ""))
        if owner is not None and _same_work(node, owner):
            alias.update((v.name, w.name) for v, w in zip(node.outputs, owner.outputs, strict=True))
        else:
            kept.append(node)
    return kept


def _same_work(node: Node, owner: Node) -> bool:
    attrs = {k: v for k, v in node.attrs.items() if k not in ("hop", "weights_of")}
    own = {k: v for k, v in owner.attrs.items() if k not in ("hop", "weights_of")}
    return (
        (node.op, node.inputs, attrs, node.module, node.items, node.steps, len(node.outputs))
        == (owner.op, owner.inputs, own, owner.module, owner.items, owner.steps, len(owner.outputs))
        and [(p.name, p.type.dims) for p in node.params] == [(p.name, p.type.dims) for p in owner.params]
    )  # fmt: skip
