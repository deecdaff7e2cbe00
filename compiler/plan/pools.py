"""Deployments of a continuous batch in pools of their own: sized independently, the slower one sets the rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..spec import Assumption
from .frontier import grouped_band, skyband
from .joint import LAYERS, Pairs
from .question import Question
from .replicas import Replicas, Tables, behind
from .rows import Columnar, distinct_rows
from .table import PhaseTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

AT_ONCE = 1 << 20
"""Pairs of pools that are looked at together: bounds the memory."""

_ONLY_LEADING = Assumption(
    "pools",
    "only those that few others of as many GPUs or fewer beat",
    f"there are more than {AT_ONCE:,} pairs; where the batch of a faster pool cannot be dealt out evenly, one that is "
    "a little slower may be missed",
)


def pool_deployments(
    question: Question, replicas: Replicas, tables: Tables, capacity: float, *, strict: bool
) -> Iterator[Pairs]:
    """Deployments in pools of their own, by where decode's first GPU lies in its scale-up domain.

    The arguments are those of :func:`.continuous.continuous_deployments`.
    """
    decode = tables["decode"]
    first = _prefills(question, replicas, tables["prefill"], capacity, strict=strict)
    fastest = _fastest(replicas, decode, capacity)
    for mine, latency in behind(decode, fastest, first.gpus, question.hardware.domain):
        second = _decodes(question, replicas, decode, fastest, latency, strict=strict)
        yield _matched(question, replicas, tables, first[mine], second)


@dataclass(frozen=True)
class Pool(Columnar):
    """Columns, one entry per strategy of a pool with its replicas.

    Attributes:
        strategy: Number of the strategy.
        dp: Replicas.
        gpus: GPUs of all.
        latency: TTFT or TPOT.
        rate: Requests per second.
        dealt: A number, equal where batches are dealt out alike: of replicas and prompts of a step, or of the batch.
    """

    strategy: Ints
    dp: Ints
    gpus: Ints
    latency: Floats
    rate: Floats
    dealt: Ints

    def thinned(self) -> Self:
        """What few others of as many GPUs that are dealt out alike beat in everything."""
        return self[grouped_band(distinct_rows(self.gpus, self.dealt)[1], self.latency, -self.rate, LAYERS)]

    def leading(self) -> Self:
        """What few others of as many GPUs or fewer beat in everything, however batches are dealt out."""
        some = self[grouped_band(self.gpus, self.latency, -self.rate, LAYERS)]
        return some[skyband(np.stack([some.gpus, some.latency, -some.rate]), LAYERS)]


def _prefills(question: Question, replicas: Replicas, prefill: PhaseTable, capacity: float, *, strict: bool) -> Pool:
    """Prefill pools."""
    p = replicas.simplest_first(prefill)
    p = p[prefill.alone.moving[p] <= capacity]
    p = p[question.met(prefill.seconds[p], np.zeros(len(p)), strict=strict)]
    # The pool serves what it computes or what it can send away, whichever is less.
    size = np.maximum(1, prefill.candidates.batch)
    rate = 1 / np.maximum(prefill.each, prefill.transfer / size)
    alike = distinct_rows(replicas.comparable(prefill, p), size[p])[1]
    p = p[grouped_band(alike, prefill.seconds[p], -rate[p], LAYERS)]
    row, dp = replicas.spread(prefill, p)
    p = p[row]
    good, gpus = replicas.admitted(prefill, p, dp, size[p] * dp)
    ttft = prefill.seconds[p] + replicas.queue(prefill, p, dp)
    good &= question.met(ttft, np.zeros(len(p)), strict=strict)
    p, dp, ttft = p[good], dp[good], ttft[good]
    # Whether a batch is dealt out evenly hangs on replicas and size, so that only those of equal ones are compared.
    pool = Pool(p, dp, gpus[good], ttft, rate[p] * dp, distinct_rows(dp, size[p])[1])
    return pool.thinned()


def _decodes(
    question: Question, replicas: Replicas, decode: PhaseTable, d: Ints, latency: Floats, *, strict: bool
) -> Pool:
    """Decode pools of the strategies ``d`` with their latency where the pool begins."""
    share = decode.candidates.batch
    interval = np.full(len(share), np.inf)
    interval[d] = latency
    rate = share / (question.spec.workload.output * interval)
    d = d[question.met(np.zeros(len(d)), interval[d], strict=strict)]
    alike = distinct_rows(replicas.comparable(decode, d), share[d])[1]
    d = d[grouped_band(alike, interval[d], -rate[d], LAYERS)]
    row, dp = replicas.spread(decode, d)
    d = d[row]
    good, gpus = replicas.admitted(decode, d, dp, share[d] * dp)
    good &= question.asked(share[d] * dp)
    d, dp = d[good], dp[good]
    pool = Pool(d, dp, gpus[good], interval[d], rate[d] * dp, share[d] * dp)
    return pool.thinned()


def _fastest(replicas: Replicas, decode: PhaseTable, capacity: float) -> Ints:
    """Decode strategies that may be among the fastest with their GPUs and sequences, wherever their first GPU lies."""
    d = replicas.simplest_first(decode)
    d = d[decode.alone.longest[d] <= capacity]
    least, most = decode.seconds - decode.spread, decode.seconds + decode.spread
    wide = int(decode.candidates.batch.max(initial=0)) + 1
    group = replicas.comparable(decode, d) * wide + decode.candidates.batch[d]
    order = np.lexsort((most[d], group))
    values, start, count = np.unique(group[order], return_index=True, return_counts=True)
    # as many as matter are surely done by then
    enough = most[d][order][start + np.minimum(count, LAYERS) - 1]
    return np.asarray(d[least[d] <= enough[np.searchsorted(values, group)]])


def _matched(question: Question, replicas: Replicas, tables: Tables, first: Pool, second: Pool) -> Pairs:
    """Deployments of all pairs of pools, so many at once; of very many, those of pools that few others beat."""
    if len(first.gpus) * len(second.gpus) > AT_ONCE:
        first, second = first.leading(), second.leading()
        question.assume(_ONLY_LEADING)
    step = max(1, AT_ONCE // max(1, len(first.gpus)))
    parts = range(0, max(1, len(second.gpus)), step)
    return Pairs.joined([_paired(question, replicas, tables, first, second[low : low + step]) for low in parts])


def _paired(question: Question, replicas: Replicas, tables: Tables, first: Pool, second: Pool) -> Pairs:
    """Every pool of prefill with every one of decode, as far as the GPUs go."""
    prefill, decode = tables["prefill"], tables["decode"]
    i, j = np.nonzero(first.gpus[:, None] + second.gpus <= question.gpus)
    batch = decode.candidates.batch[second.strategy] * second.dp
    # The batch is dealt to prefill's replicas in steps of its size: the strategy must come out as it was costed.
    size, held = prefill.candidates.batch[first.strategy][i], -(-batch[j] // first.dp[i])
    whole = -(-held // np.maximum(1, -(-held // size))) == size
    p, d, batch = first[i[whole]], second[j[whole]], batch[j[whole]]
    pairs = Pairs(
        options=np.zeros(len(batch), dtype=np.int64),
        batch=batch,
        separate=np.ones(len(batch), dtype=bool),
        prefill=np.stack([p.strategy, p.dp], axis=-1),
        decode=np.stack([d.strategy, d.dp], axis=-1),
        gpus=p.gpus + d.gpus,
        ttft=p.latency,
        tpot=d.latency,
        requests=np.minimum(p.rate, d.rate),
        transfer=prefill.transfer[p.strategy],
        complexity=replicas.deployed(tables, p.strategy, d.strategy, p.dp * d.dp) + 1,
    )
    return _thinned(pairs)


def _thinned(pairs: Pairs) -> Pairs:
    """Of deployments with equal TPOT and GPUs those that few others beat; of equal ones the simplest."""
    pairs = pairs[np.argsort(pairs.complexity, kind="stable")]
    alike = np.unique(pairs.tpot, return_inverse=True)[1].reshape(-1)
    alike = alike * (int(pairs.gpus.max(initial=0)) + 1) + pairs.gpus
    return pairs[grouped_band(alike, pairs.ttft, -pairs.requests, LAYERS)]
