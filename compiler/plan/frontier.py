"""Dominance: what no other entry beats in everything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    varying = columns[columns.min(axis=1) < columns.max(axis=1)]
    low = varying.min(axis=1, keepdims=True)
    # Whatever dominates an entry comes before it; by the sum, few of the first beat most of the others.
    total = ((varying - low) / (varying.max(axis=1, keepdims=True) - low)).sum(axis=0)
    order = np.lexsort((*varying[::-1], total))
    values = varying[:, order]
    left, kept = np.arange(len(order)), []
    for _ in range(layers):
        front = _front(values[:, left])
        kept.append(left[front])
        left = np.delete(left, front)
        if not len(left):
            break
    return np.sort(order[np.concatenate(kept)])


def _front(values: Floats) -> Ints:
    """Places of the entries that none dominates, where none comes after one that it dominates."""
    front: list[int] = []
    places = np.arange(values.shape[1])
    while len(places):
        front.append(int(places[0]))
        better = np.asarray((values < values[:, :1]).any(axis=0))
        values, places = values[:, better], places[better]
    return np.array(front, dtype=np.int64)
