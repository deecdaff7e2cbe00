"""All strategies of one phase with their latency and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cost import Hardware
from ..spec import ModelSpec
from .evaluate import Evaluator
from .latency import STAGES_SEEN, Latency
from .layouts import Layouts
from .rows import Bytes, Columnar, distinct_rows
from .space import Candidates
from .stages import Pipelines, Stages, by_stages

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Needs(Columnar):
    """Bytes of the fullest GPU, per strategy.

    Attributes:
        total: Weights, cache, activations and buffers.
        with_transfer: The same where the cache moves to other GPUs or another layout.
        weights: Weights of the stage that has most of them.
        longest: What must fit at least: the total, with the cache of the longest sequence alone where that is more.
        rounds: How often the caches of the strategy's sequences fit beside all else.
        rounds_moving: The same where the cache moves to other GPUs or another layout.
    """

    total: Floats
    with_transfer: Floats
    weights: Floats
    longest: Floats
    rounds: Floats
    rounds_moving: Floats

    @cached_property
    def moving(self) -> Floats:
        """What must fit at least where the cache moves."""
        return self.longest - self.total + self.with_transfer


class PhaseCosts:
    """Costs of candidates of one phase.

    Args:
        evaluator: Costs of blocks.
        context: Tokens per sequence of decode's first costed step; in prefill not used.
    """

    def __init__(self, evaluator: Evaluator, context: int) -> None:
        self.evaluator = evaluator
        self.context = context
        self.pipelines = Pipelines(evaluator.model, evaluator.counts)
        self._latency = Latency(evaluator, self.pipelines, context)
        self._weights = evaluator.weights()
        self._held: dict[int, Floats] = {}

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

    # --- memory -----------------------------------------------------------------------------------------------------

    def weights(self, pp: int) -> Floats:
        """[kinds of stages, layouts] bytes of weights."""
        if pp not in self._held:
            parts, ends = self._weights
            held = self.pipelines[pp].summed(parts)
            held[0] += ends[0, int(pp > 1)]
            held[-1] += ends[1, int(pp > 1)]
            self._held[pp] = held
        return self._held[pp]

    def least(self, candidates: Candidates, kept: int) -> Floats:
        """Bytes of weights and cache alone, which are quickly known."""
        out = np.zeros(len(candidates))
        cache = self._caches(candidates, (kept,))[kept]
        for pp, mine in by_stages(candidates.pp, STAGES_SEEN):
            held = self.weights(pp)[:, candidates.layout[mine]]
            out[mine] = (held + self.pipelines[pp].summed(cache[:, mine])).max(axis=0)
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
        often = {k: np.broadcast_to(t, len(candidates)) for k, t in zip(kept, times or [1] * len(kept), strict=True)}
        lengths = tuple(dict.fromkeys((*kept, *([longest] if longest is not None else []))))
        caches = self._caches(candidates, lengths)
        results = {tokens: Needs(*(np.zeros(len(candidates)) for _ in fields(Needs))) for tokens in kept}
        working = Working(*self._working(candidates))
        sizes = candidates.sizes
        sequences = candidates.summed(np.ceil(sizes.batch / self.layouts.adp[sizes.layout]))
        for pp, mine in by_stages(candidates.pp, STAGES_SEEN):
            stages, layout = self.pipelines[pp], candidates.layout[mine]
            weights = self.weights(pp)[:, layout]
            fixed, moving = working.of(stages, mine)
            fixed += weights
            moving += weights
            held = {tokens: stages.summed(cache[:, mine]) for tokens, cache in caches.items()}
            for tokens, out in results.items():
                cached = held[tokens] * often[tokens][mine]
                full = fixed + cached
                out.total[mine] = out.longest[mine] = full.max(axis=0)
                out.with_transfer[mine] = (moving + cached).max(axis=0)
                out.weights[mine] = weights.max(axis=0)
                with np.errstate(divide="ignore"):
                    out.rounds[mine], out.rounds_moving[mine] = (
                        np.floor(((self.hardware.memory - own) / held[tokens]).min(axis=0)) for own in (fixed, moving)
                    )
                if longest is not None:
                    one = _at_fullest(fixed + held[longest], held[longest]) / np.maximum(1, sequences[mine])
                    left = out.total[mine] - _at_fullest(full, cached)
                    out.longest[mine] = np.maximum(out.total[mine], left + one)
        return [results[tokens] for tokens in kept]

    def _caches(self, candidates: Candidates, kept: Sequence[int]) -> dict[int, Floats]:
        """[parts, rows] bytes that one layer of each part keeps of all sequences, by tokens per sequence."""
        sizes, found = candidates.sizes, {}
        for tokens in kept:
            each = self.evaluator.cache(sizes.layout, sizes.batch, tokens)
            found[tokens] = np.zeros((len(each), len(candidates)))
            for part in np.flatnonzero(each.any(axis=1)):
                found[tokens][part] = candidates.summed(each[part])
        return found

    def _working(self, candidates: Candidates) -> tuple[Bytes, Ints]:
        """Activations and buffers of distinct micro-batches, and which each candidate has."""
        step = self._steps(candidates, candidates.larger)
        some = candidates.sizes.mixed
        longer = self._steps(candidates[some], candidates.smaller[some])
        # Where its chunks are not longer either, the smaller micro-batch is smaller in every way.
        both = some[longer > step[some]]
        alike = np.delete(np.arange(len(candidates)), both) if len(both) else np.arange(len(candidates))
        (layout, size, new), which = distinct_rows(*(c[alike] for c in (candidates.layout, candidates.larger, step)))
        first = self._working_of(layout, size[None], new[None])
        if not len(both):
            return first, which
        columns = (candidates.larger, candidates.smaller, step)
        distinct, where = distinct_rows(
            candidates.layout[both], *(c[both] for c in columns), longer[longer > step[some]]
        )
        second = self._working_of(distinct[0], np.stack(distinct[1:3]), np.stack(distinct[3:]))
        every = np.empty(len(candidates), dtype=np.int64)
        every[alike], every[both] = which, len(layout) + where
        joined = (np.concatenate([getattr(b, f.name) for b in (first, second)], axis=-1) for f in fields(Bytes))
        return Bytes(*joined), every

    def _steps(self, candidates: Candidates, sizes: Ints) -> Ints:
        """Most new tokens per sequence in a step of micro-batches of so many sequences."""
        return np.ones_like(sizes) if self.evaluator.phase == "decode" else candidates.steps(sizes, self.prompt)

    def _working_of(self, layout: Ints, batch: Ints, new: Ints) -> Bytes:
        context = np.full_like(batch, self.context if self.evaluator.phase == "decode" else self.prompt)
        return self.evaluator.working(layout, batch, new, context)

    # --- latency ----------------------------------------------------------------------------------------------------

    def seconds(self, candidates: Candidates, first_rank: Ints | None = None) -> Floats:
        """[3, candidates] seconds, see below.

        TTFT (prefill) or TPOT (decode); those of the slowest stage or send, all items together; by how much the
        former may change with the first rank at most (decode).

        Args:
            candidates: Strategies of a replica.
            first_rank: Number of the phase's first GPU for each, which decides what crosses domains; default 0.
        """
        first = np.zeros(len(candidates), dtype=np.int64) if first_rank is None else first_rank
        return self._latency.seconds(candidates, first)

    def transfer(self, candidates: Candidates) -> Floats:
        """Seconds that the busiest stage's ranks send the caches of a replica's batch: all that they hold; prefill."""
        return self._latency.transfer(candidates)


class Working:
    """Activations and buffers of stages.

    Args:
        distinct: Bytes of distinct micro-batches.
        which: The distinct micro-batch of each strategy.
    """

    def __init__(self, distinct: Bytes, which: Ints) -> None:
        self.distinct, self.which = distinct, which
        self._known: dict[tuple[tuple[int, ...], bool, bool, bool], tuple[Floats, Floats]] = {}

    def of(self, stages: Stages, mine: Ints) -> tuple[Floats, Floats]:
        """[kinds, rows] bytes: as they are, and where the cache moves."""
        rows, last = self.which[mine], stages.counts.shape[1] - 1
        kinds = [self._stage(stages.present(kind), kind == 0, kind == last, stages.several) for kind in range(last + 1)]
        return np.stack([fixed[rows] for fixed, _ in kinds]), np.stack([moving[rows] for _, moving in kinds])

    def _stage(self, parts: tuple[int, ...], first: bool, last: bool, several: bool) -> tuple[Floats, Floats]:
        """[distinct] bytes of a stage that has some parts, and perhaps the ends."""
        key = parts, first, last, several
        if key not in self._known:
            known, chosen = self.distinct, list(parts)
            activations, buffers, sending = (
                values[chosen].max(axis=0, initial=0.0) for values in (known.activations, known.buffers, known.transfer)
            )
            for end in [0] * first + [1] * last:
                activations = np.maximum(activations, known.ends[end, 0, int(several)])
                buffers = np.maximum(buffers, known.ends[end, 1, int(several)])
            if several:
                activations = np.maximum(activations, known.boundary[0])
                buffers = np.maximum(buffers, known.boundary[1])
            self._known[key] = activations + buffers, activations + np.maximum(buffers, sending)
        return self._known[key]


def _at_fullest(total: Floats, share: Floats) -> Floats:
    """The share of the stage with the largest total, per row."""
    return np.asarray(np.take_along_axis(share, total.argmax(axis=0)[None], 0)[0])
