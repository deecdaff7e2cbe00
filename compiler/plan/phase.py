"""All strategies of one phase with their latency and memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...passes.validation import balanced
from ..cost import Hardware
from ..spec import ModelSpec
from .evaluate import Evaluator
from .layouts import Layouts
from .rows import Bytes, Seconds, distinct_rows
from .schedule import chunked_seconds, decode_seconds, prefill_seconds, servers
from .space import Candidates

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CELLS_AT_ONCE = 1 << 22
"""Cells of a table (strategies x items x servers) worked on together."""


@dataclass(frozen=True)
class Needs:
    """Bytes of the fullest GPU, per strategy.

    Attributes:
        total: Weights, cache, activations and buffers.
        with_transfer: The same where the cache moves to other GPUs or another layout.
        weights: Weights of the stage that has most of them.
        longest: What must fit at least: the total, with the cache of the longest sequence alone where that is more.
    """

    total: Floats
    with_transfer: Floats
    weights: Floats
    longest: Floats

    def __getitem__(self, index: Any) -> Self:
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    def joined(self, other: Needs) -> Needs:
        """These, then the others."""
        return Needs(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


class PhaseCosts:
    """Costs of candidates of one phase.

    Args:
        evaluator: Costs of blocks.
        context: Tokens per sequence of decode's first costed step; in prefill not used.
    """

    def __init__(self, evaluator: Evaluator, context: int) -> None:
        self.evaluator = evaluator
        self.context = context
        self._weights = evaluator.weights()
        self._counts: dict[int, Ints] = {}
        self._last: tuple[Candidates, Seconds] | None = None

    @property
    def model(self) -> ModelSpec:
        return self.evaluator.model

    @property
    def hardware(self) -> Hardware:
        return self.evaluator.hardware

    @property
    def layouts(self) -> Layouts:
        return self.evaluator.layouts

    @property
    def prompt(self) -> int:
        return self.evaluator.prompt

    def _stage_counts(self, pp: int) -> Ints:
        """[parts, stages] how often each stage has each part."""
        if pp not in self._counts:
            starts = np.concatenate([[0], np.cumsum(balanced(self.model, pp))[:-1]])
            self._counts[pp] = np.add.reduceat(self.evaluator.counts, starts, axis=1)
        return self._counts[pp]

    # --- memory -----------------------------------------------------------------------------------------------------

    def weights(self, layout: Ints, pp: int) -> Floats:
        """[rows, stages] bytes of weights."""
        parts, ends = self._weights
        held = parts[:, layout].T @ self._stage_counts(pp)
        several = int(pp > 1)
        held[:, 0] += ends[0, several, layout]
        held[:, -1] += ends[1, several, layout]
        return np.asarray(held)

    def least(self, candidates: Candidates, kept: int) -> Floats:
        """Bytes of weights and cache alone, which are quickly known."""
        out = np.zeros(len(candidates))
        held, cache = self._caches(candidates, (kept,))
        for pp, mine in _groups(candidates.pp):
            for piece in _pieces(mine, pp):
                weights = self.weights(candidates.layout[piece], pp)
                parts = sum(held[i, piece] * cache[0][i][:, piece] for i in (0, 1))
                out[piece] = (weights + np.asarray(parts).T @ self._stage_counts(pp)).max(axis=1)
        return out

    def needs(
        self, candidates: Candidates, kept: Sequence[int], longest: int | None = None, times: Sequence[Any] = ()
    ) -> list[Needs]:
        """Memory of every candidate, for each number of tokens per sequence that the cache may have to hold.

        Args:
            candidates: Strategies of a replica.
            kept: Tokens per sequence.
            longest: Tokens of the longest sequence, where a range is given.
            times: For each of ``kept``, how often the caches of the candidates' sequences lie there: a number, or one
                for each candidate; default once.
        """
        repeated = [np.broadcast_to(t, len(candidates)) for t in times or [1] * len(kept)]
        held, cache = self._caches(candidates, (*kept, *([longest] if longest is not None else [])))
        working, which = self._working(candidates)
        count = len(candidates)
        results = [Needs(*(np.zeros(count) for _ in fields(Needs))) for _ in kept]
        sizes = np.stack([candidates.larger, candidates.smaller])
        sequences = (held * -(-sizes // self.layouts.adp[candidates.layout])).sum(axis=0)
        for pp, group in _groups(candidates.pp):
            counts = self._stage_counts(pp)
            for mine in _pieces(group, 4 * pp * len(counts)):
                weights = self.weights(candidates.layout[mine], pp)
                caches = [
                    np.asarray(sum(held[i, mine] * each[i][:, mine] for i in (0, 1)), dtype=np.float64).T @ counts
                    for each in cache
                ]
                fixed, moving = self._stage_bytes(working, which[mine], counts, weights)
                for number, out in enumerate(results):
                    cached = caches[number] * repeated[number][mine, None]
                    full = fixed + cached
                    out.total[mine] = out.longest[mine] = full.max(axis=1)
                    out.with_transfer[mine] = (moving + cached).max(axis=1)
                    out.weights[mine] = weights.max(axis=1)
                    if longest is not None:
                        one = _at_fullest(fixed + caches[-1], caches[-1]) / np.maximum(1, sequences[mine])
                        left = full.max(axis=1) - _at_fullest(full, cached)
                        out.longest[mine] = np.maximum(full.max(axis=1), left + one)
        return results

    def _caches(self, candidates: Candidates, kept: Sequence[int]) -> tuple[Ints, list[tuple[Floats, Floats]]]:
        """Micro-batches of the larger and the smaller size [2, rows], and what one of each keeps ([parts, rows])."""
        held = np.stack([candidates.larger_count, candidates.smaller_count])
        sizes = np.concatenate([candidates.larger, candidates.smaller])
        (layout, batch), where = distinct_rows(np.concatenate([candidates.layout] * 2), sizes)
        cache = [self.evaluator.cache(layout, batch, tokens) for tokens in kept]
        larger, smaller = where[: len(candidates)], where[len(candidates) :]
        return held, [(each[:, larger], each[:, smaller]) for each in cache]

    def _stage_bytes(self, working: Bytes, rows: Ints, counts: Ints, weights: Floats) -> tuple[Floats, Floats]:
        """[rows, stages] bytes without cache: as they are, and where the cache moves."""
        several = int(counts.shape[1] > 1)
        has = (counts > 0)[:, None, :]
        kinds = []
        for kind, values in enumerate((working.activations, working.buffers)):
            most = np.where(has, values[:, rows, None], 0.0).max(axis=0)
            most[:, 0] = np.maximum(most[:, 0], working.ends[0, kind, several, rows])
            most[:, -1] = np.maximum(most[:, -1], working.ends[1, kind, several, rows])
            kinds.append(np.maximum(most, working.boundary[kind, rows, None]) if several else most)
        sending = np.where(has, working.transfer[:, rows, None], 0.0).max(axis=0)
        return weights + kinds[0] + kinds[1], weights + kinds[0] + np.maximum(kinds[1], sending)

    def _working(self, candidates: Candidates) -> tuple[Bytes, Ints]:
        """Activations and buffers of distinct micro-batches, and which each candidate has."""
        steps = [candidates.steps(size, self.prompt) for size in (candidates.larger, candidates.smaller)]
        if self.evaluator.phase == "decode":
            steps = [np.ones_like(s) for s in steps]
        # Where its chunks are not longer either, the smaller micro-batch is smaller in every way.
        small = (steps[1] <= steps[0]) | (candidates.smaller == candidates.larger) | (candidates.smaller_count == 0)
        smaller = np.where(small, candidates.larger, candidates.smaller)
        distinct, which = distinct_rows(
            candidates.layout, candidates.larger, smaller, steps[0], np.where(small, steps[0], steps[1])
        )
        layout, *rest = distinct
        batch, new = np.stack(rest[:2]), np.stack(rest[2:])
        context = np.full_like(batch, self.context if self.evaluator.phase == "decode" else self.prompt)
        alike = batch[0] == batch[1]
        parts = []
        for rows, items in ((np.flatnonzero(alike), slice(0, 1)), (np.flatnonzero(~alike), slice(0, 2))):
            if len(rows):
                parts.append(
                    (rows, self.evaluator.working(layout[rows], *(a[items, rows] for a in (batch, new, context))))
                )
        if len(parts) == 1:
            return parts[0][1], which
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        joined = (np.concatenate([getattr(b, f.name) for _, b in parts], axis=-1)[..., order] for f in fields(Bytes))
        return Bytes(*joined), which

    # --- latency ----------------------------------------------------------------------------------------------------

    def seconds(self, candidates: Candidates, first_rank: int = 0) -> Floats:
        """[3, candidates] seconds, see below.

        TTFT (prefill) or TPOT (decode); those of the slowest stage or send, all items together; by how much the
        former may change with the first rank at most (decode).

        Args:
            candidates: Strategies of a replica.
            first_rank: Number of the phase's first GPU, which decides what crosses domains.
        """
        out = np.zeros((3, len(candidates)))
        plain = candidates.chunk == 0
        if plain.all():
            return self._whole(candidates, first_rank)
        for subset, run in ((np.flatnonzero(plain), self._whole), (np.flatnonzero(~plain), self._chunked)):
            if len(subset):
                out[:, subset] = run(candidates[subset], first_rank)
        return out

    def transfer(self, candidates: Candidates) -> Floats:
        """Seconds that the busiest stage's ranks send the caches of a replica's batch: all that they hold; prefill."""
        out = np.zeros(len(candidates))
        if self.evaluator.phase == "decode" or not len(candidates):
            return out
        sizes = np.concatenate([candidates.larger, candidates.smaller])
        (layout, batch), where = distinct_rows(np.concatenate([candidates.layout] * 2), sizes)
        each = self.evaluator.sending(layout, batch)
        larger, smaller = where.reshape(2, -1)
        for pp, group in _groups(candidates.pp):
            for mine in _pieces(group, pp):
                parts = candidates.larger_count[mine] * each[:, larger[mine]]
                parts = parts + candidates.smaller_count[mine] * each[:, smaller[mine]]
                out[mine] = (parts.T @ self._stage_counts(pp)).max(axis=1)
        return out

    def _whole(self, candidates: Candidates, first_rank: int) -> Floats:
        """Micro-batches that pass the pipeline in one piece."""
        count = len(candidates)
        sizes = np.concatenate([candidates.larger, candidates.smaller])
        (layout, batch), where = distinct_rows(np.concatenate([candidates.layout] * 2), sizes)
        decode = self.evaluator.phase == "decode"
        new = np.full_like(batch, 1 if decode else self.prompt)
        past = np.full_like(batch, self.context - 1 if decode else 0)
        yes = np.ones(len(batch), dtype=bool)
        if self._last is None or self._last[0] is not candidates:
            self._last = candidates, self.evaluator.seconds(layout, batch, new, past, yes, yes)
        seconds = self._last[1]
        out = np.zeros((3, count))
        parted = np.abs(seconds.send[1] - seconds.send[0]) + np.abs(seconds.back[1] - seconds.back[0])
        out[2] = np.maximum(candidates.pp, candidates.microbatches) * parted[where[:count]] * (candidates.pp > 1)
        for pp, group in _groups(candidates.pp):
            for mine in _pieces(group, 2 * pp):
                larger = self._servers(seconds, where[mine], candidates.layout[mine], pp, first_rank)
                fewer = candidates.smaller_count[mine]
                smaller = larger
                if (fewer > 0).any():
                    smaller = self._servers(seconds, where[count + mine], candidates.layout[mine], pp, first_rank)
                form = decode_seconds if decode else prefill_seconds
                out[0, mine] = form(larger, smaller, candidates.larger_count[mine], fewer)
                busy = candidates.larger_count[mine, None] * larger + fewer[:, None] * smaller
                out[1, mine] = busy.max(axis=1)
        return out

    def _chunked(self, candidates: Candidates, first_rank: int) -> Floats:
        """Micro-batches in chunks: every chunk of every distinct micro-batch is a row."""
        count = len(candidates)
        sizes = np.concatenate([candidates.larger, candidates.smaller])
        steps = np.concatenate([candidates.steps(s, self.prompt) for s in (candidates.larger, candidates.smaller)])
        (layout, size, step), which = distinct_rows(np.concatenate([candidates.layout] * 2), sizes, steps)
        chunks = -(-self.prompt // step)
        start = np.cumsum(chunks) - chunks
        number = np.arange(int(chunks.sum())) - np.repeat(start, chunks)
        past = number * np.repeat(step, chunks)
        new = np.minimum(np.repeat(step, chunks), self.prompt - past)
        seconds = self.evaluator.seconds(
            np.repeat(layout, chunks), np.repeat(size, chunks), new, past, number == 0, past + new >= self.prompt
        )
        first, each = (a[which].reshape(2, count) for a in (start, chunks))
        whole = candidates.larger_count * each[0]
        items = whole + candidates.smaller_count * each[1]
        out = np.zeros((3, count))
        for pp, group in _groups(candidates.pp):
            group = group[np.argsort(items[group], kind="stable")]
            for mine in _pieces(group, 2 * pp * int(items[group].max())):
                item = np.arange(int(items[mine].max()))
                larger = item < whole[mine, None]
                begin, period = (np.where(larger, a[0, mine, None], a[1, mine, None]) for a in (first, each))
                rows = begin + np.where(larger, item, item - whole[mine, None]) % period
                layouts = np.repeat(candidates.layout[mine], len(item))
                times = self._servers(seconds, rows.reshape(-1), layouts, pp, first_rank)
                times = times.reshape(*rows.shape, -1)
                times[item >= items[mine, None]] = 0.0
                out[0, mine] = chunked_seconds(times)
                out[1, mine] = times.sum(axis=1).max(axis=1)
        return out

    def _servers(self, seconds: Seconds, rows: Ints, layout: Ints, pp: int, first_rank: int) -> Floats:
        """[rows, servers] seconds of one item."""
        stages = seconds.parts[:, rows].T @ self._stage_counts(pp)
        stages[:, 0] += seconds.prologue[rows]
        stages[:, -1] += seconds.epilogue[rows]
        if pp == 1:
            return np.asarray(stages)
        crosses = crossings(self.layouts.ranks[layout], pp, first_rank, self.hardware.domain)
        sends = np.where(crosses[:, :-1], seconds.send[1, rows, None], seconds.send[0, rows, None])
        back = np.where(crosses[:, -1], seconds.back[1, rows], seconds.back[0, rows])
        return servers(stages, sends, back if self.evaluator.phase == "decode" else None)


def crossings(ranks: Ints, pp: int, first_rank: int, domain: int) -> NDArray[np.bool_]:
    """[rows, pp]: whether the message of each stage to the next, and last the token return, leaves its domain.

    Stage s holds the ranks from ``first_rank + s * ranks`` on, and each sends to its partner so many ranks further.
    Some pair is parted iff a domain begins behind the first sender and not behind the last receiver.

    Args:
        ranks: Ranks of a stage.
        pp: Stages, at least two.
        first_rank: Number of the first GPU.
        domain: GPUs of a scale-up domain.
    """
    senders = np.append(np.arange(pp - 1), 0)
    ends = np.append(np.arange(2, pp + 1), pp)
    first = first_rank + ranks[:, None] * senders
    last = first_rank + ranks[:, None] * ends - 1
    return np.asarray(first // domain != last // domain)


def _at_fullest(total: Floats, share: Floats) -> Floats:
    """The share of the stage with the largest total, per row."""
    return np.asarray(np.take_along_axis(share, total.argmax(axis=1)[:, None], 1)[:, 0])


def _groups(column: Ints) -> Iterator[tuple[int, Ints]]:
    """Values of a column, and the rows that have them."""
    if not len(column):
        return
    values, which = np.unique(column, return_inverse=True)
    order = np.argsort(which.reshape(-1), kind="stable")
    bounds = np.searchsorted(column[order], values)
    yield from zip(values.tolist(), np.split(order, bounds[1:]), strict=True)


def _pieces(rows: Ints, cells: int) -> Iterator[Ints]:
    """The rows in pieces of a bounded number of cells."""
    step = max(1, CELLS_AT_ONCE // cells)
    for low in range(0, len(rows), step):
        yield rows[low : low + step]
