"""Experts to ranks under a measured load: replicas of the hottest, and ranks that are loaded alike.

Two steps, as for any bins of equal capacity: each redundant slot goes to the expert with the most load per replica;
then slots are dealt to ranks, the heaviest first to the lightest rank with room, and swapped between ranks as long as
that makes the heaviest rank of a layer lighter. All layers are worked on together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_SWAPS = 200
"""Swaps of slots per layer at most."""


@dataclass(frozen=True, eq=False)
class Dealt:
    """Slots of some layers on ranks.

    Attributes:
        experts: [layers, ranks, slots of a rank] expert of each slot.
        loads: The same: share of the layer's routed tokens that the slot takes.
    """

    experts: Ints
    loads: Floats

    @property
    def rank_loads(self) -> Floats:
        """[layers, ranks]."""
        return np.asarray(self.loads.sum(axis=2))

    @property
    def imbalance(self) -> Floats:
        """[layers] load of the heaviest rank over that of the mean."""
        loads = self.rank_loads
        return np.asarray(loads.max(axis=1) / loads.mean(axis=1))


def contiguous(shares: Floats, ranks: int) -> Dealt:
    """Experts dealt in their order, as many to each rank: what is done without a load.

    Args:
        shares: [layers, experts], rows of sum 1; the experts divide by the ranks.
        ranks: Ranks.
    """
    layers, experts = shares.shape
    numbers = np.broadcast_to(np.arange(experts), shares.shape)
    shape = (layers, ranks, experts // ranks)
    return Dealt(numbers.reshape(shape), shares.reshape(shape))


def balance(shares: Floats, ranks: int, redundant: int) -> Dealt:
    """Experts and their replicas on ranks, so that the heaviest rank of each layer is light.

    Args:
        shares: [layers, experts], rows of sum 1.
        ranks: Ranks; they divide the slots.
        redundant: Slots beyond one per expert.
    """
    experts, loads = _heaviest_first(shares, _replicas(shares, redundant, ranks))
    dealt = _deal(experts, loads, ranks)
    return _sorted(_swapped(dealt))


def _replicas(shares: Floats, redundant: int, most: int) -> Ints:
    """[layers, experts] replicas: each further one where the load per replica is largest; at most one per rank."""
    counts = np.ones(shares.shape, dtype=np.int64)
    rows = np.arange(len(shares))
    for _ in range(redundant):
        each = np.where(counts < most, shares / counts, -1.0)
        counts[rows, each.argmax(axis=1)] += 1
    return counts


def _heaviest_first(shares: Floats, counts: Ints) -> tuple[Ints, Floats]:
    """[layers, slots] experts and loads of all slots, the heaviest first, replicas of an expert side by side."""
    layers, width = shares.shape
    slots = int(counts[0].sum()) if layers else 0
    experts = np.repeat(np.tile(np.arange(width), layers), counts.reshape(-1)).reshape(layers, slots)
    loads = np.take_along_axis(shares / counts, experts, axis=1)
    order = np.argsort(-loads, axis=1, kind="stable")
    return np.take_along_axis(experts, order, axis=1), np.take_along_axis(loads, order, axis=1)


def _deal(experts: Ints, loads: Floats, ranks: int) -> Dealt:
    """Each slot to the lightest rank that has room and, where one is left, no replica of the same expert."""
    layers, slots = experts.shape
    room = slots // ranks
    rows = np.arange(layers)
    held, filled = np.zeros((layers, ranks)), np.zeros((layers, ranks), dtype=np.int64)
    has = np.zeros((layers, ranks, int(experts.max(initial=0)) + 1), dtype=bool)
    where, loaded = np.zeros((layers, ranks, room), dtype=np.int64), np.zeros((layers, ranks, room))
    for slot in range(slots):
        expert, load = experts[:, slot], loads[:, slot]
        # Loads are shares of 1: 10 is more than any rank holds.
        cost = held + np.where(filled >= room, 100.0, 0.0) + np.where(has[rows, :, expert], 10.0, 0.0)
        rank = cost.argmin(axis=1)
        place = filled[rows, rank]
        where[rows, rank, place], loaded[rows, rank, place] = expert, load
        has[rows, rank, expert] = True
        held[rows, rank] += load
        filled[rows, rank] += 1
    return Dealt(where, loaded)


def _swapped(dealt: Dealt) -> Dealt:
    """The slots with those of the heaviest rank swapped against lighter ones elsewhere while that helps."""
    experts, loads = dealt.experts.copy(), dealt.loads.copy()
    layers, ranks, room = experts.shape
    active = np.arange(layers)
    for _ in range(MOST_SWAPS if ranks > 1 else 0):
        held = loads[active].sum(axis=2)
        rows = np.arange(len(active))
        heavy = held.argmax(axis=1)
        top = held[rows, heavy]
        mine, theirs = loads[active, heavy], loads[active].reshape(len(active), -1)
        # [layers, own slot, any slot] the heavier of both ranks after the swap
        lighter = top[:, None, None] - mine[:, :, None] + theirs[:, None, :]
        other = np.repeat(held, room, axis=1)[:, None, :] + mine[:, :, None] - theirs[:, None, :]
        after = np.maximum(lighter, other)
        own = np.repeat(np.arange(ranks)[None] == heavy[:, None], room, axis=1)
        after[np.broadcast_to(own[:, None, :], after.shape)] = np.inf
        best = after.reshape(len(active), -1).argmin(axis=1)
        helps = after.reshape(len(active), -1)[rows, best] < top * (1 - 1e-9)
        if not helps.any():
            break
        active, heavy, best = active[helps], heavy[helps], best[helps]
        slot, target = best // (ranks * room), best % (ranks * room)
        one, two = (active, heavy, slot), (active, target // room, target % room)
        for table in (experts, loads):
            table[one], table[two] = table[two], table[one]
    return Dealt(experts, loads)


def _sorted(dealt: Dealt) -> Dealt:
    """The slots of each rank by expert: how they lie inside a rank is all the same."""
    order = np.argsort(dealt.experts, axis=2, kind="stable")
    return Dealt(np.take_along_axis(dealt.experts, order, axis=2), np.take_along_axis(dealt.loads, order, axis=2))
