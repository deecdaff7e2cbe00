"""Where the KV cache moves: between which replicas, over which link, and whether it could move less far.

Which decode replica serves the requests of which prefill replica is the request router's choice, and which pool's GPUs
come first is the operator's; strategies say neither. Both are compared here for what stays inside scale-up domains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ...passes.analysis import TransferPlan
from ..ir.mesh import Mesh

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_REPLICAS = 64
"""Decode replicas whose places are compared; of more, requests stay where their numbers put them."""

WORTHWHILE = 1e-9
"""Least relative gain of an assignment over the one by number."""


@dataclass(frozen=True)
class Flow:
    """What one prefill replica sends to one decode replica, bytes per batch.

    Attributes:
        source: Prefill replica.
        target: Decode replica.
        bytes: All that moves between GPUs.
        inside: What of it stays inside a scale-up domain.
    """

    source: int
    target: int
    bytes: float
    inside: float


@dataclass(frozen=True)
class Locality:
    """How the cache moves.

    Attributes:
        flows: Between replicas, as planned.
        assignment: Of each decode replica, whose place it had better take: the requests of replica r are served best
            on the GPUs of replica ``assignment[r]``. By number where that is as good; empty where not compared.
        assigned_inside: Bytes inside a domain under that assignment.
        swapped_inside: Bytes inside a domain with decode's GPUs before prefill's; None for pools that share GPUs.
    """

    flows: tuple[Flow, ...]
    assignment: tuple[int, ...]
    assigned_inside: float
    swapped_inside: float | None

    @property
    def bytes(self) -> float:
        return sum(f.bytes for f in self.flows)

    @property
    def inside(self) -> float:
        return sum(f.inside for f in self.flows)


def analyse_locality(transfer: TransferPlan, prefill: Mesh, decode: Mesh, domain: int) -> Locality:
    """How a planned transfer moves between replicas and domains.

    Args:
        transfer: The transfer.
        prefill: Ranks of prefill.
        decode: Ranks of decode.
        domain: GPUs of a scale-up domain.
    """
    source, target, sizes = _moves(transfer)
    senders = (source - prefill.first_rank) // prefill.replica_ranks
    takers = (target - decode.first_rank) // decode.replica_ranks
    inside = np.where(source // domain == target // domain, sizes, 0.0)
    kept = float(inside.sum())
    best = np.arange(decode.dp if decode.dp <= MOST_REPLICAS else 0)
    if len(best):
        gain = _gain(source, target, sizes, takers, decode, domain)
        other = _assigned(gain)
        more = float(gain[best, other].sum())
        if more > kept * (1 + WORTHWHILE):
            best, kept = other, more
    swapped = None
    if decode.first_rank == prefill.gpus:
        there = (source + decode.gpus) // domain == (target - prefill.gpus) // domain
        swapped = float(sizes[there].sum())
    flows = tuple(_flows(senders, takers, sizes, inside))
    return Locality(flows, tuple(best.tolist()), kept, swapped)


def _moves(transfer: TransferPlan) -> tuple[Ints, Ints, Floats]:
    """Sources, targets and bytes of everything that moves between GPUs."""
    sources: list[Ints] = [np.zeros(0, dtype=np.int64)]
    targets: list[Ints] = [np.zeros(0, dtype=np.int64)]
    sizes: list[Floats] = [np.zeros(0)]
    for route in transfer.routes:
        flow = route.overlap
        some = flow.moved > 0
        sources.append(flow.source_devices[some])
        targets.append(flow.target_devices[some])
        sizes.append(np.multiply(flow.moved[some], route.element_bytes * len(route.layers), dtype=np.float64))
    return np.concatenate(sources), np.concatenate(targets), np.concatenate(sizes)


def _flows(senders: Ints, takers: Ints, sizes: Floats, inside: Floats) -> Iterator[Flow]:
    if not len(sizes):
        return
    pairs, which = np.unique(np.stack([senders, takers]), axis=1, return_inverse=True)
    which = which.reshape(-1)
    total, near = (np.bincount(which, weights=w) for w in (sizes, inside))
    for number, (one, other) in enumerate(pairs.T.tolist()):
        yield Flow(one, other, float(total[number]), float(near[number]))


def _gain(source: Ints, target: Ints, sizes: Floats, takers: Ints, decode: Mesh, domain: int) -> Floats:
    """[decode replica, place] bytes inside a domain if the replica's requests were served at that place."""
    gain = np.zeros((decode.dp, decode.dp))
    within = target - takers * decode.replica_ranks
    for place in range(decode.dp):
        near = source // domain == (within + place * decode.replica_ranks) // domain
        gain[:, place] = np.bincount(takers, weights=np.where(near, sizes, 0.0), minlength=decode.dp)
    return gain


def _assigned(gain: Floats) -> Ints:
    """A place for each replica with a large sum of gains: the largest first, then exchanges of two."""
    count = len(gain)
    place, free = np.full(count, -1, dtype=np.int64), gain.copy()
    for _ in range(count):
        one, where = np.unravel_index(int(free.argmax()), free.shape)
        place[one] = where
        free[one, :] = free[:, where] = -np.inf
    improved = True
    while improved:
        improved = False
        for a, b in combinations(range(count), 2):
            now, then = gain[a, place[a]] + gain[b, place[b]], gain[a, place[b]] + gain[b, place[a]]
            if then > now * (1 + WORTHWHILE):
                place[a], place[b] = place[b], place[a]
                improved = True
    return place
