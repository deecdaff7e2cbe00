"""Costs of collectives over the links that a group really spans.

``n`` is the payload: bytes of the local input buffer. Bytes on the wire per rank, ring algorithms (t ranks): all-reduce
2n(t-1)/t, all-gather n(t-1), reduce-scatter n(t-1)/t, all-to-all n(t-1)/t, point-to-point n. A group that spans
several scale-up domains runs hierarchically: m ranks inside a domain, t/m domains. Source: Thakur, Rabenseifner, Gropp,
"Optimization of Collective Communication Operations in MPICH", 2005. A message cut into pieces that flow through the
ring costs ``steps + b + 2 sqrt(step b)`` at the best number of pieces, hence the square root.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..ir.mesh import Mesh
from ..ir.types import Number
from ..spec.calibration import CollectiveParameters, ExchangeParameters
from ._terms import Terms, smooth_max
from .hardware import Hardware, Link

_STEPS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1, "p2p": 1}
"""Hops of an empty message over a link that was never measured, per doubling of the group."""
EXCHANGES = ("dispatch", "combine")
EXCHANGE_MODES = ("low_latency", "normal")


def wire_bytes(op: str, payload: Number, ranks: Number) -> Number:
    """Bytes that one rank sends for a collective."""
    if op == "all_reduce":
        return 2 * payload * (ranks - 1) / ranks
    if op == "all_gather":
        return payload * (ranks - 1)
    if op in ("reduce_scatter", "all_to_all", "dispatch", "combine"):
        return payload * (ranks - 1) / ranks
    return payload


def link_shares(op: str, ranks: Number, inside: Number) -> tuple[Number, Number]:
    """Shares of :func:`wire_bytes` that go over (scale-up, scale-out) links; both 0 for a group of one rank.

    Hierarchical collectives send everything inside the domains first and 1/m of it across; all-to-all, dispatch and
    combine send to every rank alike.

    Args:
        op: Operator.
        ranks: Group size t.
        inside: Ranks m of the group inside one scale-up domain.
    """
    rounds = 1 if op == "all_to_all" or op in EXCHANGES else ranks / inside
    near = (inside - 1) * rounds / np.maximum(ranks - 1, 1)
    return near, np.where(np.asarray(ranks) > 1, 1 - near, 0.0)


def ranks_in_domain(mesh: Mesh, axes: Iterable[str], domain: Number) -> Number:
    """How many ranks of a group over ``axes`` share a scale-up domain (groups are aligned to domains)."""
    inside: Number = 1
    for name in axes:
        axis = mesh.axis(name)
        inside = inside * np.clip(domain // axis.stride, 1, axis.size)
    return inside


def collective_time(op: str, payload: Number, ranks: Number, inside: Number, hardware: Hardware) -> Terms:
    """Seconds of a collective, launch included; 0 for a group of one rank.

    Args:
        op: ``all_reduce``, ``all_gather``, ``reduce_scatter`` or ``all_to_all``.
        payload: Local input bytes.
        ranks: Group size t.
        inside: Ranks m of the group inside one scale-up domain.
        hardware: The links.
    """
    outside = ranks / inside
    parameters = hardware.calibration.collective(op)
    up, out = hardware.scale_up, hardware.scale_out
    if op == "all_to_all":
        # both links carry their share at the same time
        near = wire_time(op, payload * (inside - 1) / ranks, inside, up, parameters)
        far = wire_time(op, payload * (ranks - inside) / ranks, outside, out, None)
        network, latency = np.maximum(near.network, far.network), near.latency + far.latency
        time, ideal = network + latency, np.maximum(near.ideal, far.ideal)
    else:
        # all-reduce: reduce-scatter inside, all-reduce of 1/m across, all-gather inside
        across = payload if op == "all_gather" else payload / inside
        local = payload * outside if op == "all_gather" else payload
        near = wire_time(op, wire_bytes(op, local, inside), inside, up, parameters, message=local)
        far = wire_time(op, wire_bytes(op, across, outside), outside, out, None)
        time, network, latency = near.time + far.time, near.network + far.network, near.latency + far.latency
        ideal = near.ideal + far.ideal
    active = np.asarray(ranks) > 1
    # fitted latencies hold the launch; latencies per hop do not
    launch = hardware.launch * (up.stated_latency | (np.asarray(inside) <= 1))
    return Terms(
        np.where(active, np.maximum(time + launch, hardware.issue), 0.0),
        network=np.where(active, network, 0.0),
        latency=np.where(active, latency + launch, 0.0),
        ideal=np.where(active, ideal, 0.0),
    )


def wire_time(
    op: str,
    wire: Number,
    ranks: Number,
    link: Link,
    parameters: CollectiveParameters | None,
    *,
    message: Number = 0.0,
) -> Terms:
    """Seconds over one link; 0 for one rank.

    ``latency + hop * doublings beyond the first + b + sqrt(pipeline * b)``, ``b = wire / (bandwidth * efficiency)``; on
    a bus the bandwidth falls with the ranks.

    Args:
        op: Operator.
        wire: Bytes that one rank sends.
        ranks: Group size on this link.
        link: The link.
        parameters: Fitted figures, or None for a link that was not measured: then its stated latency per hop counts.
        message: Local bytes of an all-reduce, which one-shot and two-shot kernels may serve.
    """
    doublings = np.ceil(np.log2(np.maximum(ranks, 1)))
    active = np.asarray(ranks) > 1
    if parameters is None:
        network: Any = wire / link.bandwidth
        latency: Any = _STEPS.get(op, 1) * doublings * link.latency
    else:
        p = parameters
        shared = link.peak / np.maximum(ranks / 2, 1.0) ** p.contention
        transfer = wire / (shared * p.efficiency)
        network = transfer + np.sqrt(p.pipeline_s * transfer)
        further = np.maximum(doublings - 1, 0)
        stated = _STEPS.get(op, 1) * doublings * link.latency
        latency = stated if link.stated_latency else p.latency_s + p.hop_s * further
        if op == "all_reduce" and p.direct_latency_s > 0:
            start = stated if link.stated_latency else p.direct_latency_s + p.direct_hop_s * further
            rate = shared * p.direct_efficiency
            one, two = message * (ranks - 1) / rate, wire / rate
            second = np.where(start + one <= start + two + p.second_s, 0.0, p.second_s)
            direct = np.where(second > 0, two, one)
            better = start + second + direct < latency + network
            network, latency = np.where(better, direct, network), np.where(better, start + second, latency)
    network, latency = np.where(active, network, 0.0), np.where(active, latency, 0.0)
    return Terms(network + latency, network=network, latency=latency, ideal=np.where(active, wire / link.peak, 0.0))


def exchange_time(
    op: str, payload: Number, ranks: Number, inside: Number, hardware: Hardware, *, top_k: Number = 1, mode: str = "any"
) -> Terms:
    """Seconds of an expert dispatch or combine, launch included; 0 for a group of one rank.

    Args:
        op: ``dispatch`` or ``combine``.
        payload: Local routed rows in bytes (tokens x top_k x hidden).
        ranks: Group size t.
        inside: Ranks m of the group inside one scale-up domain.
        hardware: The links.
        top_k: Experts that a token visits: a token goes to a rank once in ``normal`` mode, whatever its experts there.
        mode: ``low_latency`` (one message per routed row), ``normal`` (throughput kernels), or ``any``: the faster.
    """
    modes = EXCHANGE_MODES if mode == "any" else (mode,)
    found = [_exchange(op, payload, ranks, inside, hardware, top_k, m) for m in modes]
    first, *others = found
    for other in others:
        better = other.time < first.time
        first = Terms(*(np.where(better, a, b) for a, b in zip(other, first, strict=True)))
    return first


def _exchange(
    op: str, payload: Number, ranks: Number, inside: Number, hardware: Hardware, top_k: Number, mode: str
) -> Terms:
    links = (hardware.scale_up, hardware.scale_out)
    found = exchange_terms(payload, ranks, inside, links, hardware.calibration.exchange(op, mode), top_k, mode)
    active = np.asarray(ranks) > 1
    return found._replace(time=np.where(active, np.maximum(found.time, hardware.issue), 0.0))


def exchange_terms(
    payload: Number,
    ranks: Number,
    inside: Number,
    links: tuple[Link, Link],
    parameters: ExchangeParameters,
    top_k: Number,
    mode: str,
) -> Terms:
    """Seconds of an exchange in one mode over (scale-up, scale-out); see :func:`exchange_time`."""
    p, (up, out) = parameters, links
    near, far = exchange_bytes(payload, ranks, inside, top_k, mode)
    crosses = np.asarray(ranks / inside) > 1
    network = smooth_max(near / (up.peak * p.efficiency), far / (out.peak * p.network_efficiency), p.overlap)
    latency = p.latency_s + np.where(crosses, p.network_latency_s, 0.0)
    ideal = np.maximum(near / up.peak, far / out.peak)
    active = np.asarray(ranks) > 1
    return Terms(*(np.where(active, x, 0.0) for x in (network + latency, 0.0, 0.0, network, latency, ideal)))


def exchange_bytes(payload: Number, ranks: Number, inside: Number, top_k: Number, mode: str) -> tuple[Number, Number]:
    """Bytes that one rank sends over (scale-up, scale-out) links in one mode; see :func:`exchange_time`."""
    outside = ranks / inside
    if mode == "normal":
        # one copy per rank inside, one per domain across (the domain's ranks share it)
        tokens = payload / top_k
        near = tokens * (_distinct(ranks, top_k) / ranks) * np.maximum(inside - 1, 0)
        far = tokens * (_distinct(outside, top_k) / outside) * np.maximum(outside - 1, 0)
    else:
        near, far = payload * (inside - 1) / ranks, payload * (ranks - inside) / ranks
    return near, far * (np.asarray(outside) > 1)


def exchange_sent(
    op: str, payload: Number, ranks: Number, inside: Number, hardware: Hardware, top_k: Number
) -> tuple[Number, Number]:
    """Bytes that one rank sends over (scale-up, scale-out) links in the mode that is the faster."""
    times = [exchange_time(op, payload, ranks, inside, hardware, top_k=top_k, mode=m).time for m in EXCHANGE_MODES]
    sent = [exchange_bytes(payload, ranks, inside, top_k, mode) for mode in EXCHANGE_MODES]
    near, far = (np.where(times[1] < times[0], normal, low) for low, normal in zip(*sent, strict=True))
    return near, far


def _distinct(ranks: Number, top_k: Number) -> Number:
    """Expected distinct ranks that a token visits."""
    return ranks * (1 - (1 - 1 / np.maximum(ranks, 1.0)) ** top_k)


def transfer_time(payload: Number, crosses: Number, hardware: Hardware) -> Terms:
    """Seconds of a point-to-point message, launch included; ``crosses`` where it leaves the domain."""
    up = wire_time("p2p", payload, 2, hardware.scale_up, hardware.calibration.collective("p2p"))
    out = wire_time("p2p", payload, 2, hardware.scale_out, None)
    network = np.where(crosses, out.network, up.network)
    latency: Any = np.where(crosses, out.latency, up.latency)
    latency = latency + hardware.launch * (np.asarray(crosses, dtype=bool) | hardware.scale_up.stated_latency)
    time, ideal = np.maximum(network + latency, hardware.issue), np.where(crosses, out.ideal, up.ideal)
    return Terms(time, network=network, latency=latency, ideal=ideal)


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
