"""Alpha-beta costs of collectives over the link that a group really spans.

``n`` is the payload: bytes of the local input buffer. Bytes on the wire per rank, ring algorithms (t ranks): all-reduce
2n(t-1)/t, all-gather n(t-1), reduce-scatter n(t-1)/t, all-to-all n(t-1)/t, point-to-point n. A group that spans
several scale-up domains runs hierarchically: m ranks inside a domain, t/m domains. Latency: one hop per doubling of
the group (tree). Source: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH",
2005.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..ir.mesh import Mesh
from ..ir.types import Number
from .hardware import Hardware

_HOPS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1, "dispatch": 1, "combine": 1}


def wire_bytes(op: str, payload: Number, ranks: Number) -> Number:
    """Bytes that one rank sends for a collective."""
    if op == "all_reduce":
        return 2 * payload * (ranks - 1) / ranks
    if op == "all_gather":
        return payload * (ranks - 1)
    if op in ("reduce_scatter", "all_to_all", "dispatch", "combine"):
        return payload * (ranks - 1) / ranks
    return payload


def ranks_in_domain(mesh: Mesh, axes: Iterable[str], domain: Number) -> Number:
    """How many ranks of a group over ``axes`` share a scale-up domain (groups are aligned to domains)."""
    inside: Number = 1
    for name in axes:
        axis = mesh.axis(name)
        inside = inside * np.clip(domain // axis.stride, 1, axis.size)
    return inside


def collective_time(
    op: str, payload: Number, ranks: Number, inside: Number, hardware: Hardware
) -> tuple[Number, Number]:
    """(transfer seconds, latency seconds) of a collective.

    Args:
        op: Operator name.
        payload: Local input bytes.
        ranks: Group size t.
        inside: Ranks m of the group inside one scale-up domain.
        hardware: The links.
    """
    outside = ranks / inside
    up, out = hardware.scale_up, hardware.scale_out
    if op == "all_reduce":
        # reduce-scatter inside, all-reduce of 1/m across, all-gather inside
        inner, across = 2 * payload * (inside - 1) / inside, 2 * (payload / inside) * (outside - 1) / outside
    elif op == "all_gather":
        # gather across domains first, then spread inside
        across, inner = payload * (outside - 1), payload * outside * (inside - 1)
    elif op == "reduce_scatter":
        inner, across = payload * (inside - 1) / inside, (payload / inside) * (outside - 1) / outside
    else:
        # all-to-all: both links carry their share at the same time
        inner, across = payload * (inside - 1) / ranks, payload * (ranks - inside) / ranks
        latency = _doublings(inside) * up.latency + _doublings(outside) * out.latency
        return np.maximum(inner / up.bandwidth, across / out.bandwidth), latency
    hops = _HOPS[op]
    latency = hops * (_doublings(inside) * up.latency + _doublings(outside) * out.latency)
    return inner / up.bandwidth + across / out.bandwidth, latency


def _doublings(ranks: Number) -> Any:
    return np.ceil(np.log2(ranks))


def transfer_time(payload: Number, crosses: Number, hardware: Hardware) -> tuple[Number, Number]:
    """(transfer seconds, latency seconds) of a point-to-point message; ``crosses`` where it leaves the domain."""
    bandwidth = np.where(crosses, hardware.scale_out.bandwidth, hardware.scale_up.bandwidth)
    latency = np.where(crosses, hardware.scale_out.latency, hardware.scale_up.latency)
    return payload / bandwidth, latency


def boundary_crosses(mesh: Mesh, source: int, target: int, domain: int) -> bool:
    """Whether any rank of stage ``source`` has its partner of stage ``target`` in another scale-up domain."""
    varying = [a.name for a in mesh.axes]
    sources, targets = mesh.ranks(source, {}, varying), mesh.ranks(target, {}, varying)
    return any(a // domain != b // domain for a, b in zip(sources, targets, strict=True))


def ring_crosses(mesh: Mesh, axes: Iterable[str], hops: int, domain: int) -> bool:
    """Whether any rank of a ring over ``axes`` has the one ``hops`` further in another scale-up domain."""
    ring = tuple(axes)
    others = [a.name for a in mesh.axes if a.name not in ring]
    table = np.array(mesh.ranks(0, {}, [*others, *ring])).reshape(-1, mesh.size(ring)) // domain
    return bool((table != np.roll(table, -hops, axis=1)).any())
