"""The order in which the tokens of a chunk are laid out before they are cut over SP."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .types import ceil_div, chunk_bounds

Ints = NDArray[np.int64]

TOKEN_ORDERS = ("contiguous", "zigzag")
"""Values of ``token_order`` in the facts of a graph."""


def token_positions(order: str, new: int, parts: int) -> Ints:
    """Offsets of the new tokens of a chunk, in the order in which ceiling chunks cut them into ``parts``.

    Zig-zag: part r holds slices r and 2 parts - 1 - r of 2 parts, so that causal work is balanced; where ``new`` does
    not divide, the sizes are those of the ceiling chunks, the slice at the front being the longer one.

    Raises:
        ValueError: ``order`` is none of :data:`TOKEN_ORDERS`.
    """
    if order not in TOKEN_ORDERS:
        raise ValueError(f"unknown token order {order!r}")
    if order == "contiguous" or parts == 1:
        return np.arange(new, dtype=np.int64)
    bounds = [chunk_bounds(new, ((parts, part),)) for part in range(parts)]
    fronts = [ceil_div(high - low, 2) for low, high in bounds]
    front, back = 0, new
    pieces = []
    for (low, high), ahead in zip(bounds, fronts, strict=True):
        behind = high - low - ahead
        pieces += [np.arange(front, front + ahead), np.arange(back - behind, back)]
        front, back = front + ahead, back - behind
    return np.concatenate(pieces).astype(np.int64)
