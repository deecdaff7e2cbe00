"""Latency of many strategies at once, from the closed forms of the schedule.

``times`` below are seconds [servers, strategies] of one item. Where their order does not matter, a server that occurs
several times is there once, and ``total`` is the sum over all. Else: stage 0, send 0, stage 1, ..., last stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def decode_seconds(total: Floats, times: Floats, count: Ints) -> Floats:
    """Steady decode interval of equal micro-batches."""
    return np.asarray(np.maximum(total, count * times.max(axis=0)))


def mixed_decode_seconds(
    totals: tuple[Floats, Floats], times: tuple[Floats, Floats], larger_count: Ints, smaller_count: Ints
) -> Floats:
    """Steady decode interval of micro-batches of two sizes."""
    rounds = (larger_count * times[0] + smaller_count * times[1]).max(axis=0)
    return np.asarray(np.maximum(np.maximum(*totals), rounds))


def prefill_seconds(total: Floats, times: Floats, count: Ints) -> Floats:
    """Makespan of equal micro-batches."""
    return np.asarray(total + (count - 1) * times.max(axis=0))


def mixed_prefill_seconds(larger: Floats, smaller: Floats, larger_count: Ints, smaller_count: Ints) -> Floats:
    """Makespan of micro-batches of two sizes, the larger ones first; all servers in their order.

    The longest path goes over from the last larger item to the first smaller one at some server; on either side of it
    the items are alike.
    """
    before = np.cumsum(larger, axis=0)
    before += (larger_count - 1) * np.maximum.accumulate(larger, axis=0)
    after = np.cumsum(smaller[::-1], axis=0)[::-1]
    after = after + (smaller_count - 1) * np.maximum.accumulate(smaller[::-1], axis=0)[::-1]
    return np.asarray((before + after).max(axis=0))


def chunked_seconds(times: Floats, order: Sequence[int], rows: Ints, items: Ints) -> Floats:
    """Makespan of any items: ``C[j, s] = max(C[j-1, s], C[j, s-1]) + t[j, s]``.

    Args:
        times: [distinct servers, rows] seconds of every item that occurs.
        order: Which of them each server is.
        rows: [items, strategies] what each strategy's items are; what is behind its last one does not matter.
        items: How many items each strategy has, ascending.
    """
    done = np.zeros((len(order), len(items)))
    starts = np.searchsorted(items, np.arange(len(rows)), side="right")
    for row, start in zip(rows, starts.tolist(), strict=True):
        here = times.take(row[start:], axis=1)
        before = done[0, start:]
        before += here[order[0]]
        for server, kind in enumerate(order[1:], 1):
            own = done[server, start:]
            np.maximum(own, before, out=own)
            own += here[kind]
            before = own
    return np.asarray(done[-1])
