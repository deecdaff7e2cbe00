"""Strategies with their replicas: GPUs, what a pack refuses of them, and which of them lie alike in both phases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ..cost.serving import settled_wait
from ..spec.strategy import Phase
from .joint import Options
from .packs import counted_gpus, refused_replicas
from .question import Question
from .table import PhaseTable, complexity

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Tables = Mapping[Phase, PhaseTable]


class Replicas:
    """What a search knows of its tables' strategies beyond one replica of each.

    Args:
        question: What is asked.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self._layouts: dict[tuple[str | int, ...], int] = {}
        self._numbered: dict[tuple[int, str], tuple[PhaseTable, Ints]] = {}
        self._complexities: dict[int, tuple[PhaseTable, Ints]] = {}

    def admitted(self, table: PhaseTable, mine: Ints, dp: Ints, batch: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Which replicas law and pack admit, and the GPUs of all.

        Args:
            table: The strategies.
            mine: Numbers of strategies.
            dp: Replicas of each.
            batch: Sequences in flight over all replicas, of each.
        """
        q, some, gpus = self.question, table.candidates[mine], self.gpus(table, mine, dp)
        here = table.costs.layouts[some.layout]
        good = np.asarray(gpus <= q.gpus)
        columns = {"pp": some.pp, "microbatches": some.microbatches, "chunk": some.chunk}
        for refused in refused_replicas(q.spec, table.phase, here, **columns, dp=dp, batch=batch).values():
            good &= ~refused
        return good, gpus

    def gpus(self, table: PhaseTable, mine: Ints, dp: Ints) -> Ints:
        """GPUs of strategies with their replicas, as the law or the pack counts them."""
        q, some = self.question, table.candidates[mine]
        here = table.costs.layouts[some.layout]
        if q.spec.pack is not None and q.spec.pack.law.gpus is not None:
            return counted_gpus(q.spec, table.phase, here, pp=some.pp, dp=dp)
        return q.law.gpus(dp, some.pp, here)

    def complexity(self, table: PhaseTable) -> Ints:
        """Of all strategies of a phase; see :func:`.table.complexity`."""
        known = self._complexities.get(id(table))
        if known is None:
            known = self._complexities[id(table)] = table, complexity(table.candidates, table.costs.layouts)
        return known[1]

    def code(self, table: PhaseTable, kind: str, mine: Ints, dp: Ints | int = 0) -> Ints:
        """One number per combination of replicas, stages and layout, the same in both phases where it lies alike.

        Args:
            table: The strategies.
            kind: ``weights`` or ``cache``: what has to lie alike.
            mine: Numbers of strategies.
            dp: Replicas of each.
        """
        wide, some = self.question.gpus + 1, table.candidates[mine]
        return np.asarray((self._numbers(table, kind)[some.layout] * wide + dp) * wide + some.pp)

    def simplest_first(self, table: PhaseTable) -> Ints:
        """All strategies of a phase; of several that cost the same, the first is taken."""
        return np.argsort(self.complexity(table), kind="stable")

    def deployed(self, tables: Tables, prefill: Ints, decode: Ints, dp: Ints) -> Ints:
        """How many ways of splitting deployments use: of strategies of both phases, and replicas."""
        own = self.complexity(tables["prefill"])[prefill] + self.complexity(tables["decode"])[decode]
        return np.asarray(own + (dp > 1))

    def comparable(self, table: PhaseTable, mine: Ints) -> Ints:
        """What strategies may be compared within: GPUs of a replica; where another law counts, the very layout."""
        q, some = self.question, table.candidates[mine]
        if q.spec.pack is None and q.law.counts_ranks:
            return np.asarray(some.pp * table.costs.layouts.ranks[some.layout])
        return np.asarray(some.layout * (q.gpus + 1) + some.pp)

    def spread(self, table: PhaseTable, mine: Ints) -> tuple[Ints, Ints]:
        """(row, replicas): each of ``mine`` with every number of replicas that the GPUs hold."""
        some = table.candidates[mine]
        most = np.maximum(1, self.question.gpus // (some.pp * table.costs.layouts.ranks[some.layout]))
        row = np.repeat(np.arange(len(mine)), most)
        start = np.cumsum(most) - most
        return row, np.arange(len(row)) - start[row] + 1

    def _numbers(self, table: PhaseTable, kind: str) -> Ints:
        """A number of each layout. How SP and attention DP share the ranks between them moves no weights."""
        key = (id(table.costs), kind)
        if key not in self._numbered:
            own = table.costs.layouts
            if kind == "weights":
                usual = own.nesting(table.costs.model)[0].astype(np.int64)
                columns = [own.ranks, own.tp, own.ep, own.etp, usual]
            else:
                columns = [own.adp, own.sp, own.tp]
            rows = zip(*(column.tolist() for column in columns), strict=True)
            numbers = [self._layouts.setdefault((kind, *row), len(self._layouts)) for row in rows]
            self._numbered[key] = table, np.array(numbers, dtype=np.int64)
        return self._numbered[key][1]

    def queue(self, table: PhaseTable, mine: Ints, dp: Ints) -> Floats:
        """Seconds that a prompt waits for others at the required rate; 0 where the queue has no end, and in decode."""
        rate = self.question.spec.workload.rate
        if rate is None or table.phase == "decode":
            return np.zeros(len(mine))
        return np.asarray(settled_wait(table.each[mine], rate / dp))

    def options(self, table: PhaseTable, mine: Ints, dp: Ints, *, separate: bool) -> Options:
        """Strategies with their replicas as options of deployments, nothing queueing.

        Args:
            table: The strategies.
            mine: Numbers of strategies.
            dp: Replicas of each.
            separate: Whether the phase has GPUs of its own.
        """
        needs = (table.alone if separate else table.needs)[mine]
        return Options(
            strategy=mine,
            dp=dp,
            gpus=self.gpus(table, mine, dp),
            weights_code=self.code(table, "weights", mine, dp),
            cache_code=self.code(table, "cache", mine, dp),
            latency=table.seconds[mine],
            need=needs.longest,
            moving=needs.moving,
            weights=needs.weights,
            transfer=table.transfer[mine],
            complexity=self.complexity(table)[mine],
        )


def behind(table: PhaseTable, mine: Ints, gpus: Ints, domain: int) -> Iterator[tuple[Ints, Floats]]:
    """Pools by where the pool behind them begins in its scale-up domain, and what strategies of that one take there.

    Only what the stages of a pipeline send depends on it.

    Args:
        table: Strategies of the pool behind.
        mine: Numbers of those that are asked for.
        gpus: GPUs of each pool before it.
        domain: GPUs of a scale-up domain.

    Yields:
        Numbers of the pools that end alike, and the latency of ``mine`` behind them.
    """
    staged = np.flatnonzero(table.candidates.pp[mine] > 1)
    offsets = gpus % domain if len(staged) else np.zeros_like(gpus)
    every = np.unique(offsets)
    candidates = table.candidates[np.tile(mine[staged], len(every))]
    latency = table.costs.seconds(candidates, np.repeat(every, len(staged)))[0]
    for offset, moved in zip(every, latency.reshape(len(every), len(staged)), strict=True):
        found = table.seconds[mine]
        found[staged] = moved
        yield np.flatnonzero(offsets == offset), found
