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
    share: Number = 1.0,
) -> Terms:
    """Seconds of causal attention of ``new`` tokens after ``past`` ones, for every sequence of the batch.

    ``latency + smooth_max(compute, memory) + prepare``. Compute counts the visible pairs in whole tiles of queries,
    each pair ``2 (qk_dim + v_dim) + softmax`` FLOPs, and adds a share of the longest tile, which ends last.

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
        share: Part of the queries that this GPU holds, balanced (sequence parallelism).
    """
    p = parameters
    tile = p.query_tile
    rows = np.ceil(new / tile) * tile
    reach = np.minimum(past + rows, window + p.window_pad)
    growing = np.clip(reach - past, 0, rows)
    pairs = growing * (past + (growing + tile) / 2) + (rows - growing) * reach
    flops = 2 * (qk_dim + v_dim) + p.softmax
    rate = peak * p.compute_efficiency
    total = batch * heads * pairs * share * flops / rate
    last = np.minimum(tile, rows) * reach * flops / (rate / units)
    compute = total + np.where(np.asarray(batch * heads) > 0, p.tail * last, 0.0)
    memory = bytes_moved / (bandwidth * p.bandwidth_efficiency)
    prepare = (p.prepare * (bytes_moved - cache_bytes) + p.prepare_cache * cache_bytes) / bandwidth
    time = p.latency_s + smooth_max(compute, memory, p.overlap) + prepare
    return Terms(time, compute=compute, memory=memory + prepare, latency=p.latency_s)


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

    A (sequence, KV head) pair is the unit of work; where there are fewer than units, caches are cut into chunks.
    ``latency + sequences + max(smooth_max(compute, streaming), slowest unit)``.

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
    cuts = np.maximum(np.floor(units / work), 1)
    slowest = np.ceil(work / units) * np.maximum(context / cuts, np.minimum(context, p.chunk))
    one = traffic / work / np.maximum(context, 1) * slowest
    unit = one / (bandwidth / units * p.unit_gain)
    tile = np.ceil(heads / kv_heads / p.row_tile) * p.row_tile
    padded = np.ceil(work / units) * np.maximum(np.maximum(context, p.token_tile) / cuts, np.minimum(context, p.chunk))
    compute = (
        np.maximum(padded, p.token_tile)
        * tile
        * (2 * (qk_dim + v_dim) + p.softmax)
        / (peak / units * p.compute_efficiency)
    )
    memory = smooth_max(traffic / (bandwidth * p.bandwidth_efficiency), unit, 8.0)
    latency = p.latency_s + p.sequence_s * batch * kv_heads
    time = latency + smooth_max(compute, memory, p.overlap)
    return Terms(time, compute=compute, memory=memory, latency=latency)
