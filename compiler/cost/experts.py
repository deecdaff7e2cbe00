"""The expert FFN as a grouped matrix product, under even, uniform or skewed loads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..ir.types import Number
from ..spec.calibration import ExpertParameters
from ._terms import Terms, smooth_max

_COLUMN_TILE = 128.0
"""Columns of an output tile of a grouped product."""
_QUANTILES = (np.arange(16) + 0.5) / 16
"""Where the distribution of a skewed load is sampled."""
_HEAVIEST = 0.8
"""A power law's heaviest expert is visited by at most this share of the tokens."""


class Load(NamedTuple):
    """Rows of the local experts, as groups of experts of equal load along the last axis.

    Attributes:
        experts: Visited experts of each group.
        rows: Rows of one visited expert of the group.
    """

    experts: Any
    rows: Any

    @property
    def total(self) -> Any:
        """Rows of all local experts."""
        return (self.experts * self.rows).sum(axis=-1)


def even_load(tokens: Number, top_k: Number, experts: Number, local: Number) -> Load:
    """Rows dealt out evenly: no expert has two before every one has one. The fullest rank has one at least."""
    mean = tokens * top_k / experts
    hit = np.clip(mean, 1 / np.maximum(local, 1), 1.0)
    return Load(_axis(local * hit), _axis(np.maximum(mean, hit) / hit))


def uniform_load(tokens: Number, top_k: Number, experts: Number, local: Number) -> Load:
    """Every expert equally likely: ``local * (1 - (1 - top_k / experts) ** tokens)`` of them are visited."""
    share = np.minimum(top_k / experts, 1.0)
    hit = 1 - (1 - share) ** tokens
    return Load(_axis(local * hit), _axis(tokens * share / np.maximum(hit, 1e-12)))


def skewed_load(tokens: Number, top_k: Number, experts: Number, local: Number, skew: Number) -> Load:
    """Loads that follow a power law, on the rank that holds the heaviest expert.

    The load x of an expert has the density ``x ** -skew`` between 1 and 0.8 tokens, so that its quantile at u is
    ``((b - 1) u + 1) ** (1 / (1 - skew))`` with ``b = (0.8 tokens) ** (1 - skew)``; loads are scaled to the rows that
    there are, and no expert has more rows than tokens. Tokens draw independently of one another. Of the
    ``local`` experts one is the heaviest of all, the others are spread over the quantiles.

    Args:
        tokens: Tokens whose rows are dealt out.
        top_k: Experts that each visits.
        experts: All experts.
        local: Experts of the rank.
        skew: Exponent; the reference data uses 1.01 and 1.2.
    """
    tokens, top_k, experts, local, skew = (np.asarray(x, dtype=float) for x in (tokens, top_k, experts, local, skew))
    exponent = np.where(np.abs(1 - skew) < 1e-6, 1e-6, 1 - skew)
    end = np.maximum(_HEAVIEST * tokens, 1.0) ** exponent

    def quantile(u: Any) -> Any:
        return ((end[..., None] - 1) * u + 1) ** (1 / exponent[..., None])

    shape = quantile(_QUANTILES)
    top = quantile(1 - 0.5 / experts[..., None])
    mean = (tokens * top_k / experts)[..., None]
    scale = mean / np.maximum(shape.mean(axis=-1, keepdims=True), 1e-12)
    rows = np.minimum(_join(shape * scale, top * scale), tokens[..., None])
    count = _join(np.maximum(local - 1, 0)[..., None] / len(_QUANTILES) + 0 * shape, np.minimum(local, 1)[..., None])
    hit = 1 - (1 - rows / np.maximum(tokens[..., None], 1e-12)) ** tokens[..., None]
    return Load(count * hit, rows / np.maximum(hit, 1e-12))


def _axis(value: Number) -> Any:
    return np.asarray(value, dtype=float)[..., None]


def _join(first: Any, second: Any) -> Any:
    lead = np.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    parts = [np.broadcast_to(x, (*lead, x.shape[-1])) for x in (first, second)]
    return np.concatenate(parts, axis=-1)


def expert_bytes(load: Load, hidden: Number, inter: Number, weight_bytes: Number) -> Any:
    """Bytes of an expert FFN: weights of the visited experts, and the rows before, between and after the products."""
    weights = load.experts.sum(axis=-1) * 3 * hidden * inter
    return weights * weight_bytes + load.total * (2 * hidden + 3 * inter) * 2


def experts_time(
    load: Load,
    hidden: Number,
    inter: Number,
    weight_bytes: Number,
    *,
    handed: Number | None = None,
    resident: Number = 0.0,
    peak: Number,
    bandwidth: Number,
    units: Number,
    parameters: ExpertParameters,
) -> Terms:
    """Seconds of ``down(act(gate x) * up x)`` for every routed row of the local experts.

    ``latency + expert_s * experts + smooth_max(compute, memory) + prepare``. Compute pads the rows of each visited
    expert to tiles; memory reads the weights of visited experts once and the rows between the products.

    Args:
        load: Rows of the local experts.
        hidden: Width of the stream.
        inter: Width inside one expert, on this rank.
        weight_bytes: Bytes of one weight element.
        handed: Rows that the kernel is handed; default those of the local experts (after a dispatch).
        resident: Share of the bytes that is found in the last-level cache; 0 between the layers of a model.
        peak: Dense FLOP/s of the format.
        bandwidth: Memory bytes per second, datasheet.
        units: Multiprocessors.
        parameters: Fitted figures.
    """
    p = parameters
    rows = load.total
    count = load.experts.sum(axis=-1)
    padded = (load.experts * np.maximum(load.rows + p.row_tile * np.minimum(load.rows, 1) / 2, p.row_tile)).sum(axis=-1)
    if handed is not None:
        padded = padded + p.others * np.maximum(handed - rows, 0)
    heaviest = np.where(load.experts > 0, load.rows, 0).max(axis=-1)
    rate = peak * p.compute_efficiency
    weights = 3 * hidden * inter
    column = 2 * _COLUMN_TILE * (hidden + inter) / (rate / units)
    compute = 2 * padded * weights / rate + p.tail * np.minimum(heaviest, p.row_tile) * column
    moved = expert_bytes(load, hidden, inter, weight_bytes)
    slow = (1 - resident + resident / p.cache_gain) / bandwidth
    memory = moved * slow / p.bandwidth_efficiency
    prepare = 4 * hidden * (p.prepare * rows + p.prepare_all * (rows if handed is None else handed)) * slow
    latency = p.latency_s + p.expert_s * count
    time = latency + smooth_max(compute, memory, p.overlap) + prepare
    return Terms(time, compute=compute, memory=memory + prepare, latency=latency)
