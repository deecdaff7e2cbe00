"""Matrix products: tiles dealt to the units of a chip, against the traffic of weights and activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.types import Number
from ..spec.calibration import GemmParameters
from ._terms import Terms, smooth_max

_TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
"""Rows and columns of the output tiles that libraries choose from (CUTLASS, cuBLAS)."""
_SPLITS = (1, 2, 4, 8)
"""Ways to cut k, so that few tiles still keep all units busy (split-K)."""
_ROWS, _COLUMNS, _SPLIT = (
    np.array(column, dtype=float) for column in zip(*((r, c, s) for r, c in _TILES for s in _SPLITS), strict=True)
)


def gemm_time(
    m: Number,
    n: Number,
    k: Number,
    bytes_moved: Number,
    *,
    peak: Number,
    bandwidth: Number,
    units: Number,
    parameters: GemmParameters,
    resident: Number = 0.0,
    eager: bool = False,
) -> Terms:
    """Seconds of ``[m, k] x [k, n]`` on one GPU.

    ``latency + smooth_max(compute, memory) + prepare``. Compute is the best over output tiles and splits of k of
    ``ceil(tiles * splits / units)`` waves, each as long as one tile. All arguments broadcast.

    Args:
        m: Rows of the activations.
        n: Columns of the weights.
        k: Summed dimension.
        bytes_moved: Weights, activations and results.
        peak: Dense FLOP/s of the format.
        bandwidth: Memory bytes per second, datasheet.
        units: Multiprocessors that tiles are dealt to.
        parameters: Fitted figures.
        resident: Share of the bytes that is found in the last-level cache; 0 in a model whose weights exceed it.
        eager: Whether the host issues the kernels one by one, so that its time is a floor.
    """
    p = parameters
    rows, columns, depth = (np.asarray(x, dtype=float)[..., None] for x in (m, n, k))
    per_unit = np.asarray(peak / units * p.compute_efficiency)[..., None]
    tiles = np.ceil(rows / _ROWS) * np.ceil(columns / _COLUMNS) * _SPLIT
    part = depth / _SPLIT
    tile = 2 * _ROWS * _COLUMNS * part / per_unit * (1 + p.tile_penalty * (64 / _ROWS + 64 / _COLUMNS))
    waves = np.ceil(tiles / np.asarray(units, dtype=float)[..., None])
    split = np.where((_SPLIT > 1) & (tiles > 0), p.split_s, 0.0)
    compute: Any = (waves * (tile + p.step_s * part) + split).min(axis=-1)
    slow = 1 - resident + resident / p.cache_gain
    memory = bytes_moved * slow / (bandwidth * p.bandwidth_efficiency)
    prepare = p.prepare * 3 * m * k / bandwidth + p.row_s * m
    time = p.latency_s + smooth_max(compute, memory, p.overlap) + prepare
    if eager:
        time = smooth_max(time, p.issue_s, 8.0)
    return Terms(time, compute=compute, memory=memory + prepare, latency=p.latency_s)
