"""Dominance: what no other entry beats in everything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .rows import numbered

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

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
    if not differ.any():
        return np.arange(min(layers, columns.shape[1]))
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
    left, here = np.arange(count), np.concatenate([values, total[None]])
    for entry in sample[peeled[-1]] if len(peeled) == layers else ():
        # Equals have the same sum, and whatever is beaten has a larger one.
        kept = here[-1] <= total[entry]
        kept |= _ahead(here[:-1], values[:, entry])
        here, left = here[:, kept], left[kept]
    return left


def _ahead(values: Floats, point: Floats) -> Bools:
    """Which entries are better than a point in something."""
    better = np.asarray(values[0] < point[0])
    for row, limit in zip(values[1:], point[1:], strict=True):
        better |= row < limit
    return better


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
        better = _ahead(values, values[:, 0])
        values, places = values[:, better], places[better]
    return np.array(front, dtype=np.int64)


def grouped_skyband(group: Ints, columns: Floats, layers: int = 1) -> Ints:
    """:func:`skyband` inside every group; numbers ascending."""
    found = [np.zeros(0, dtype=np.int64)]
    for number in np.unique(group):
        mine = np.flatnonzero(group == number)
        found.append(mine[skyband(columns[:, mine], layers)])
    return np.sort(np.concatenate(found))


def ranks(column: Floats | Ints) -> Ints:
    """The place of every entry among the distinct values of its column; whole numbers are places already."""
    if column.dtype.kind == "i":
        return np.asarray(column)
    return np.unique(column, return_inverse=True)[1].reshape(-1)


def grouped_band(group: Ints, first: Floats | Ints, second: Floats | Ints, layers: int = 1) -> Ints:
    """:func:`skyband` of two criteria inside every group at once; numbers ascending.

    Criteria may be given as their :func:`ranks`, where they are known: whole numbers sort faster.
    """
    (a, _), (b, wide), (place, _) = numbered(ranks(first)), numbered(ranks(second)), numbered(group)
    left = _ordered(place, a, b)
    # Later groups lie lower than earlier ones, so that a running minimum begins anew with each.
    height = (b - place * wide)[left]
    kept = [left[:0]]
    for _ in range(layers):
        before = np.minimum.accumulate(np.concatenate([[wide], height]))[:-1]
        front = height < before
        kept.append(left[front])
        left, height = left[~front], height[~front]
    return np.sort(np.concatenate(kept))


def _ordered(*columns: Ints) -> Ints:
    """Places in the order of columns of small numbers, the first of which decides most; of equal ones the first first.

    The place as the last digit of one number makes all differ, and to sort numbers is faster than to sort their places.
    """
    count = len(columns[0])
    key, size = np.zeros(count, dtype=np.int64), 1
    for column in columns:
        wide = int(column.max(initial=0)) + 1
        if size > 2**62 // wide:
            key, size = numbered(key)
        key, size = key * wide + column, size * wide
    if size > 2**62 // max(1, count):
        return np.argsort(key, kind="stable")
    return np.asarray(np.sort(key * count + np.arange(count)) % max(1, count))


def joined(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """All pairs of places at which two columns are equal."""
    order = np.argsort(second, kind="stable")
    low, high = (np.searchsorted(second[order], first, side=side) for side in ("left", "right"))
    many = high - low
    i = np.repeat(np.arange(len(first)), many)
    start = np.cumsum(many) - many
    return i, order[low[i] + np.arange(len(i)) - start[i]]
