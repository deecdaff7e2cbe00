"""Ranks, groups, collectives and experts of a flat graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ....compiler.diagnostics import Diagnostic
from ....compiler.ir.ops import OPERATORS
from ....compiler.ir.unrolled import EDGE_KINDS
from ._columns import Columns, Ints, Mask
from ._structure import atoms

_LINEAR = frozenset(r.public for r in OPERATORS.values() if r.linear_in)
_EXPERTS = ("Router", "Dispatch", "Expert", "Combine")
_MOVES = ("AllReduce", "AllGather", "ReduceScatter", "AllToAll", "RingShift", "Dispatch", "Combine")
_OFF_MAIN = ("Send", "Recv", "KVTransfer")
_ATTENTION = ("KVWrite", "KVRead", "Attention")


def _collective(g: Columns) -> Mask:
    return g.kind.where(lambda v: v == "collective")


# --- ranks ------------------------------------------------------------------------------------------------------------


def devices_exist(g: Columns) -> Iterator[Diagnostic]:
    """Every rank is a GPU of the cluster."""
    if g.gpus is None:
        return
    most = g.gpus
    strange = g.devices.where(lambda v: any(d >= most for d in v))
    yield from g.tell("PD424", strange, lambda n: f"rank {max(g.devices[n])}", f"GPUs 0 to {most - 1}")


def replicas(g: Columns) -> Iterator[Diagnostic]:
    """Data parallelism stays outside: no axis of replicas, no rank of another replica."""
    named = g.group.where(lambda v: "dp" in v) | g.place.where(lambda v: any(k == "dp" for k, _ in v))
    yield from g.tell("PD434", named, "an axis over replicas", "replicas of the whole graph")
    if g.mesh is not None and g.mesh.dp > 1:
        end = g.mesh.first_rank + g.mesh.replica_ranks
        other = g.devices.where(lambda v: any(d >= end for d in v)) & ~named
        yield from g.tell("PD434", other, "a rank of another replica", f"ranks below {end}")


def group_in_stage(g: Columns) -> Iterator[Diagnostic]:
    """The ranks of a node belong to one stage, its own."""
    if g.mesh is None:
        return
    home = {r: s for s in range(g.mesh.pp) for r in g.mesh.ranks(s, {}, [a.name for a in g.mesh.axes])}
    low = g.devices.number(lambda v: min((home.get(d, -1) for d in v), default=-1))
    high = g.devices.number(lambda v: max((home.get(d, -1) for d in v), default=-1))
    wrong = (low != high) & (low >= 0)
    yield from g.tell("PD446", wrong, lambda n: f"ranks of stages {low[n]} to {high[n]}", "one stage")


def group_of_axes(g: Columns) -> Iterator[Diagnostic]:
    """The ranks of a node are those that its stage, its coordinates and its axes say."""
    if g.mesh is None or not len(g):
        return
    key = g.key(g.stage, g.place.codes, g.group.codes, g.devices.codes, _collective(g))
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    wrong = np.array([_expected(g, n) != sorted(g.devices[n]) for n in first.tolist()], dtype=np.bool_)
    if wrong.any():
        yield from g.tell(
            "PD447",
            wrong[which.reshape(-1)],
            lambda n: f"ranks {_short(g.devices[n])} for {'+'.join(g.group[n]) or 'no axis'}",
            "the ranks of its axes",
        )


def _short(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")


def _expected(g: Columns, node: int) -> list[int] | None:
    """Ranks of a node by its coordinates; None where these make no sense on the mesh."""
    mesh = g.mesh
    assert mesh is not None
    group = {a for w in g.group[node] for a in atoms(g, w)}
    fixed: dict[str, int] = {}
    for word, value in g.place[node]:
        rest = value
        for atom in reversed(atoms(g, word)):
            rest, fixed[atom] = divmod(rest, mesh.axis(atom).size)
        if rest:
            return None
    varying = [a.name for a in mesh.axes if a.name not in fixed]
    # a node that moves data along axes stands for all groups that differ on axes which are drawn as one
    fits = group <= set(varying) if g.kind[node] in {"collective", "control"} else group == set(varying)
    if not fits or g.stage[node] >= mesh.pp:
        return None
    return sorted(mesh.ranks(int(g.stage[node]), fixed, varying))


def group_of_one(g: Columns) -> Iterator[Diagnostic]:
    """A collective has two ranks or more."""
    alone = _collective(g) & (g.devices.where(lambda v: len(v) < 2) | g.group.where(lambda v: not v))
    yield from g.tell("PD439", alone, lambda n: f"`{g.op[n]}` of rank {_short(g.devices[n])}", "two ranks or more")


# --- collectives ------------------------------------------------------------------------------------------------------


def collective_order(g: Columns) -> Iterator[Diagnostic]:
    """Two collectives that share ranks come in one order on all of them; without it they can deadlock."""
    node, rank = g.incidence
    main = ~g.is_op(*_OFF_MAIN)
    node, rank = node[main[node]], rank[main[node]]
    order = np.lexsort((node, rank))
    node, rank = node[order], rank[order]
    count = len(g)
    edges = np.unique(g.source[g.sound] * count + g.target[g.sound])
    here = rank[1:] == rank[:-1]
    linked = np.isin(node[:-1] * count + node[1:], edges) | ~here
    # each break gets a number; two collectives of a rank with a break between them must be ordered in another way
    breaks = np.concatenate([[0], np.cumsum(~linked)])
    moving = np.flatnonzero((_collective(g) & g.devices.where(lambda v: len(v) > 1))[node])
    first, second = moving[:-1], moving[1:]
    open_ = (rank[first] == rank[second]) & (breaks[first] != breaks[second])
    pairs = np.unique(np.stack([node[first[open_]], node[second[open_]]], axis=1), axis=0)
    loose = [(a, b) for a, b in pairs.tolist() if len({*g.devices[a]} & {*g.devices[b]}) > 1 and not _reaches(g, a, b)]
    if loose:
        partner = {b: a for a, b in loose}
        yield from g.tell(
            "PD438",
            np.array(sorted(partner), dtype=np.int64),
            lambda n: f"no order between it and {g.at(partner[n])}",
            "an order edge, the same on every rank of the group",
        )


def _reaches(g: Columns, start: int, end: int) -> bool:
    """Whether a path leads from one node to another; ids grow along edges, which bounds the search."""
    sources, targets = g.source[g.sound], g.target[g.sound]
    low, high = np.searchsorted(targets, [start, end], side="left")[0], np.searchsorted(targets, end, side="right")
    if (np.diff(targets) < 0).any():
        kept = (sources >= start) & (targets <= end)
        sources, targets = sources[kept], targets[kept]
    else:
        sources, targets = sources[low:high], targets[low:high]
    following: dict[int, list[int]] = {}
    for a, b in zip(sources.tolist(), targets.tolist(), strict=True):
        following.setdefault(a, []).append(b)
    front, seen = [start], {start}
    while front:
        for other in following.get(front.pop(), ()):
            if other == end:
                return True
            if other not in seen and other <= end:
                seen.add(other)
                front.append(other)
    return False


def partial_sums(g: Columns) -> Iterator[Diagnostic]:
    """A value that is partial goes to a collective or to a linear operator, whose result is partial alike."""
    if g.detail is None:
        return
    summed = g.detail.where(lambda v: any(t["partial"] for t in v["inputs"]))
    uneven = g.detail.where(lambda v: not _passes_on(g, v))
    linear = g.op.where(lambda v: v in _LINEAR)
    passing = g.op.where(lambda v: v in _MOVES) | g.is_op(*_OFF_MAIN) | g.name.where(lambda v: v.endswith(".slice"))
    wrong = (summed & ~linear & ~passing) | (linear & uneven)
    yield from g.tell("PD405", wrong, "takes partial sums", "a reduction before it")


def _passes_on(g: Columns, detail: dict[str, Any]) -> bool:
    """Whether a linear operator's result is partial as its first operand is, and every summand alike."""
    if g.mesh is None or not detail["inputs"] or not detail["outputs"]:
        return True
    first, *rest = (_placed(g, t)[1] for t in detail["inputs"])
    if first and not rest and detail["weights"]:
        return False  # a bias would be added once per rank
    alike = detail["outputs"][0]["global_dims"]
    rest = [s for s, t in zip(rest, detail["inputs"][1:], strict=True) if t["global_dims"] == alike]
    return all(s == first for s in rest) and _placed(g, detail["outputs"][0])[1] == first


def collectives_fit(g: Columns) -> Iterator[Diagnostic]:
    """A collective over its group does to the placement what its name says; else it is wrong, or has nothing to do."""
    if g.detail is None or g.mesh is None:
        return
    mask = g.is_op(*_MOVES)
    nodes = np.flatnonzero(mask)
    key = g.key(g.op.codes[nodes], g.group.codes[nodes], g.detail.codes[nodes])
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    verdict = np.array([_verdict(g, int(nodes[n])) for n in first.tolist()], dtype=np.int64)[which.reshape(-1)]
    for code, number, fault in (
        ("PD406", 1, "has nothing to do"),
        ("PD407", 2, "does not take its operand to its result over its group"),
    ):
        yield from g.tell(code, nodes[verdict == number], fault, "the collective that its placements demand")


def _verdict(g: Columns, node: int) -> int:
    """0 right, 1 redundant, 2 wrong."""
    assert g.detail is not None
    detail = g.detail[node]
    if len(detail["inputs"]) != 1 or len(detail["outputs"]) != 1:
        return 2
    have, result = (_placed(g, detail[k][0]) for k in ("inputs", "outputs"))
    group = {a for w in g.group[node] for a in atoms(g, w)}
    lost = {d: a - result[0].get(d, set()) for d, a in have[0].items() if a - result[0].get(d, set())}
    won = {d: a - have[0].get(d, set()) for d, a in result[0].items() if a - have[0].get(d, set())}
    if g.op[node] == "RingShift":
        return _shift_verdict(g, detail["inputs"][0], detail["outputs"][0], group)
    reduced, added = have[1] - result[1], result[1] - have[1]
    gone, come = (set().union(*x.values()) if x else set() for x in (lost, won))
    right = {
        "AllReduce": reduced == group and not gone and not come,
        "ReduceScatter": reduced == group and come == group and not gone,
        "AllGather": gone == group and not come and not reduced,
    }.get(g.op[node], gone == group and come == group and not reduced)
    if right and not added:
        return 0
    return 1 if not (reduced or gone or come or added) and not group & (have[1] | set().union(*have[0].values())) else 2


def _shift_verdict(g: Columns, have: dict[str, Any], result: dict[str, Any], group: set[str]) -> int:
    """The same for a hop round a ring: one dimension, cut by just the group, travels further."""
    before, after = (t.get("shift", {}) for t in (have, result))
    moved = [d for d in {*before, *after} if before.get(d, 0) != after.get(d, 0)]
    cuts, partial = _placed(g, have)
    if (cuts, partial) != _placed(g, result):
        return 2
    return 0 if len(moved) == 1 and cuts.get(moved[0]) == group else 2 if moved else 1


def _placed(g: Columns, tensor: dict[str, Any]) -> tuple[dict[str, set[str]], set[str]]:
    """Atomic axes that cut each dimension, and those on which the tensor is partial."""
    cuts = {d: {a for w in words for a in atoms(g, w)} for d, words in tensor["placement"].items()}
    return cuts, {a for w in tensor["partial"] for a in atoms(g, w)}


def gathered(g: Columns) -> Iterator[Diagnostic]:
    """Attention sees the whole context: what SP cut is gathered before, or its partial states are merged after."""
    if g.detail is None:
        return
    cut = g.detail.where(
        lambda v: (
            any("context" in t["placement"] for t in v["inputs"])
            and not any("state" in t["dims"] for t in v["outputs"])
        )
    )
    yield from g.tell(
        "PD444", g.is_op("Attention") & cut, "its context is cut over sequence shards", "an all-gather of the KV cache"
    )


# --- modules ----------------------------------------------------------------------------------------------------------


def experts_in_moe(g: Columns) -> Iterator[Diagnostic]:
    """Routing, dispatch and experts stand in MoE modules."""
    wrong = g.is_op(*_EXPERTS) & g.module.where(lambda v: v != "moe")
    yield from g.tell("PD440", wrong, lambda n: f"`{g.op[n]}` in module `{g.module[n]}`", "module `moe`")


def route_edges(g: Columns) -> Iterator[Diagnostic]:
    """A router's choice leaves by an edge of its own kind."""
    route = g.sound & (g.edge == EDGE_KINDS.index("route"))
    routed = np.bincount(g.source[route], minlength=len(g)) > 0
    yield from g.tell("PD441", g.is_op("Router") & ~routed, "its choice goes nowhere", "a route edge")


def dispatched(g: Columns) -> Iterator[Diagnostic]:
    """Tokens that are dispatched come back: as many combines as dispatches, in every layer and trip."""
    there, back = (_per_trip(g, g.is_op(op)) for op in ("Dispatch", "Combine"))
    uneven = np.flatnonzero(there != back)
    _, first = np.unique(g.trip, return_index=True)
    yield from g.tell(
        "PD413",
        first[uneven],
        lambda n: f"{there[g.trip[n]]} dispatches and {back[g.trip[n]]} combines in its layer",
        "a combine for each dispatch",
    )
    if g.mesh is None or g.mesh.degree("ep") < 2:
        return
    fed = g.degree_in(g.is_op("Dispatch", "AllGather", "AllReduce", "AllToAll"), (g.trip,))
    yield from g.tell(
        "PD413", g.is_op("Expert") & (fed == 0), "its tokens were not dispatched", "an edge from a dispatch"
    )


def _per_trip(g: Columns, mask: Mask) -> Ints:
    return np.bincount(g.trip[mask], minlength=int(g.trip.max(initial=-1)) + 1).astype(np.int64)


def expert_slots(g: Columns) -> Iterator[Diagnostic]:
    """The experts of an EP group together hold every slot once."""
    if g.detail is None or g.mesh is None or not g.is_op("Expert").any():
        return
    held = g.detail.number(lambda v: max((t["dims"].get("slot", 0) for t in v["weights"]), default=0))
    whole = g.detail.number(lambda v: max((t["global_dims"].get("slot", 0) for t in v["weights"]), default=0))
    nodes = np.flatnonzero(g.is_op("Expert"))
    node, _ = g.incidence
    mine = g.is_op("Expert")[node]
    calls = int(g.call.max()) + 1
    total = np.bincount(g.call[node[mine]], weights=held[node[mine]], minlength=calls)
    copies = g.mesh.stage_ranks // g.mesh.degree("ep")
    _, one = np.unique(g.call[nodes], return_index=True)
    for_all = nodes[one]
    wrong = for_all[total[g.call[for_all]] != whole[for_all] * copies]
    yield from g.tell("PD442", wrong, lambda n: "its shards do not hold every expert once", "every expert once")


def attention_parts(g: Columns) -> Iterator[Diagnostic]:
    """A layer shows its attention in parts: write, read, attend."""
    inside = (g.layer >= 0) & g.module.where(lambda v: v == "attention")
    _, first = np.unique(g.trip[inside], return_index=True)
    nodes = np.flatnonzero(inside)[first]
    for op in _ATTENTION:
        lacking = nodes[_per_trip(g, g.is_op(op))[g.trip[nodes]] == 0]
        yield from g.tell("PD445", lacking, f"its layer has no {op}", "KVWrite, KVRead and Attention")
