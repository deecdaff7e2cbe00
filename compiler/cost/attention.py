"""Attention kernels: many new tokens (prefill), one new token over a cache (decode); GQA, MHA and MLA."""

from __future__ import annotations

import numpy as np

from ..ir.types import Number
from ..spec.calibration import DecodeParameters, PrefillParameters
from ._terms import Terms, smooth_max


def prefill_attention_time(
    batch: Number,
    new: Number,
    past: Number,
    heads: Number,
    qk_dim: Number,
    v_dim: Number,
    bytes_moved: Number,
    cache_bytes: Number,
    *,
    window: Number = np.inf,
    peak: Number,
    bandwidth: Number,
    units: Number,
    parameters: PrefillParameters,
    kv_heads: Number = 1,
    share: Number = 1.0,
    resident: Number = 0.0,
) -> Terms:
    """Seconds of causal attention of ``new`` tokens after ``past`` ones, for every sequence of the batch.

    ``latency + smooth_max(compute, memory) + prepare``. Compute counts the visible pairs in whole tiles of queries,
    each pair ``2 (qk_dim + v_dim) + softmax`` FLOPs, and adds a share of the longest tile, which ends last. A query
    costs ``fill`` pairs besides those that it sees.

    Args:
        batch: Sequences.
        new: Query tokens per sequence.
        past: Tokens in the cache before them.
        heads: Query heads of this GPU.
        qk_dim: Features of a key.
        v_dim: Features of a value.
        bytes_moved: Queries, keys and values read and results written.
        cache_bytes: Those of the keys and values alone.
        window: Tokens that a query sees, itself included.
        peak: Dense FLOP/s of the format that attention computes in.
        bandwidth: Memory bytes per second, datasheet.
        units: Multiprocessors.
        parameters: Fitted figures.
        kv_heads: KV heads of this GPU.
        share: Part of the queries that this GPU holds, balanced (sequence parallelism).
        resident: Share of the bytes that is found in the last-level cache; 0 between the layers of a model.
    """
    p = parameters
    rows = np.ceil(new / p.query_tile) * p.query_tile
    reach = np.minimum(past + rows, window + p.window_pad)
    growing = np.clip(reach - past, 0, rows)
    seen = reach + p.fill
    pairs = rows * seen - growing * (reach - past - (growing + p.query_tile) / 2)
    if p.packed:
        # each query head of a KV head has its part of a tile, so that less of it is padding
        part = p.query_tile * (kv_heads / heads)
        pairs = pairs * (np.ceil(new / part) * part / np.maximum(rows, 1))
    flops = 2 * (_padded(qk_dim, p.head_tile) + _padded(v_dim, p.head_tile)) + p.softmax
    pair_s = flops / (peak * p.compute_efficiency)
    blocks = np.asarray(batch * heads)
    last = np.minimum(p.query_tile, rows) * seen * (pair_s * units * p.tail)
    compute = blocks * pairs * (share * pair_s) + np.where(blocks > 0, last, 0.0)
    byte_s = (1 - resident + resident / p.cache_gain) / bandwidth
    memory = bytes_moved * (byte_s / p.bandwidth_efficiency)
    prepare = (p.prepare * bytes_moved + (p.prepare_cache - p.prepare) * cache_bytes) * byte_s
    time = p.latency_s + smooth_max(compute, memory, p.overlap) + prepare
    return Terms(time, compute=compute, memory=memory + prepare, latency=p.latency_s)


def _padded(features: Number, tile: float) -> Number:
    """Features of a head as a kernel computes them: a power of two, not below ``tile``; 0 leaves them."""
    return np.maximum(2.0 ** np.ceil(np.log2(np.maximum(features, 1))), tile) if tile else features


def decode_attention_time(
    batch: Number,
    context: Number,
    heads: Number,
    kv_heads: Number,
    qk_dim: Number,
    v_dim: Number,
    bytes_moved: Number,
    *,
    peak: Number,
    bandwidth: Number,
    units: Number,
    parameters: DecodeParameters,
    resident: Number = 0.0,
) -> Terms:
    """Seconds of one new token per sequence over its cache.

    A (sequence, KV head) pair is the unit of work; where there are fewer than ``occupancy`` per unit, caches are cut
    into chunks. ``latency + sequences + smooth_max(compute, max(streaming, slowest slot))``.

    Args:
        batch: Sequences.
        context: Tokens of the cache that are visible (the window of a sliding layer).
        heads: Query heads of this GPU.
        kv_heads: KV heads of this GPU; 1 for absorbed MLA.
        qk_dim: Features of a key (latent and rotary part for MLA).
        v_dim: Features of a value.
        bytes_moved: Cache read, queries and results.
        peak: Dense FLOP/s of the format that attention computes in.
        bandwidth: Memory bytes per second, datasheet.
        units: Multiprocessors.
        parameters: Fitted figures.
        resident: Share of the bytes that is found in the last-level cache; 0 between the layers of a model.
    """
    p = parameters
    traffic = bytes_moved * (1 - resident + resident / p.cache_gain)
    work = np.maximum(batch * kv_heads, 1e-9)
    slots = units * p.occupancy
    cuts = np.maximum(np.floor(slots / work), 1)
    tokens = np.maximum(context / cuts, np.minimum(context, p.chunk))
    blocks = work * (np.maximum(context, 1) / np.maximum(tokens, 1))
    slot = bytes_moved / blocks * _waves(blocks / slots, p.lost) * (slots / (bandwidth * p.unit_gain))
    memory = smooth_max(traffic / (bandwidth * p.bandwidth_efficiency), slot, 8.0)
    rows = np.ceil(heads / kv_heads / p.row_tile) * p.row_tile
    pair_s = (2 * (qk_dim + v_dim) + p.softmax) / (peak / units * p.compute_efficiency)
    compute = np.maximum(tokens, p.token_tile) * rows * _waves(blocks / units, p.lost) * pair_s
    latency = p.latency_s + p.sequence_s * batch * kv_heads
    time = latency + smooth_max(compute, memory, p.overlap)
    return Terms(time, compute=compute, memory=memory, latency=latency)


def _waves(share: Number, lost: float) -> Number:
    """Turns that ``share`` blocks per place take, where ``lost`` of the idle time in the last one is lost."""
    return np.ceil(share) if lost == 1 else lost * np.ceil(share) + (1 - lost) * np.maximum(share, 1)
