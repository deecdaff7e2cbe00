"""Matrix products: tiles dealt to the units of a chip, against the traffic of weights and activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.types import Number
from ..spec.calibration import GemmParameters
from ._terms import Terms, smooth_max

_TILES = ((16, 64), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
"""Rows and columns of the output tiles that libraries choose from (CUTLASS, cuBLAS)."""
_ROWS, _COLUMNS = (np.array(column, dtype=float) for column in zip(*_TILES, strict=True))
_SMALL = _ROWS * _COLUMNS < 128 * 128
_SHALLOWEST = 64.0
"""Elements of k that a tile sums at least, however k is cut."""
_NEVER = 1e8
"""Rows that no product has."""
_BURST_S = 5e-4
"""Seconds of arithmetic at which half of the fall from the boost clock to the sustained one has happened."""


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

    ``latency + smooth_max(compute, memory) + prepare``. All arguments broadcast.

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
    compute = _tiled(m, n, k, peak / units * p.compute_efficiency, units, p)
    if p.sustained < 1:
        compute = compute * (1 + (1 / p.sustained - 1) * compute / (compute + _BURST_S))
    slow = 1 - resident + resident / p.cache_gain
    memory = bytes_moved * slow / (bandwidth * p.bandwidth_efficiency)
    prepare = p.prepare * 3 * m * k / bandwidth + p.row_s * m
    time = p.latency_s + smooth_max(compute, memory, p.overlap) + prepare
    if eager:
        time = smooth_max(time, p.issue_s, 8.0)
    return Terms(time, compute=compute, memory=memory + prepare, latency=p.latency_s)


def _tiled(m: Number, n: Number, k: Number, per_unit: Number, units: Number, p: GemmParameters) -> Any:
    """Seconds of the arithmetic at ``per_unit`` FLOP/s: the best over output tiles, with k whole or cut.

    Tiles are dealt in waves; of what the last wave leaves idle, ``lost`` is lost. Where tiles are fewer than units, k
    is cut over the others. A tile takes ``fill`` elements of k more than it sums, to start and to write its results.
    """
    rows, columns, depth, rate, dealt = (np.asarray(x, dtype=float)[..., None] for x in (m, n, k, per_unit, units))
    step = 2 * _ROWS * _COLUMNS / rate * (1 + p.tile_penalty * (64 / _ROWS + 64 / _COLUMNS)) + p.step_s
    tiles = np.ceil(rows / _ROWS) * np.ceil(columns / _COLUMNS)
    share = tiles / dealt
    waves = p.lost * np.ceil(share) + (1 - p.lost) * np.maximum(share, np.minimum(tiles, 1))
    cuts = np.clip(np.floor(dealt / np.maximum(tiles, 1)), 1, p.splits)
    part = np.maximum(depth / cuts, np.minimum(depth, _SHALLOWEST))
    split = np.where((cuts > 1) & (tiles > 0), p.split_s, 0.0)
    whole = (depth + p.fill) * waves * step
    time = np.minimum(whole, (part + p.fill) * waves * step + split)
    if p.small_rows < _NEVER:
        time = np.where(_SMALL & (rows > p.small_rows), np.inf, time)
    return time.min(axis=-1)
