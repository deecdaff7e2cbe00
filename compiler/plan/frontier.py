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
    order = np.lexsort(columns[::-1])
    left, kept = order, []
    for _ in range(layers):
        front, left = _front(columns, left)
        kept.append(front)
        if not len(left):
            break
    return np.sort(np.concatenate(kept))


def _front(columns: Floats, entries: Ints) -> tuple[Ints, Ints]:
    """The entries that none dominates, and the others; entries in lexicographic order."""
    front: list[int] = []
    rest: list[Ints] = []
    left = entries
    while len(left):
        best = left[0]
        front.append(int(best))
        beaten = np.asarray((columns[:, left] >= columns[:, best, None]).all(axis=0))
        beaten[0] = True
        rest.append(left[beaten][1:])
        left = left[~beaten]
    others = np.concatenate(rest) if rest else entries[:0]
    # lexicographic order again, for the next layer
    return np.array(front, dtype=np.int64), others[np.lexsort(columns[::-1, others])]
