"""Flattening: shards of every call, and edges between shards, by broadcasting."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...compiler.cost import NodeCost
from ...compiler.diagnostics import Diagnostic, DiagnosticError
from ...compiler.ir.flat import FlatGraph
from ...compiler.ir.graph import Node
from ...compiler.ir.mesh import ATTENTION_VIEW, EXPERT_VIEW, Mesh
from ...compiler.ir.unrolled import Unrolled

MAX_NODES = 50_000_000
"""Nodes of a flat graph; with their edges they take about a gigabyte."""

_CHUNK = 1 << 20
"""Edges made at once: bounds the memory of temporaries."""


def flatten(unrolled: Unrolled, costs: dict[tuple[str, str], NodeCost], *, expand_ranks: bool = False) -> FlatGraph:
    """The flat graph of an unrolled one.

    Args:
        unrolled: Calls and edges.
        costs: Cost of each node by (block, node).
        expand_ranks: Split compute nodes over tp and etp too; a collective stays one node per group.

    Raises:
        DiagnosticError: PD306, more than ``MAX_NODES`` nodes.
    """
    mesh = unrolled.graph.mesh
    expanded = tuple(expanded_axes(node, mesh, expand_ranks) for _, node in unrolled.templates)
    widths = np.array([mesh.size(axes) for axes in expanded], dtype=np.int64)[unrolled.template]
    first = np.concatenate([[0], np.cumsum(widths)])
    if first[-1] > MAX_NODES:
        raise DiagnosticError([_too_large(int(first[-1]))])
    indptr, sources, kinds = _edges(unrolled, expanded, widths, first, mesh)
    duration = unrolled.gather([costs[b.name, n.name].time for b, n in unrolled.templates])
    return FlatGraph(unrolled, expanded, first.astype(np.int32), indptr, sources, kinds, duration)


def expanded_axes(node: Node, mesh: Mesh, ranks: bool = False) -> tuple[str, ...]:
    """Mesh axes over which a node is repeated; the others are its device group."""
    group = set(node.attrs.get("axes", ()))
    if ranks:
        return tuple(a.name for a in mesh.axes if a.name not in group)
    views = EXPERT_VIEW[:2] if node.view == "expert" else ATTENTION_VIEW[:2]
    return mesh.ordered(a for v in views for a in mesh.view(v) if a not in group)


def _edges(
    unrolled: Unrolled,
    expanded: tuple[tuple[str, ...], ...],
    widths: NDArray[np.int64],
    first: NDArray[np.int64],
    mesh: Mesh,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]:
    source, target, kind = unrolled.source, unrolled.target, unrolled.edge_kind
    shapes = sorted(set(expanded))
    shape_of = np.array([shapes.index(e) for e in expanded], dtype=np.int64)[unrolled.template]
    pattern = shape_of[source] * len(shapes) + shape_of[target]
    tables = {int(p): shard_map(shapes[p // len(shapes)], shapes[p % len(shapes)], mesh) for p in np.unique(pattern)}
    fan = np.zeros(len(shapes) ** 2, dtype=np.int64)
    for number, table in tables.items():
        fan[number] = table.shape[1]
    fan_in = fan[pattern]
    # In-edges of a call lie together; `slot` is where each of its call edges begins within one shard's list.
    ends = np.cumsum(fan_in)
    calls = len(unrolled)
    per_shard = np.bincount(target, weights=fan_in, minlength=calls).astype(np.int64)
    group_start = np.concatenate([[0], np.cumsum(per_shard)])[target]
    slot = ends - fan_in - group_start
    base = np.concatenate([[0], np.cumsum(per_shard * widths)])
    total = int(base[-1])
    if total >= 2**31:
        raise DiagnosticError([_too_large(total)])
    sources = np.empty(total, dtype=np.int32)
    kinds = np.empty(total, dtype=np.int8)
    for number, table in tables.items():
        mine = np.flatnonzero(pattern == number)
        step = max(1, _CHUNK // table.size)
        for low in range(0, len(mine), step):
            e = mine[low : low + step]
            to, shards = target[e], np.arange(table.shape[0])
            place = (base[to] + slot[e])[:, None, None] + (per_shard[to, None] * shards)[:, :, None]
            place = place + np.arange(table.shape[1])
            sources[place] = first[source[e]][:, None, None] + table
            kinds[place] = kind[e][:, None, None]
    degrees = np.repeat(per_shard, widths)
    indptr = np.zeros(int(first[-1]) + 1, dtype=np.int32)
    np.cumsum(degrees, out=indptr[1:])
    return indptr, sources, kinds


def shard_map(source: tuple[str, ...], target: tuple[str, ...], mesh: Mesh) -> NDArray[np.int64]:
    """Source shards that each target shard depends on: [target shards, fan-in].

    Equal coordinates on shared axes; fan-in over axes that only the source has, fan-out over those that only the
    target has.
    """
    only_source = tuple(a for a in source if a not in target)
    axes = (*target, *only_source)
    sizes = [mesh.axis(a).size for a in axes]
    coordinates = dict(zip(axes, np.indices(sizes).reshape(len(axes), -1), strict=True)) if axes else {}
    index = np.zeros(int(np.prod(sizes, dtype=np.int64)), dtype=np.int64)
    for name in source:
        index = index * mesh.axis(name).size + coordinates[name]
    return index.reshape(mesh.size(target), mesh.size(only_source))


def _too_large(nodes: int) -> Diagnostic:
    return Diagnostic(
        "PD306",
        f"the flat graph would have {nodes:,} nodes or edges",
        expected=f"at most {MAX_NODES:,}",
        help="fewer --steps, or no --expand ranks",
    )
