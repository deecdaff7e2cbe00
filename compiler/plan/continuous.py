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

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..cost.serving import steady_tpot, step_wait
from ..spec.strategy import Phase
from .frontier import grouped_band, joined, ranks
from .joint import LAYERS, Options, Pairs, until_interrupted
from .pools import pool_deployments
from .question import Progress, Question
from .replicas import Replicas, Tables
from .rows import Columnar, distinct_rows
from .table import PhaseTable
from .whole_batch import OptionSets

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Turns(Columnar):
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


def continuous_deployments(
    question: Question, replicas: Replicas, tables: Tables, capacity: float, *, strict: bool, progress: Progress
) -> tuple[Pairs, OptionSets, bool]:
    """Deployments that serve requests as they come, and whether all were made; see the module's text.

    Args:
        question: What is asked.
        replicas: What is known of strategies with replicas.
        tables: Strategies of both phases: prefill's of one micro-batch of prompts, decode's of the sequences of a
            replica.
        capacity: Bytes of a GPU; infinite where nothing fits, and the smallest strategies stand in the tables.
        strict: Leave out what misses a required latency.
        progress: Told what is being done.
    """

    def parts() -> Iterator[Pairs]:
        if np.isinf(capacity):
            yield _whatever_fits_least(question, tables)
            return
        progress("deployments on shared GPUs")
        yield _shared(question, replicas, tables, capacity, strict=strict)
        progress("deployments in pools")
        yield from pool_deployments(question, replicas, tables, capacity, strict=strict)

    pairs, complete = until_interrupted(parts())
    # Of deployments that are equal in everything the simplest comes first.
    return *_numbered(replicas, tables, pairs[np.argsort(pairs.complexity, kind="stable")]), complete


def _shared(question: Question, replicas: Replicas, tables: Tables, capacity: float, *, strict: bool) -> Pairs:
    turns = _turns(question, replicas, tables, capacity, strict=strict)
    prefill, decode = tables["prefill"], tables["decode"]
    row, dp = replicas.spread(decode, turns.decode)
    some = turns[row]
    batch = decode.candidates.batch[some.decode] * dp
    good, gpus = replicas.admitted(decode, some.decode, dp, batch)
    also, others = replicas.admitted(prefill, some.prefill, dp, batch)
    ttft = some.ttft + replicas.queue(prefill, some.prefill, dp)
    good &= also & question.met(ttft, some.tpot, strict=strict) & question.asked(batch)
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
        complexity=replicas.deployed(tables, some.prefill, some.decode, dp),
    )
    return pairs[good]


def _turns(question: Question, replicas: Replicas, tables: Tables, capacity: float, *, strict: bool) -> Turns:
    """Pairs of strategies whose weights lie alike, of one replica."""
    prefill, decode = tables["prefill"], tables["decode"]
    output, share = question.spec.workload.output, decode.candidates.batch
    wait = np.asarray(step_wait(decode.seconds, decode.candidates.microbatches))
    some_d = replicas.simplest_first(decode)
    some_d = some_d[decode.needs.longest[some_d] <= capacity]
    some_d = some_d[question.met(np.zeros(len(some_d)), decode.seconds[some_d], strict=strict)]
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
    good = question.met(prefill.seconds[p] + least[place], tpot, strict=strict)
    p, place = p[good], place[good]
    latency, each = ranks(prefill.seconds), ranks(prefill.each)
    band = grouped_band(place, latency[p], each[p], LAYERS)
    i, j = joined(place[band], spot)
    p, d = p[band][i], some_d[j]
    tpot = np.asarray(steady_tpot(decode.seconds[d], prefill.each[p], share[d], output))
    made = Turns(p, d, prefill.seconds[p] + wait[d], tpot, share[d] / (output * tpot))
    made = made[question.met(made.ttft, made.tpot, strict=strict)]
    gpus = replicas.comparable(decode, made.decode)
    # With as many sequences, whoever has the smaller TPOT serves more.
    return made[grouped_band(gpus * wide + share[made.decode], made.ttft, made.tpot, LAYERS)]


def _meeting(
    question: Question, replicas: Replicas, prefill: PhaseTable, lies: Ints, share: Ints, capacity: float
) -> tuple[Ints, Ints]:
    """Prefill strategies and the places at which they meet decode, by how those lie and their sequences, ascending."""
    some = replicas.simplest_first(prefill)
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
