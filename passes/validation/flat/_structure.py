"""Structure of a flat graph: kinds, edges, cycles, loose ends, shards, shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ....compiler.diagnostics import Diagnostic
from ....compiler.ir.ops import OPERATORS
from ....compiler.ir.unrolled import EDGE_KINDS
from ._columns import MAX_TOLD, Columns

_KINDS: dict[str, set[str]] = {}
for _rule in OPERATORS.values():
    _KINDS.setdefault(_rule.public, set()).add(_rule.kind.value)

_SINKS = ("PrefillEnd", "DecodeStepEnd", "KVTransfer")
_FREE_SIZES = frozenset({"rows", "group"})
"""Dimensions whose local size depends on the tokens that are routed."""


def known_kinds(g: Columns) -> Iterator[Diagnostic]:
    """Operators and edge kinds are of the known set, and a node is of its operator's kind."""
    yield from g.tell("PD422", g.op.where(lambda v: v not in _KINDS), lambda n: f"unknown operator `{g.op[n]}`")
    pairs = g.key(g.op.codes, g.kind.codes)
    _, first, which = np.unique(pairs, return_index=True, return_inverse=True)
    wrong = np.array([g.op[n] in _KINDS and g.kind[n] not in _KINDS[g.op[n]] for n in first.tolist()], dtype=np.bool_)
    if wrong.any():
        yield from g.tell("PD422", wrong[which.reshape(-1)], lambda n: f"`{g.op[n]}` as `{g.kind[n]}`")
    strange = np.flatnonzero((g.edge < 0) | (g.edge >= len(EDGE_KINDS)))
    for number in strange[:MAX_TOLD].tolist():
        yield Diagnostic("PD422", f"edge {number} has no known kind", None, " | ".join(EDGE_KINDS))


def edges_exist(g: Columns) -> Iterator[Diagnostic]:
    """Both ends of every edge exist."""
    for number in np.flatnonzero(~g.sound)[:MAX_TOLD].tolist():
        ends = f"from {g.source[number]} to {g.target[number]}"
        yield Diagnostic("PD423", f"edge {number} goes {ends}", None, f"nodes 0 to {len(g) - 1}")


def acyclic(g: Columns) -> Iterator[Diagnostic]:
    """No node depends on itself. Ids that grow along every edge prove it; else it is tried."""
    source, target = g.source[g.sound], g.target[g.sound]
    if (source < target).all():
        return
    count = len(g)
    order = np.argsort(source, kind="stable")
    start = np.searchsorted(source[order], np.arange(count + 1)).tolist()
    following = target[order].tolist()
    waiting = np.bincount(target, minlength=count).tolist()
    ready = [n for n in range(count) if not waiting[n]]
    done = 0
    while ready:
        node = ready.pop()
        done += 1
        for other in following[start[node] : start[node + 1]]:
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    if done < count:
        left = np.flatnonzero(np.array(waiting))
        yield from g.tell("PD401", left, f"one of {count - done} nodes on or behind a cycle", "no cycle")


def loose_ends(g: Columns) -> Iterator[Diagnostic]:
    """Every node but inputs has a predecessor, every node but outputs a successor; an order alone does not count."""
    source, target = g.flow
    given = np.bincount(target, minlength=len(g)) > 0
    taken = np.bincount(source, minlength=len(g)) > 0
    begins = g.is_op("PrefillBegin", "KVTransfer") | (g.is_op("DecodeStepBegin") & (g.step == 0))
    yield from g.tell("PD415", ~given & ~begins, "takes nothing", "a predecessor")
    yield from g.tell("PD415", ~taken & g.has_output & ~g.is_op(*_SINKS), "nothing takes its result", "a successor")


def shards_complete(g: Columns) -> Iterator[Diagnostic]:
    """The shards of a node cover every rank of its stage exactly once; a rank left out would keep its group waiting."""
    if g.mesh is None or not len(g):
        return
    experts = g.is_op("Expert")
    node, rank = g.incidence
    held = np.bincount(g.call[node], minlength=int(g.call.max()) + 1)
    _, first = np.unique(g.call, return_index=True)
    pairs = g.call[node] * (int(rank.max(initial=0)) + 1) + rank
    _, once = np.unique(pairs, return_index=True)
    twice = np.unique(g.call[node[np.setdiff1d(np.arange(len(pairs)), once, assume_unique=True)]])
    ranks = g.mesh.stage_ranks
    short = np.setdiff1d(np.flatnonzero(held < ranks), twice)
    for calls, fault in ((short, "leave ranks out"), (twice, "hold a rank twice")):
        nodes = first[calls]
        for code, mask in (("PD442", experts[nodes]), ("PD443", ~experts[nodes])):
            wanted = f"each of the {ranks} ranks of the stage once"
            yield from g.tell(code, nodes[mask], f"its shards {fault}", wanted)


def dimensions(g: Columns) -> Iterator[Diagnostic]:
    """Compute nodes have tensors, and tensors have dimensions."""
    if g.detail is None:
        return

    def bare(detail: dict[str, Any]) -> bool:
        return any(not t["dims"] or not t["global_dims"] for key in ("inputs", "outputs") for t in detail[key])

    yield from g.tell("PD425", g.detail.where(bare), "a tensor without dimensions", "input and output dimensions")
    empty = g.detail.where(lambda v: not v["outputs"] or not v["inputs"]) & g.kind.where(lambda v: v == "compute")
    yield from g.tell("PD425", empty, "no input or no output", "input and output dimensions")


def shapes(g: Columns) -> Iterator[Diagnostic]:
    """What a node takes is what its predecessor gives, and local sizes are what the placement leaves."""
    if g.detail is None:
        return
    yield from g.tell("PD403", g.detail.where(lambda v: not _sizes_fit(g, v)), "local sizes other than its placement's")
    yield from g.tell("PD403", g.detail.where(_two_sizes), "a dimension with two sizes", "one size in a node")
    source, target = g.flow
    alike = (g.place.codes[source] == g.place.codes[target]) & (g.group.codes[source] == g.group.codes[target])
    pair = g.key(g.detail.codes[source], g.detail.codes[target], alike)
    _, first, which = np.unique(pair, return_index=True, return_inverse=True)
    faults = [
        _disagree(g, g.detail[source[e]]["outputs"], g.detail[target[e]]["inputs"], bool(alike[e]))
        for e in first.tolist()
    ]
    bad = np.array([bool(f) for f in faults], dtype=np.bool_)
    if not bad.any():
        return
    hits = np.flatnonzero(bad[which.reshape(-1)])
    why = which.reshape(-1)
    nodes, one = np.unique(target[hits], return_index=True)
    reason = dict(zip(nodes.tolist(), hits[one].tolist(), strict=True))
    yield from g.tell(
        "PD403", nodes, lambda n: f"takes {faults[why[reason[n]]]} from node {source[reason[n]]}", "what is given"
    )


def _sizes_fit(g: Columns, detail: dict[str, Any]) -> bool:
    for key in ("inputs", "outputs", "weights"):
        for tensor in detail[key]:
            for dim, size in tensor["dims"].items():
                if dim in _FREE_SIZES:
                    continue
                whole, cut = tensor["global_dims"].get(dim), tensor["placement"].get(dim, ())
                if whole is None or size > whole or (not cut and size != whole):
                    return False
                if cut and g.mesh is not None and size > -(-whole // _size(g, cut)):
                    return False
    return True


def _two_sizes(detail: dict[str, Any]) -> bool:
    """Whether operands and results disagree on a dimension; the context grows in a KV write and shrinks in a read."""
    sizes: dict[str, int] = {}
    for tensor in (*detail["inputs"], *detail["outputs"]):
        for dim, size in tensor["global_dims"].items():
            if dim != "context" and sizes.setdefault(dim, size) != size:
                return True
    return False


def _size(g: Columns, words: tuple[str, ...]) -> int:
    return 1 if g.mesh is None else g.mesh.size(a for w in words for a in atoms(g, w))


def atoms(g: Columns, word: str) -> tuple[str, ...]:
    """Atomic axes of a word for axes; none for a word that the mesh has not."""
    assert g.mesh is not None
    named = g.mesh.view(word)
    return named or tuple(a.name for a in g.mesh.axes if a.name == word)


def _disagree(g: Columns, given: Any, taken: Any, alike: bool) -> str:
    """The value on whose shape an edge disagrees, or nothing."""
    names = {t["name"]: t for t in given}
    shared = [(names[t["name"]], t) for t in taken if t["name"] in names]
    for a, b in shared:
        if not _same(g, a, b) or (alike and a["dims"] != b["dims"]):
            return f"`{b['name']}` otherwise"
    # across blocks a value goes by another name
    if not shared and given and taken and not any(_same(g, a, b) for a in given for b in taken):
        return "another shape"
    return ""


def _same(g: Columns, a: Any, b: Any) -> bool:
    """Whether two tensors have one type; a node of the experts' view calls the same axes by other names."""
    if a["dtype"] != b["dtype"] or a["global_dims"] != b["global_dims"]:
        return False
    if g.mesh is None:
        return True
    cuts = ({d: [x for w in words for x in atoms(g, w)] for d, words in t["placement"].items()} for t in (a, b))
    if a.get("shift", {}) != b.get("shift", {}):
        return False
    sums = ({(x, r) for w, r in t["partial"].items() for x in atoms(g, w)} for t in (a, b))
    return next(cuts) == next(cuts) and next(sums) == next(sums)
