"""TTFT and TPOT of many strategies: what one trip through each pipeline takes, put into the closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

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

_FIRST, _BETWEEN, _LAST = range(3)

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
        self._last: tuple[Candidates, Seconds] | None = None

    @property
    def decode(self) -> bool:
        return self.evaluator.phase == "decode"

    def seconds(self, candidates: Candidates, first_rank: int) -> Floats:
        """[3, candidates]; see :meth:`.phase.PhaseCosts.seconds`."""
        chunked = candidates.chunk > 0
        if not chunked.any():
            return self._whole(candidates, first_rank)
        out = np.zeros((3, len(candidates)))
        for subset, run in ((np.flatnonzero(~chunked), self._whole), (np.flatnonzero(chunked), self._chunked)):
            if len(subset):
                out[:, subset] = run(candidates[subset], first_rank)
        return out

    # --- in one piece -----------------------------------------------------------------------------------------------

    def _whole(self, candidates: Candidates, first_rank: int) -> Floats:
        """Micro-batches that pass the pipeline in one piece."""
        seconds, sizes = self._trips(candidates), candidates.sizes
        through = self.evaluator.counts.sum(axis=1) @ seconds.parts + seconds.prologue + seconds.epilogue
        ranks = self.evaluator.layouts.ranks[candidates.layout]
        fewer = candidates.smaller_count
        out = np.zeros((3, len(candidates)))
        if self.decode:
            parted = np.abs(seconds.send[1] - seconds.send[0]) + np.abs(seconds.back[1] - seconds.back[0])
            messages = np.maximum(candidates.pp, candidates.microbatches) * (candidates.pp > 1)
            out[2] = messages * parted[sizes.larger]
        for pp, group in by_stages(candidates.pp, STAGES_SEEN):
            table = self._crosses(pp, first_rank)
            for mine, mixed in ((group[fewer[group] == 0], False), (group[fewer[group] > 0], True)):
                if not len(mine):
                    continue
                trip_rows = [sizes.larger[mine]]
                if mixed:
                    trip_rows.append(sizes.smaller[np.searchsorted(sizes.mixed, mine)])
                counts = candidates.larger_count[mine], fewer[mine]
                if mixed and not self.decode:
                    larger, smaller = (self._in_order(seconds, rows, pp, table[ranks[mine]]) for rows in trip_rows)
                    out[0, mine] = mixed_prefill_seconds(larger, smaller, *counts)
                    out[1, mine] = (counts[0] * larger + counts[1] * smaller).max(axis=0)
                    continue
                trips = [self._trip(seconds, through, rows, table, ranks[mine]) for rows in trip_rows]
                if mixed:
                    (first, times), (second, others) = trips
                    out[0, mine] = mixed_decode_seconds((first, second), (times, others), *counts)
                    out[1, mine] = (counts[0] * times + counts[1] * others).max(axis=0)
                else:
                    form = decode_seconds if self.decode else prefill_seconds
                    out[0, mine] = form(*trips[0], counts[0])
                    out[1, mine] = counts[0] * trips[0][1].max(axis=0)
        return out

    def _trips(self, candidates: Candidates) -> Seconds:
        """Seconds of distinct micro-batches."""
        if self._last is None or self._last[0] is not candidates:
            layout, batch = candidates.sizes.layout, candidates.sizes.batch
            new = np.full_like(batch, 1 if self.decode else self.evaluator.prompt)
            past = np.full_like(batch, self.context - 1 if self.decode else 0)
            yes = np.ones(len(batch), dtype=bool)
            self._last = candidates, self.evaluator.seconds(layout, batch, new, past, yes, yes)
        return self._last[1]

    def _crosses(self, pp: int, first_rank: int) -> NDArray[np.bool_]:
        """[ranks of a stage, pp] which messages leave their domain; see :func:`.stages.crossings`."""
        ranks = np.arange(int(self.evaluator.layouts.ranks.max(initial=0)) + 1)
        if pp == 1:
            return np.zeros((len(ranks), 1), dtype=bool)
        return crossings(ranks, pp, first_rank, self.evaluator.hardware.domain)

    def _stage_seconds(self, seconds: Seconds, pp: int) -> Floats:
        """[kinds, rows] seconds of each kind of stage."""
        kinds = self.pipelines[pp].summed(seconds.parts)
        kinds[0] += seconds.prologue
        kinds[-1] += seconds.epilogue
        return kinds

    def _trip(
        self, seconds: Seconds, through: Floats, rows: Ints, crosses: NDArray[np.bool_], ranks: Ints
    ) -> tuple[Floats, Floats]:
        """Sum over all servers, and the seconds of those that differ; ``crosses`` by ranks of a stage."""
        pp, here = crosses.shape[1], seconds.at(rows)
        stages = self._stage_seconds(here, pp)
        if pp == 1:
            return stages[0], stages
        outside = np.count_nonzero(crosses[:, :-1], axis=1)[ranks]
        near, far = here.send
        total = through[rows] + (pp - 1 - outside) * near + outside * far
        messages = [np.where(outside < pp - 1, near, 0.0), np.where(outside > 0, far, 0.0)]
        if self.decode:
            messages.append(np.where(crosses[ranks, -1], here.back[1], here.back[0]))
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

    def _chunked(self, candidates: Candidates, first_rank: int) -> Floats:
        """Micro-batches in chunks: every chunk of every distinct micro-batch is a row."""
        prompt, count = self.evaluator.prompt, len(candidates)
        sizes = np.concatenate([candidates.larger, candidates.smaller])
        steps = np.concatenate([candidates.steps(s, prompt) for s in (candidates.larger, candidates.smaller)])
        (layout, size, step), which = distinct_rows(np.concatenate([candidates.layout] * 2), sizes, steps)
        chunks = -(-prompt // step)
        start = np.cumsum(chunks) - chunks
        micro = np.repeat(np.arange(len(step)), chunks)
        number = np.arange(len(micro)) - start[micro]
        past = number * step[micro]
        new = np.minimum(step[micro], prompt - past)
        context = self.evaluator.by_context(layout[micro], size[micro], new, past)
        # But for their context, the chunks between the first and the last are alike.
        place = np.where(number == 0, _FIRST, np.where(number == chunks[micro] - 1, _LAST, _BETWEEN))
        (some, at), alike = distinct_rows(micro, place)
        rest = prompt - (chunks[some] - 1) * step[some]
        tokens = self.evaluator.by_tokens(
            layout[some], size[some], np.where(at == _LAST, rest, np.minimum(step[some], prompt)),
            at == _FIRST, (at == _LAST) | (chunks[some] == 1),
        )  # fmt: skip
        which = which.reshape(2, count)
        counts = np.stack([candidates.larger_count, candidates.smaller_count])
        items = (counts * chunks[which]).sum(axis=0)
        out = np.zeros((3, count))
        order = np.argsort(items, kind="stable")
        for pp, place in by_stages(candidates.pp[order], STAGES_SEEN):
            mine = order[place]
            (used,), of = distinct_rows(which[:, mine].reshape(-1))
            each = chunks[used]
            begin = np.cumsum(each) - each
            rows = np.arange(int(each.sum())) + np.repeat(start[used] - begin, each)
            ranks = self.evaluator.layouts.ranks[layout[micro[rows]]]
            seconds = tokens.at(alike[rows])
            seconds = replace(seconds, parts=seconds.parts + context[:, rows])
            times, servers = self._distinct_servers(seconds, ranks, pp, first_rank)
            of = of.reshape(2, -1)
            passed = _passed(begin[of], each[of], counts[:, mine], int(items[mine[-1]]))
            out[0, mine] = chunked_seconds(times, servers, passed, items[mine])
            whole = np.add.reduceat(times, begin, axis=1)
            out[1, mine] = (counts[0, mine] * whole[:, of[0]] + counts[1, mine] * whole[:, of[1]]).max(axis=0)
        return out

    def _distinct_servers(self, seconds: Seconds, ranks: Ints, pp: int, first_rank: int) -> tuple[Floats, list[int]]:
        """Seconds of the servers that differ, and which of them each server is, in order."""
        stages = self.pipelines[pp]
        times = self._stage_seconds(seconds, pp)
        if pp == 1:
            return times, [0]
        table = self._crosses(pp, first_rank)[:, :-1].T
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
