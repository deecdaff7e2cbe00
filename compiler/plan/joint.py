"""Deployments: prefill and decode together, on shared GPUs or in pools of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..spec import Requirements
from .frontier import grouped_band, ranks, skyband
from .result import Objective
from .rows import Columnar

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

TOLERANCE = 0.01
"""Deployments within this share of the best throughput are as good; the fewest GPUs decide among them."""

LAYERS = 2
"""Strategies that more than so many others beat in everything are left out of deployments, and deployments of what is
told: enough for the two best."""


@dataclass(frozen=True)
class Options(Columnar):
    """Columns, one entry per strategy of a phase with its replicas.

    Attributes:
        strategy: Number of the strategy of a replica.
        dp: Replicas.
        gpus: GPUs of all replicas.
        weights_code: Equal in both phases where all weights lie alike.
        cache_code: Equal in both phases where the cache lies alike.
        latency: TTFT or TPOT, seconds.
        need: Bytes of the fullest GPU.
        moving: The same where the cache moves.
        weights: Bytes of the weights among them.
        transfer: Seconds that the busiest rank sends caches of the batch (prefill; 0 in decode).
        complexity: Ways of splitting that are used; the simplest first.
    """

    strategy: Ints
    dp: Ints
    gpus: Ints
    weights_code: Ints
    cache_code: Ints
    latency: Floats
    need: Floats
    moving: Floats
    weights: Floats
    transfer: Floats
    complexity: Ints

    def __len__(self) -> int:
        return len(self.strategy)


@dataclass(frozen=True)
class Pairs(Columnar):
    """Columns, one entry per deployment.

    Attributes:
        options: Number of the set of options.
        batch: Sequences in flight over all replicas.
        separate: Whether the phases have GPUs of their own.
        prefill: Number of prefill's option; -1 where the phase is not planned.
        decode: Number of decode's option, alike.
        gpus: GPUs of all pools.
        ttft: Seconds.
        tpot: Seconds.
        requests: Requests served per second.
        transfer: Seconds that the busiest rank sends caches; 0 where none moves.
        complexity: Ways of splitting that are used; the simplest first.
    """

    options: Ints
    batch: Ints
    separate: Bools
    prefill: Ints
    decode: Ints
    gpus: Ints
    ttft: Floats
    tpot: Floats
    requests: Floats
    transfer: Floats
    complexity: Ints

    def __len__(self) -> int:
        return len(self.batch)


def until_interrupted(parts: Iterable[Pairs]) -> tuple[Pairs, bool]:
    """The deployments of all parts, and whether all were made: an interrupt ends them.

    Raises:
        KeyboardInterrupt: interrupted before there was any deployment.
    """
    found: list[Pairs] = []
    try:
        for part in parts:
            found.append(part)
    except KeyboardInterrupt:
        if not any(len(part) for part in found):
            raise
        return Pairs.joined(found), False
    return Pairs.joined(found), True


def shared_pairs(batch: int, output: int, prefill: Options, decode: Options, capacity: float, layers: int) -> Pairs:
    """Deployments in which both phases use the same GPUs.

    Exact for any objective that prefers smaller TTFT, TPOT and GPU counts: what is left out is dominated ``layers``
    times.
    """
    # Layouts of different degrees keep both copies of the weights.
    first = prefill[_others_fit(prefill, decode, capacity)]
    second = decode[_others_fit(decode, prefill, capacity)]
    numbers = [np.arange(len(o))[_others_fit(o, p, capacity)] for o, p in ((prefill, decode), (decode, prefill))]
    kept_p = skyband(_criteria(first, second, capacity), layers)
    kept_d = skyband(_criteria(second, first, capacity), layers)
    p, d = (a.reshape(-1) for a in np.meshgrid(numbers[0][kept_p], numbers[1][kept_d], indexing="ij"))
    apart = prefill.weights_code[p] != decode.weights_code[d]
    p, d = p[apart], d[apart]
    moves = prefill.cache_code[p] != decode.cache_code[d]
    need_p = np.where(moves, prefill.moving[p], prefill.need[p]) + decode.weights[d]
    need_d = decode.need[d] + prefill.weights[p]
    fits = (need_p <= capacity) & (need_d <= capacity)
    alike_p, alike_d = _alike(prefill, decode, capacity, layers)
    p, d = np.concatenate([p[fits], alike_p]), np.concatenate([d[fits], alike_d])
    moves = prefill.cache_code[p] != decode.cache_code[d]
    time = prefill.latency[p] + output * decode.latency[d]
    return Pairs(
        options=np.zeros(len(p), dtype=np.int64),
        batch=np.full(len(p), batch),
        separate=np.zeros(len(p), dtype=bool),
        prefill=p,
        decode=d,
        gpus=np.maximum(prefill.gpus[p], decode.gpus[d]),
        ttft=prefill.latency[p],
        tpot=decode.latency[d],
        requests=batch / time,
        transfer=np.where(moves, prefill.transfer[p], 0.0),
        complexity=prefill.complexity[p] + decode.complexity[d],
    )


def separate_pairs(
    batch: int, output: int, prefill: Options, decode: Options, capacity: float, gpus: int, layers: int
) -> Pairs:
    """Deployments in which each phase has GPUs of its own, sized independently of each other.

    Args:
        batch: Sequences in flight.
        output: Generated tokens per request.
        prefill: Options whose cache holds the prompt only.
        decode: Options of decode.
        capacity: Bytes of a GPU.
        gpus: GPUs that both pools may take together.
        layers: See :func:`shared_pairs`.
    """
    some_p, some_d = np.flatnonzero(prefill.moving <= capacity), np.flatnonzero(decode.need <= capacity)
    p = some_p[skyband(np.stack([prefill.latency, prefill.transfer, prefill.gpus])[:, some_p], layers)]
    d = some_d[skyband(np.stack([decode.latency, decode.gpus])[:, some_d], layers)]
    p, d = (a.reshape(-1) for a in np.meshgrid(p, d, indexing="ij"))
    fits = prefill.gpus[p] + decode.gpus[d] <= gpus
    p, d = p[fits], d[fits]
    # The pool serves what it computes or what it can send away, whichever is less.
    busy = np.maximum(prefill.latency[p], prefill.transfer[p])
    return Pairs(
        options=np.zeros(len(p), dtype=np.int64),
        batch=np.full(len(p), batch),
        separate=np.ones(len(p), dtype=bool),
        prefill=p,
        decode=d,
        gpus=prefill.gpus[p] + decode.gpus[d],
        ttft=prefill.latency[p],
        tpot=decode.latency[d],
        requests=batch / np.maximum(busy, output * decode.latency[d]),
        transfer=prefill.transfer[p],
        complexity=prefill.complexity[p] + decode.complexity[d] + 1,
    )


def single_phase(batch: int, options: Options, phase: str, output: int, capacity: float, layers: int) -> Pairs:
    """Deployments of one phase alone."""
    mine = np.flatnonzero(options.need <= capacity)
    mine = mine[skyband(np.stack([options.latency, options.gpus])[:, mine], layers)]
    nothing, count = np.full(len(mine), -1), len(mine)
    prefills = phase == "prefill"
    latency, zero = options.latency[mine], np.zeros(count)
    return Pairs(
        options=np.zeros(count, dtype=np.int64),
        batch=np.full(count, batch),
        separate=np.zeros(count, dtype=bool),
        prefill=mine if prefills else nothing,
        decode=nothing if prefills else mine,
        gpus=options.gpus[mine],
        ttft=latency if prefills else zero,
        tpot=zero if prefills else latency,
        requests=batch / (latency if prefills else output * latency),
        transfer=zero,
        complexity=options.complexity[mine],
    )


def _others_fit(own: Options, other: Options, capacity: float) -> Bools:
    """Options beside which the lightest other weights fit."""
    return own.need + (other.weights.min() if len(other) else 0.0) <= capacity


def _criteria(own: Options, other: Options, capacity: float) -> Floats:
    """What makes an option better beside any other; memory counts only where it can bind."""
    if not len(own) or not len(other):
        return np.zeros((5, len(own)))
    heaviest, fullest = other.weights.max(), max(other.need.max(), other.moving.max())
    memory = (
        np.where(own.need + heaviest <= capacity, 0.0, own.need),
        np.where(own.moving + heaviest <= capacity, 0.0, own.moving),
        np.where(own.weights + fullest <= capacity, 0.0, own.weights),
    )
    return np.stack([own.latency, own.gpus, *memory])


def _alike(prefill: Options, decode: Options, capacity: float, layers: int) -> tuple[Ints, Ints]:
    """The best pairs of equal degrees, which share their weights."""
    best = []
    for options in (prefill, decode):
        fits = np.flatnonzero(options.need <= capacity)
        order = fits[np.lexsort((options.latency[fits], options.weights_code[fits]))]
        layout = options.weights_code[order]
        start = np.searchsorted(layout, layout)
        place = np.arange(len(order)) - start
        best.append([order[place == rank] for rank in range(layers)])
    found: list[tuple[Ints, Ints]] = []
    for i in range(layers):
        for j in range(layers - i):
            common, p, d = np.intersect1d(
                prefill.weights_code[best[0][i]],
                decode.weights_code[best[1][j]],
                assume_unique=True,
                return_indices=True,
            )
            if len(common):
                found.append((best[0][i][p], best[1][j][d]))
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def misses(pairs: Pairs, require: Requirements, rate: float | None, output: int) -> dict[str, Floats]:
    """By constraint, the factor by which each deployment misses it; at most 1 where it is met."""
    found: dict[str, Floats] = {}
    if require.ttft is not None:
        found["ttft"] = pairs.ttft / require.ttft
    if require.tpot is not None:
        found["tpot"] = pairs.tpot / require.tpot
    if require.throughput is not None:
        found["throughput"] = require.throughput / (pairs.requests * output)
    if require.throughput_per_gpu is not None:
        found["throughput_per_gpu"] = require.throughput_per_gpu * pairs.gpus / (pairs.requests * output)
    if rate is not None:
        found["rate"] = rate / pairs.requests
    return found


def ranking(pairs: Pairs, objective: Objective, per_gpu: bool, output: int, rate: float | None = None) -> Ints:
    """Numbers of the deployments, the best first.

    Args:
        pairs: Feasible deployments.
        objective: latency: TPOT, then tokens/s, then GPUs. throughput: tokens/s (per GPU with ``per_gpu``), within
            1 % of the best the fewest GPUs; then TPOT. balanced: the knee of the Pareto frontier first, then by its
            distance. What is left equal is decided by fewer GPUs, then by the simpler strategy.
        per_gpu: Whether GPUs are as many as wanted, so that throughput counts per GPU.
        output: Tokens per request.
        rate: Requests per second that arrive: more are not served, whatever the deployment could do.
    """
    tokens, tpot = np.minimum(pairs.requests, np.inf if rate is None else rate) * output, _even(pairs.tpot)
    last = pairs.complexity, pairs.gpus
    if objective == "latency":
        first = pairs.tpot if pairs.tpot.any() else pairs.ttft
        return np.lexsort((*last, -_even(tokens), _even(first)))
    if objective == "throughput":
        if per_gpu:
            return np.lexsort((*last, tpot, -_even(tokens / pairs.gpus)))
        good = tokens >= (1 - TOLERANCE) * tokens.max(initial=0.0)
        return np.lexsort((*last, tpot, -_even(tokens), np.where(good, pairs.gpus, np.iinfo(np.int64).max), ~good))
    speed = np.log(np.maximum(pairs.tpot if pairs.tpot.any() else pairs.ttft, 1e-300))
    value = np.log(np.maximum(tokens / pairs.gpus, 1e-300))
    distance = np.hypot(_share(speed), _share(-value))
    return np.lexsort((*last, _even(distance)))


def _even(column: Floats) -> Floats:
    """The figures to twelve digits: the same sum in another order is a tie."""
    mantissa, exponent = np.frexp(column)
    return np.ldexp(np.round(mantissa, 12), exponent)


def _share(column: Floats) -> Floats:
    """Place of each entry between the smallest and the largest."""
    low, high = column.min(initial=np.inf), column.max(initial=-np.inf)
    return (column - low) / (high - low) if high > low else np.zeros_like(column)


def pareto(pairs: Pairs, output: int) -> Ints:
    """Deployments that none beats in TPOT, TTFT and tokens per second and GPU together, by TPOT."""
    rate = pairs.requests * output / pairs.gpus
    # Pools have few different TPOTs, and two criteria are quickly compared.
    some = grouped_band(ranks(pairs.tpot), pairs.ttft, -rate)
    front = some[skyband(np.stack([pairs.tpot, pairs.ttft, -rate])[:, some])]
    return front[np.argsort(pairs.tpot[front], kind="stable")]
