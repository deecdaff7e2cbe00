"""Dominance: what no other entry beats in everything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SAMPLE = 512
"""Entries that the others are held against first."""


def skyband(columns: Floats, layers: int = 1) -> Ints:
    """Entries that a choice of the best ``layers`` may take, in any order of importance that is monotone.

    Args:
        columns: [criteria, entries]; smaller is better in each.
        layers: Entries are peeled off so many times. Whatever fewer than ``layers`` others dominate is among them.

    Returns:
        Their numbers, ascending. Of equal entries one is kept per layer, the first.
    """
    if not columns.shape[1]:
        return np.zeros(0, dtype=np.int64)
    low, high = columns.min(axis=1, keepdims=True), columns.max(axis=1, keepdims=True)
    differ = (low < high)[:, 0]
    varying, low, high = columns[differ], low[differ], high[differ]
    # Whatever dominates an entry comes before it; by the sum, few of the first beat most of the others.
    total = ((varying - low) / (high - low)).sum(axis=0)
    some = _survivors(varying, total, layers)
    order = some[np.lexsort((*varying[::-1, some], total[some]))]
    return np.sort(order[np.concatenate(_peeled(varying[:, order], layers))])


def _survivors(values: Floats, total: Floats, layers: int) -> Ints:
    """Entries without those that the last layer of a sample dominates: they can only come in later layers."""
    count = len(total)
    if count <= 2 * SAMPLE:
        return np.arange(count)
    # Some of the best by the sum, and some from everywhere.
    best = np.argpartition(total, SAMPLE // 4)[: SAMPLE // 4]
    sample = np.unique(np.concatenate([best, np.arange(0, count, count // SAMPLE)]))
    sample = sample[np.lexsort((*values[::-1, sample], total[sample]))]
    peeled = _peeled(values[:, sample], layers)
    left, here = np.arange(count), values
    for entry in sample[peeled[-1]] if len(peeled) == layers else ():
        point = values[:, entry, None]
        kept = (here < point).any(axis=0) | (here == point).all(axis=0)
        here, left = here[:, kept], left[kept]
    return left


def _peeled(values: Floats, layers: int) -> list[Ints]:
    """Places of the entries of each layer, where none comes after one that it dominates."""
    left = np.arange(values.shape[1])
    kept: list[Ints] = []
    while len(kept) < layers and len(left):
        front = _front(values[:, left])
        kept.append(left[front])
        left = np.delete(left, front)
    return kept


def _front(values: Floats) -> Ints:
    """Places of the entries that none dominates, where none comes after one that it dominates."""
    front: list[int] = []
    places = np.arange(values.shape[1])
    while len(places):
        front.append(int(places[0]))
        better = np.asarray((values < values[:, :1]).any(axis=0))
        values, places = values[:, better], places[better]
    return np.array(front, dtype=np.int64)


def grouped_band(group: Ints, first: Floats, second: Floats, layers: int = 1) -> Ints:
    """:func:`skyband` of two criteria inside every group at once; numbers ascending."""
    left = np.lexsort((np.arange(len(group)), second, first, group))
    place = np.unique(second, return_inverse=True)[1].reshape(-1)
    kept = []
    for _ in range(layers):
        number = np.unique(group[left], return_inverse=True)[1].reshape(-1)
        # Later groups lie lower than earlier ones, so that a running minimum begins anew with each.
        height = place[left] - number * (len(group) + 1)
        before = np.minimum.accumulate(np.concatenate([[len(group) + 1], height]))[:-1]
        front = height < before
        kept.append(left[front])
        left = left[~front]
    return np.sort(np.concatenate(kept)) if kept else left


def joined(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """All pairs of places at which two columns are equal."""
    order = np.argsort(second, kind="stable")
    low, high = (np.searchsorted(second[order], first, side=side) for side in ("left", "right"))
    many = high - low
    i = np.repeat(np.arange(len(first)), many)
    start = np.cumsum(many) - many
    return i, order[low[i] + np.arange(len(i)) - start[i]]
