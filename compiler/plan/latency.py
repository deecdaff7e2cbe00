"""TTFT and TPOT of many strategies: what one trip through each pipeline takes, put into the closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .chunks import Chunks, chunks_of
from .evaluate import Evaluator
from .rows import Seconds, distinct_rows
from .schedule import (
    chunked_seconds,
    decode_seconds,
    mixed_decode_seconds,
    mixed_prefill_seconds,
    prefill_seconds,
)
from .space import Candidates
from .stages import Pipelines, by_stages, crossings

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

STAGES_SEEN = 8
"""Columns per strategy that pieces of work are sized for."""


class Latency:
    """Seconds of candidates of one phase.

    Args:
        evaluator: Costs of blocks.
        pipelines: How layers are dealt to stages.
        context: Tokens per sequence of decode's first costed step; in prefill not used.
    """

    def __init__(self, evaluator: Evaluator, pipelines: Pipelines, context: int) -> None:
        self.evaluator, self.pipelines, self.context = evaluator, pipelines, context

    @property
    def decode(self) -> bool:
        return self.evaluator.phase == "decode"

    def seconds(self, candidates: Candidates, first_rank: Ints) -> Floats:
        """[3, candidates]; see :meth:`.phase.PhaseCosts.seconds`."""
        out = np.zeros((3, len(candidates)))
        parted = candidates.chunk > 0
        whole, chunked = np.flatnonzero(~parted), np.flatnonzero(parted)
        assert not first_rank[chunked].any(), "prompts enter prefill, whose GPUs come first"
        some, others = candidates[whole], candidates[chunked]
        trips, chunks = some.sizes, chunks_of(others, self.evaluator.prompt)
        # All rows at once: what a call costs hardly hangs on how many there are.
        count = len(trips.layout)
        new = np.full(count, 1 if self.decode else self.evaluator.prompt)
        past, only = np.full(count, self.context - 1 if self.decode else 0), np.ones(count, dtype=np.int64)
        rows = trips.layout, trips.batch, new
        tokens = self.evaluator.by_tokens(*_joined((*rows, only, only), chunks.alike_rows()))
        context = self.evaluator.by_context(*_joined((*rows, past), chunks.rows()))
        if len(whole):
            seconds = tokens.at(slice(count))
            seconds = replace(seconds, parts=seconds.parts + context[:, :count])
            out[:, whole] = self._whole(some, seconds, first_rank[whole])
        if len(chunked):
            out[:, chunked] = self._chunked(others, chunks, tokens.at(slice(count, None)), context[:, count:])
        return out

    # --- in one piece -----------------------------------------------------------------------------------------------

    def _whole(self, candidates: Candidates, seconds: Seconds, first_rank: Ints) -> Floats:
        """Micro-batches that pass the pipeline in one piece; ``seconds`` of the distinct ones."""
        sizes = candidates.sizes
        through = self.evaluator.counts.sum(axis=1) @ seconds.parts + seconds.prologue + seconds.epilogue
        firsts, place = self._places(candidates.layout, first_rank)
        fewer = candidates.smaller_count
        out = np.zeros((3, len(candidates)))
        if self.decode:
            parted = np.abs(seconds.send[1] - seconds.send[0]) + np.abs(seconds.back[1] - seconds.back[0])
            messages = np.maximum(candidates.pp, candidates.microbatches) * (candidates.pp > 1)
            out[2] = messages * parted[sizes.larger]
        for pp, group in by_stages(candidates.pp, STAGES_SEEN):
            table = self._crosses(pp, firsts)
            for mine, mixed in ((group[fewer[group] == 0], False), (group[fewer[group] > 0], True)):
                if not len(mine):
                    continue
                trip_rows = [sizes.larger[mine]]
                if mixed:
                    trip_rows.append(sizes.smaller[np.searchsorted(sizes.mixed, mine)])
                counts = candidates.larger_count[mine], fewer[mine]
                if mixed and not self.decode:
                    larger, smaller = (self._in_order(seconds, rows, pp, table[place[mine]]) for rows in trip_rows)
                    out[0, mine] = mixed_prefill_seconds(larger, smaller, *counts)
                    out[1, mine] = (counts[0] * larger + counts[1] * smaller).max(axis=0)
                    continue
                trips = [self._trip(seconds, through, rows, table, place[mine]) for rows in trip_rows]
                if mixed:
                    (first, times), (second, others) = trips
                    out[0, mine] = mixed_decode_seconds((first, second), (times, others), *counts)
                    out[1, mine] = (counts[0] * times + counts[1] * others).max(axis=0)
                else:
                    form = decode_seconds if self.decode else prefill_seconds
                    out[0, mine] = form(*trips[0], counts[0])
                    out[1, mine] = counts[0] * trips[0][1].max(axis=0)
        return out

    def _places(self, layout: Ints, first_rank: Ints) -> tuple[Ints, Ints]:
        """The different first ranks, and the row of :meth:`_crosses` that each layout behind one has."""
        (firsts,), which = distinct_rows(first_rank)
        ranks = self.evaluator.layouts.ranks
        return firsts, which * (int(ranks.max(initial=0)) + 1) + ranks[layout]

    def _crosses(self, pp: int, firsts: Ints) -> NDArray[np.bool_]:
        """[first ranks * ranks of a stage, pp] which messages leave their domain; see :func:`.stages.crossings`."""
        ranks = np.arange(int(self.evaluator.layouts.ranks.max(initial=0)) + 1)
        if pp == 1:
            return np.zeros((len(firsts) * len(ranks), 1), dtype=bool)
        rows = np.tile(ranks, len(firsts)), np.repeat(firsts, len(ranks))
        return crossings(*rows, pp, self.evaluator.hardware.domain)

    def _stage_seconds(self, seconds: Seconds, pp: int) -> Floats:
        """[kinds, rows] seconds of each kind of stage."""
        kinds = self.pipelines[pp].summed(seconds.parts)
        kinds[0] += seconds.prologue
        kinds[-1] += seconds.epilogue
        return kinds

    def _trip(
        self, seconds: Seconds, through: Floats, rows: Ints, crosses: NDArray[np.bool_], place: Ints
    ) -> tuple[Floats, Floats]:
        """Sum over all servers, and the seconds of those that differ; ``place`` is each row's in ``crosses``."""
        pp, here = crosses.shape[1], seconds.at(rows)
        stages = self._stage_seconds(here, pp)
        if pp == 1:
            return stages[0], stages
        outside = np.count_nonzero(crosses[:, :-1], axis=1)[place]
        near, far = here.send
        total = through[rows] + (pp - 1 - outside) * near + outside * far
        messages = [np.where(outside < pp - 1, near, 0.0), np.where(outside > 0, far, 0.0)]
        if self.decode:
            messages.append(np.where(crosses[place, -1], here.back[1], here.back[0]))
            total += messages[-1]
        return total, np.concatenate([stages, messages])

    def _in_order(self, seconds: Seconds, rows: Ints, pp: int, crosses: NDArray[np.bool_]) -> Floats:
        """[servers, rows] seconds of the stages with the messages between them."""
        here = seconds.at(rows)
        stages = self._stage_seconds(here, pp)
        out = np.empty((2 * pp - 1, len(rows)))
        out[0::2] = stages[self.pipelines[pp].kind]
        if pp > 1:
            out[1::2] = np.where(crosses[:, :-1].T, here.send[1], here.send[0])
        return out

    # --- in chunks --------------------------------------------------------------------------------------------------

    def _chunked(self, candidates: Candidates, c: Chunks, tokens: Seconds, context: Floats) -> Floats:
        """Micro-batches in chunks, from seconds of the chunks that differ."""
        counts = np.stack([candidates.larger_count, candidates.smaller_count])
        items = (counts * c.chunks[c.which]).sum(axis=0)
        out = np.zeros((3, len(candidates)))
        order = np.argsort(items, kind="stable")
        for pp, place in by_stages(candidates.pp[order], STAGES_SEEN):
            mine = order[place]
            (used,), of = distinct_rows(c.which[:, mine].reshape(-1))
            each = c.chunks[used]
            begin = np.cumsum(each) - each
            rows = np.arange(int(each.sum())) + np.repeat(c.start[used] - begin, each)
            ranks = self.evaluator.layouts.ranks[c.layout[c.micro[rows]]]
            seconds = tokens.at(c.alike[rows])
            seconds = replace(seconds, parts=seconds.parts + context[:, rows])
            times, servers = self._distinct_servers(seconds, ranks, pp)
            of = of.reshape(2, -1)
            passed = _passed(begin[of], each[of], counts[:, mine], int(items[mine[-1]]))
            out[0, mine] = chunked_seconds(times, servers, passed, items[mine])
            whole = np.add.reduceat(times, begin, axis=1)
            out[1, mine] = (counts[0, mine] * whole[:, of[0]] + counts[1, mine] * whole[:, of[1]]).max(axis=0)
        return out

    def _distinct_servers(self, seconds: Seconds, ranks: Ints, pp: int) -> tuple[Floats, list[int]]:
        """Seconds of the servers that differ, and which of them each server is, in order."""
        stages = self.pipelines[pp]
        times = self._stage_seconds(seconds, pp)
        if pp == 1:
            return times, [0]
        table = self._crosses(pp, np.zeros(1, dtype=np.int64))[:, :-1].T
        there = np.flatnonzero(np.bincount(ranks))
        patterns: dict[bytes, int] = {}
        which = [patterns.setdefault(column.tobytes(), len(patterns)) for column in table[:, there]]
        crosses = table[[which.index(number) for number in patterns.values()]][:, ranks]
        messages = np.where(crosses, seconds.send[1], seconds.send[0])
        order = np.empty(2 * pp - 1, dtype=np.int64)
        order[0::2], order[1::2] = stages.kind, len(times) + np.array(which)
        return np.concatenate([times, messages]), order.tolist()

    # --- transfer of caches -----------------------------------------------------------------------------------------

    def transfer(self, candidates: Candidates) -> Floats:
        """Seconds that the busiest stage's ranks send the caches of a replica's batch: all that they hold; prefill."""
        out = np.zeros(len(candidates))
        if self.decode or not len(candidates):
            return out
        each = self.evaluator.sending(candidates.sizes.layout, candidates.sizes.batch)
        parts = np.stack([candidates.summed(part) if part.any() else out for part in each])
        for pp, mine in by_stages(candidates.pp, STAGES_SEEN):
            out[mine] = self.pipelines[pp].summed(parts[:, mine]).max(axis=0)
        return out


def _joined(first: Sequence[Ints], second: Sequence[Ints]) -> list[Ints]:
    return [np.concatenate(columns) for columns in zip(first, second, strict=True)]


def _passed(begin: Ints, period: Ints, counts: Ints, items: int) -> Ints:
    """[items, strategies] rows that pass the pipeline one after the other: first the larger micro-batches' chunks.

    Args:
        begin: [2, strategies] row of the first chunk of the larger and of the smaller micro-batch.
        period: [2, strategies] chunks of each.
        counts: [2, strategies] micro-batches of each size.
        items: Items of the strategy that has most; what is behind the last one of others is any row.
    """
    every = np.arange(items)[:, None]
    turn = every % np.arange(1, int(period.max()) + 1)
    rows = begin[0] + turn[:, period[0] - 1]
    mixed = np.flatnonzero(counts[1])
    if len(mixed):
        after = every - (counts[0] * period[0])[mixed]
        smaller = begin[1, mixed] + after % period[1, mixed]
        rows[:, mixed] = np.where(after < 0, rows[:, mixed], smaller)
    return np.asarray(rows)
