"""Deployments of a continuous batch: requests come and go one by one, prompts enter prefill a few at a time.

On shared GPUs one layout serves both phases and they take turns: while ``share`` sequences of a replica decode, each of
them makes room for one new prompt per ``output`` steps, so that

    TPOT        = decode interval + seconds per prompt * share / output
    TTFT        = prefill of one micro-batch of prompts + half of the decode step that runs
    requests/s  = share / (output * TPOT), of each replica

In pools of their own nobody stalls, and the slower pool sets the rate: prompts/s = 1 / seconds per prompt, or what can
be sent; decode's share / (output * interval). `compile` says the same of a workload of ``mode mixed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..cost.serving import steady_tpot, step_wait
from ..spec.strategy import Phase
from .frontier import grouped_band, grouped_skyband, joined, ranks, skyband
from .joint import Options, Pairs
from .question import Question
from .replicas import Moved, Replicas
from .rows import distinct_rows
from .table import PhaseTable
from .whole_batch import LAYERS, OptionSets

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Tables = Mapping[Phase, PhaseTable]

AT_ONCE = 1 << 20
"""Pairs of pools that are looked at together: bounds the memory."""


@dataclass(frozen=True)
class Turns:
    """Columns, one entry per pair of strategies of one replica.

    Attributes:
        prefill: Number of the prefill strategy.
        decode: Number of the decode strategy.
        ttft: Seconds, no queue of other prompts.
        tpot: Seconds.
        requests: Requests per second.
    """

    prefill: Ints
    decode: Ints
    ttft: Floats
    tpot: Floats
    requests: Floats

    def __len__(self) -> int:
        return len(self.prefill)

    def __getitem__(self, index: Any) -> Self:
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))


def continuous_deployments(
    question: Question, replicas: Replicas, tables: Tables, capacity: float, *, strict: bool
) -> tuple[Pairs, OptionSets]:
    """Deployments that serve requests as they come; see the module's text.

    Args:
        question: What is asked.
        replicas: What is known of strategies with replicas.
        tables: Strategies of both phases: prefill's of one micro-batch of prompts, decode's of the sequences of a
            replica.
        capacity: Bytes of a GPU; infinite where nothing fits, and the smallest strategies stand in the tables.
        strict: Leave out what misses a required latency.
    """
    if np.isinf(capacity):
        parts = [_whatever_fits_least(question, tables)]
    else:
        parts = [
            _shared(question, replicas, tables, capacity, strict=strict),
            *_pools(question, replicas, tables, capacity, strict=strict),
        ]
    pairs = Pairs.joined(parts)
    # Of deployments that are equal in everything the simplest comes first.
    return _numbered(replicas, tables, pairs[np.argsort(pairs.complexity, kind="stable")])


# --- shared GPUs ------------------------------------------------------------------------------------------------------


def _shared(question: Question, replicas: Replicas, tables: Tables, capacity: float, *, strict: bool) -> Pairs:
    turns = _turns(question, replicas, tables, capacity, strict=strict)
    prefill, decode = tables["prefill"], tables["decode"]
    row, dp = _with_replicas(question, decode, turns.decode)
    some = turns[row]
    batch = decode.candidates.batch[some.decode] * dp
    good, gpus = replicas.admitted(decode, some.decode, dp, batch)
    also, others = replicas.admitted(prefill, some.prefill, dp, batch)
    ttft = some.ttft + replicas.queue(prefill, some.prefill, dp)
    good &= also & _met(question, ttft, some.tpot, strict=strict) & _asked(question, batch)
    pairs = Pairs(
        options=np.zeros(len(row), dtype=np.int64),
        batch=batch,
        separate=np.zeros(len(row), dtype=bool),
        prefill=np.stack([some.prefill, dp], axis=-1),
        decode=np.stack([some.decode, dp], axis=-1),
        gpus=np.maximum(gpus, others),
        ttft=ttft,
        tpot=some.tpot,
        requests=some.requests * dp,
        transfer=np.where(prefill.parts_sequences(some.prefill), prefill.transfer[some.prefill], 0.0),
        complexity=_complexity(replicas, tables, some.prefill, some.decode, dp),
    )
    return pairs[good]


def _turns(question: Question, replicas: Replicas, tables: Tables, capacity: float, *, strict: bool) -> Turns:
    """Pairs of strategies whose weights lie alike, of one replica."""
    prefill, decode = tables["prefill"], tables["decode"]
    output, share = question.spec.workload.output, decode.candidates.batch
    wait = np.asarray(step_wait(decode.seconds, decode.candidates.microbatches))
    some_d = _simplest_first(replicas, decode)
    some_d = some_d[decode.needs.longest[some_d] <= capacity]
    some_d = some_d[_met(question, np.zeros(len(some_d)), decode.seconds[some_d], strict=strict)]
    # Which shares does a prefill strategy meet? Those of decode strategies that lie alike, as far as there is room.
    wide = int(share.max(initial=0)) + 1
    places, spot = np.unique(replicas.code(decode, "weights", some_d) * wide + share[some_d], return_inverse=True)
    band = grouped_band(spot, decode.seconds[some_d], wait[some_d], LAYERS)
    some_d, spot = some_d[band], spot[band]
    p, place = _meeting(question, replicas, prefill, places // wide, places % wide, capacity)
    best, least = (np.full(len(places), np.inf) for _ in range(2))
    np.minimum.at(best, spot, decode.seconds[some_d])
    np.minimum.at(least, spot, wait[some_d])
    tpot = np.asarray(steady_tpot(best[place], prefill.each[p], places[place] % wide, output))
    good = _met(question, prefill.seconds[p] + least[place], tpot, strict=strict)
    p, place = p[good], place[good]
    latency, each = ranks(prefill.seconds), ranks(prefill.each)
    band = grouped_band(place, latency[p], each[p], LAYERS)
    i, j = joined(place[band], spot)
    p, d = p[band][i], some_d[j]
    tpot = np.asarray(steady_tpot(decode.seconds[d], prefill.each[p], share[d], output))
    made = Turns(p, d, prefill.seconds[p] + wait[d], tpot, share[d] / (output * tpot))
    made = made[_met(question, made.ttft, made.tpot, strict=strict)]
    gpus = _replica_size(question, decode, made.decode)
    # With as many sequences, whoever has the smaller TPOT serves more.
    return made[grouped_band(gpus * wide + share[made.decode], made.ttft, made.tpot, LAYERS)]


def _meeting(
    question: Question, replicas: Replicas, prefill: PhaseTable, lies: Ints, share: Ints, capacity: float
) -> tuple[Ints, Ints]:
    """Prefill strategies and the places at which they meet decode, by how those lie and their sequences, ascending."""
    some = _simplest_first(replicas, prefill)
    code = replicas.code(prefill, "weights", some)
    values, start = np.unique(lies, return_index=True)
    most = np.maximum.reduceat(share, start) if len(start) else share
    at = np.minimum(np.searchsorted(values, code), max(0, len(values) - 1))
    met = values[at] == code if len(values) else np.zeros(len(code), dtype=bool)
    some, at = some[met], at[met]
    # Room for more than any of them has is as good as room for just that.
    limit = np.searchsorted(question.batches, most[at], side="right")
    size, room = prefill.candidates.batch[some], np.minimum(_room(question, prefill, some, capacity), limit)
    group = distinct_rows(at, size, room)[1]
    band = grouped_band(group, prefill.seconds[some], prefill.each[some], LAYERS)
    some, size, room = some[band], size[band], room[band]
    i, place = joined(values[at[band]], lies)
    good = (share[place] % np.maximum(1, size[i]) == 0) & (np.searchsorted(question.batches, share[place]) < room[i])
    return some[i[good]], place[good]


def _room(question: Question, table: PhaseTable, mine: Ints, capacity: float) -> Ints:
    """How many of the tried sizes of a replica leave room for each prefill strategy: more sequences need more."""
    needs, size = table.needs[mine], table.candidates.batch[mine]
    rounds = np.where(table.parts_sequences(mine), needs.rounds_moving, needs.rounds)
    # What one sequence of the longest takes does not hang on how many others there are.
    rounds = np.where(np.where(table.parts_sequences(mine), needs.moving, needs.longest) <= capacity, rounds, 0.0)
    return np.searchsorted(question.batches, rounds * size, side="right")


# --- pools of their own -----------------------------------------------------------------------------------------------


def _pools(question: Question, replicas: Replicas, tables: Tables, capacity: float, *, strict: bool) -> list[Pairs]:
    """Deployments in pools of their own, by where decode's first GPU lies in its scale-up domain."""
    prefill, decode = tables["prefill"], tables["decode"]
    need = prefill.alone.moving
    p = _simplest_first(replicas, prefill)
    p = p[need[p] <= capacity]
    work = question.spec.workload
    if strict and work.require.ttft is not None:
        p = p[prefill.seconds[p] <= work.require.ttft]
    # The pool serves what it computes or what it can send away, whichever is less.
    size = np.maximum(1, prefill.candidates.batch)
    rate = 1 / np.maximum(prefill.each, prefill.transfer / size)
    p = p[_band(_replica_size(question, prefill, p), prefill.seconds[p], -rate[p])]
    row, dp = _with_replicas(question, prefill, p)
    p = p[row]
    good, gpus = replicas.admitted(prefill, p, dp, size[p] * dp)
    ttft = prefill.seconds[p] + replicas.queue(prefill, p, dp)
    good &= _met(question, ttft, np.zeros(len(p)), strict=strict)
    first = _Pool(p[good], dp[good], gpus[good], ttft[good], rate[p[good]] * dp[good])
    first = first[_band(first.gpus, first.latency, -first.rate)]
    domain = question.hardware.domain
    several = bool((decode.candidates.pp > 1).any())
    offsets = first.gpus % domain if several else np.zeros_like(first.gpus)
    every, made = np.unique(offsets), []
    moved = Moved(decode, _fastest(question, replicas, decode, capacity), every)
    for offset in every.tolist():
        second = _decodes(question, replicas, moved, offset, strict=strict)
        made.append(_matched(question, replicas, tables, first[offsets == offset], second))
    return made


@dataclass(frozen=True)
class _Pool:
    """Columns, one entry per strategy of a pool with its replicas; ``rate`` in requests per second."""

    strategy: Ints
    dp: Ints
    gpus: Ints
    latency: Floats
    rate: Floats

    def __getitem__(self, index: Any) -> Self:
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    def leading(self) -> Self:
        """What few others of as many GPUs or fewer beat in everything."""
        return self[skyband(np.stack([self.gpus.astype(np.float64), self.latency, -self.rate]), LAYERS)]


def _decodes(question: Question, replicas: Replicas, moved: Moved, offset: int, *, strict: bool) -> _Pool:
    """Decode pools whose first GPU is number ``offset`` of its domain."""
    decode, d = moved.table, moved.mine
    share = decode.candidates.batch
    interval = np.full(len(share), np.inf)
    interval[d] = moved.seconds(offset)
    rate = share / (question.spec.workload.output * interval)
    d = d[_met(question, np.zeros(len(d)), interval[d], strict=strict)]
    d = d[_band(_replica_size(question, decode, d), interval[d], -rate[d])]
    row, dp = _with_replicas(question, decode, d)
    d = d[row]
    good, gpus = replicas.admitted(decode, d, dp, share[d] * dp)
    good &= _asked(question, share[d] * dp)
    pool = _Pool(d[good], dp[good], gpus[good], interval[d[good]], rate[d[good]] * dp[good])
    return pool[_band(pool.gpus, pool.latency, -pool.rate)]


def _fastest(question: Question, replicas: Replicas, decode: PhaseTable, capacity: float) -> Ints:
    """Decode strategies that may be among the fastest with their GPUs and sequences, wherever their first GPU lies."""
    d = _simplest_first(replicas, decode)
    d = d[decode.alone.longest[d] <= capacity]
    least, most = decode.seconds - decode.spread, decode.seconds + decode.spread
    wide = int(decode.candidates.batch.max(initial=0)) + 1
    group = _replica_size(question, decode, d) * wide + decode.candidates.batch[d]
    order = np.lexsort((most[d], group))
    values, start, count = np.unique(group[order], return_index=True, return_counts=True)
    # as many as matter are surely done by then
    enough = most[d][order][start + np.minimum(count, LAYERS) - 1]
    return np.asarray(d[least[d] <= enough[np.searchsorted(values, group)]])


def _matched(question: Question, replicas: Replicas, tables: Tables, first: _Pool, second: _Pool) -> Pairs:
    """Deployments of pools of which no others of fewer GPUs are better; of many pools, so many at once."""
    if len(first.gpus) * len(second.gpus) > AT_ONCE:
        # Here it is worth while to compare pools of unequal size with each other.
        first, second = first.leading(), second.leading()
    step = max(1, AT_ONCE // max(1, len(first.gpus)))
    parts = range(0, max(1, len(second.gpus)), step)
    return Pairs.joined([_paired(question, replicas, tables, first, second[low : low + step]) for low in parts])


def _paired(question: Question, replicas: Replicas, tables: Tables, first: _Pool, second: _Pool) -> Pairs:
    """Every pool of prefill with every one of decode, as far as the GPUs go."""
    prefill, decode = tables["prefill"], tables["decode"]
    i, j = (a.reshape(-1) for a in np.meshgrid(np.arange(len(first.gpus)), np.arange(len(second.gpus)), indexing="ij"))
    fits = first.gpus[i] + second.gpus[j] <= question.gpus
    p, d = first[i[fits]], second[j[fits]]
    batch = decode.candidates.batch[d.strategy] * d.dp
    # The batch is dealt to prefill's replicas in steps of its size: the strategy must come out as it was costed.
    size, held = prefill.candidates.batch[p.strategy], -(-batch // p.dp)
    whole = -(-held // np.maximum(1, -(-held // size))) == size
    p, d, batch = p[whole], d[whole], batch[whole]
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
        complexity=_complexity(replicas, tables, p.strategy, d.strategy, p.dp * d.dp) + 1,
    )
    return _thinned(pairs)


# --- what both share --------------------------------------------------------------------------------------------------


def _simplest_first(replicas: Replicas, table: PhaseTable) -> Ints:
    """All strategies; of several that cost the same, the first is taken."""
    return np.argsort(replicas.complexity(table), kind="stable")


def _met(question: Question, ttft: Floats, tpot: Floats, *, strict: bool) -> NDArray[np.bool_]:
    """What meets the required latencies; everything where they are not asked for."""
    good = np.ones(len(ttft), dtype=bool)
    for phase, value in (("prefill", ttft), ("decode", tpot)):
        limit = question.limit(phase)  # type: ignore[arg-type]
        if strict and limit is not None:
            good &= value <= limit
    return good


def _asked(question: Question, batch: Ints) -> NDArray[np.bool_]:
    """Which batches are the file's, where it gives one."""
    given = question.spec.workload.batch
    return np.ones(len(batch), dtype=bool) if given is None else np.asarray(batch == given)


def _replica_size(question: Question, table: PhaseTable, mine: Ints) -> Ints:
    """What strategies may be compared within: GPUs of a replica; where another law counts them, the very layout."""
    some = table.candidates[mine]
    if question.spec.pack is None and question.law.counts_ranks:
        return np.asarray(some.pp * table.costs.layouts.ranks[some.layout])
    return np.asarray(some.layout * (question.gpus + 1) + some.pp)


def _with_replicas(question: Question, table: PhaseTable, mine: Ints) -> tuple[Ints, Ints]:
    """(row, replicas): each of ``mine`` with every number of replicas that the GPUs hold."""
    some = table.candidates[mine]
    most = np.maximum(1, question.gpus // (some.pp * table.costs.layouts.ranks[some.layout]))
    row = np.repeat(np.arange(len(mine)), most)
    start = np.cumsum(most) - most
    return row, np.arange(len(row)) - start[row] + 1


def _band(group: Ints, *columns: Floats) -> Ints:
    """What few others of the group beat in everything; smaller is better."""
    return grouped_skyband(group, np.stack(columns), LAYERS)


def _thinned(pairs: Pairs) -> Pairs:
    """Of deployments with equal TPOT and GPUs those that few others beat; of equal ones the simplest."""
    pairs = pairs[np.argsort(pairs.complexity, kind="stable")]
    alike = np.unique(pairs.tpot, return_inverse=True)[1].reshape(-1)
    alike = alike * (int(pairs.gpus.max(initial=0)) + 1) + pairs.gpus
    return pairs[grouped_band(alike, pairs.ttft, -pairs.requests, LAYERS)]


def _complexity(replicas: Replicas, tables: Tables, p: Ints, d: Ints, dp: Ints) -> Ints:
    own = replicas.complexity(tables["prefill"])[p] + replicas.complexity(tables["decode"])[d]
    return np.asarray(own + (dp > 1))


def _whatever_fits_least(question: Question, tables: Tables) -> Pairs:
    """The strategies that need least memory, where nothing fits."""
    prefill, decode = tables["prefill"], tables["decode"]
    one = np.array([[0, 1]])
    share = decode.candidates.batch[:1]
    tpot = np.asarray(steady_tpot(decode.seconds[:1], prefill.each[:1], share, question.spec.workload.output))
    gpus = [t.candidates.pp[:1] * t.costs.layouts.ranks[t.candidates.layout[:1]] for t in (prefill, decode)]
    return Pairs(
        options=np.zeros(1, dtype=np.int64),
        batch=share,
        separate=np.zeros(1, dtype=bool),
        prefill=one,
        decode=one,
        gpus=np.maximum(*gpus),
        ttft=prefill.seconds[:1] + np.asarray(step_wait(decode.seconds[:1], decode.candidates.microbatches[:1])),
        tpot=tpot,
        requests=share / (question.spec.workload.output * tpot),
        transfer=np.zeros(1),
        complexity=np.zeros(1, dtype=np.int64),
    )


def _numbered(replicas: Replicas, tables: Tables, pairs: Pairs) -> tuple[Pairs, OptionSets]:
    """The deployments with their strategies as options, each strategy with its replicas once."""
    chosen: dict[tuple[Phase, bool], Options] = {}
    columns: dict[Phase, Ints] = {p: np.full(len(pairs), -1) for p in ("prefill", "decode")}
    for separate in (False, True):
        mine = np.flatnonzero(pairs.separate == separate)
        for phase in columns:
            (strategy, dp), columns[phase][mine] = distinct_rows(*getattr(pairs, phase)[mine].reshape(-1, 2).T)
            chosen[phase, separate] = replicas.options(tables[phase], strategy, dp, separate=separate)
    return replace(pairs, prefill=columns["prefill"], decode=columns["decode"]), [chosen]
