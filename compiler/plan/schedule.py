"""Latency of many strategies at once, from the closed forms of the schedule.

``times`` below are seconds [strategies, servers] of one item: stage 0, send 0, stage 1, ..., last stage, and in decode
the token return.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..cost import decode_interval
from ..cost.closed_form import equal_items_makespan

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def servers(stages: Floats, sends: Floats, back: Floats | None = None) -> Floats:
    """[..., servers] from stages [..., S], sends [..., S - 1] and the token return [...] of a decode pipeline."""
    count = stages.shape[-1]
    out = np.empty((*stages.shape[:-1], 2 * count - 1 + (back is not None and count > 1)))
    out[..., 0 : 2 * count - 1 : 2] = stages
    out[..., 1 : 2 * count - 2 : 2] = sends
    if back is not None and count > 1:
        out[..., -1] = back
    return out


def decode_seconds(larger: Floats, smaller: Floats, larger_count: Ints, smaller_count: Ints) -> Floats:
    """Steady decode interval of micro-batches of two sizes; a count of 0 leaves a size out."""
    alike = decode_interval(larger, larger_count.astype(np.float64))
    rounds = (larger_count[:, None] * larger + smaller_count[:, None] * smaller).max(axis=-1)
    mixed = np.maximum(np.maximum(larger.sum(axis=-1), smaller.sum(axis=-1)), rounds)
    return np.asarray(np.where(smaller_count > 0, mixed, alike))


def prefill_seconds(larger: Floats, smaller: Floats, larger_count: Ints, smaller_count: Ints) -> Floats:
    """Makespan of micro-batches of two sizes, the larger ones first.

    The longest path goes over from the last larger item to the first smaller one at some server; on either side of it
    the items are alike.
    """
    alike = equal_items_makespan(larger, larger_count.astype(np.float64))
    if not (smaller_count > 0).any():
        return alike
    before = np.cumsum(larger, axis=-1)
    before += (larger_count[:, None] - 1) * np.maximum.accumulate(larger, axis=-1)
    after = np.cumsum(smaller[:, ::-1], axis=-1)[:, ::-1]
    after = after + (smaller_count[:, None] - 1) * np.maximum.accumulate(smaller[:, ::-1], axis=-1)[:, ::-1]
    return np.asarray(np.where(smaller_count > 0, (before + after).max(axis=-1), alike))


def chunked_seconds(times: Floats) -> Floats:
    """Makespan of any items: ``C[j, s] = max(C[j-1, s], C[j, s-1]) + t[j, s]``.

    Args:
        times: [strategies, items, servers]; items that a strategy does not have, at the end, take no time.

    All cells with equal j + s are independent of each other, so a wave of them is one step.
    """
    count, items, width = times.shape
    if width == 1:
        return np.asarray(times.sum(axis=(1, 2)))
    done = np.zeros((count, width + 1))
    every = np.arange(width)
    for wave in range(items + width - 1):
        item = wave - every
        here = slice(max(0, wave - items + 1), min(width, wave + 1))
        step = np.maximum(done[:, 1:][:, here], done[:, :-1][:, here])
        step += times[:, item[here], every[here]]
        done[:, 1:][:, here] = step
    return done[:, -1]
