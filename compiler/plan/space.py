"""What is searched: layouts of a stage, and how a replica works its requests off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from ..spec import ModelSpec
from ..spec.strategy import Phase
from .layouts import ALLGATHER, MEGATRON, RING, ULYSSES, Layouts
from .rows import Columnar, distinct_rows

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def _every_rank(dp: Ints, pp: Ints, layouts: Layouts) -> Ints:
    return np.asarray(dp * pp * layouts.ranks)


@dataclass(frozen=True)
class Law:
    """The GPU-count law, over columns.

    Attributes:
        fits: Which layouts it admits, among those whose two views come out at whole numbers.
        gpus: GPUs of a phase from (dp, pp, layouts).
    """

    fits: Callable[[Layouts], Bools] = lambda layouts: np.ones(len(layouts), dtype=bool)
    gpus: Callable[[Ints, Ints, Layouts], Ints] = _every_rank

    @property
    def counts_ranks(self) -> bool:
        """Whether GPUs are the ranks of all stages and replicas, no more."""
        return self.gpus is _every_rank


@dataclass(frozen=True)
class Bounds:
    """Where the search stops. Within them nothing is left out.

    Attributes:
        microbatches: Most micro-batches of a replica. Tried are powers of two, and those times the stages.
        trips: Most trips through the pipeline of a chunked prefill.
        least_chunk: Smallest chunk, tokens.
        chunk_step: Factor from one chunk size to the next, up to the micro-batch.
    """

    microbatches: int = 128
    trips: int = 32
    least_chunk: int = 256
    chunk_step: int = 2


COARSE = Bounds(microbatches=16, trips=8, least_chunk=1024, chunk_step=4)
"""Where the batch is searched as well, or more than :data:`FINE_GPUS` GPUs are there."""

CONTINUOUS = Bounds(trips=16, least_chunk=1024, chunk_step=4)
"""Where prompts enter prefill a few at a time: a micro-batch is small already."""

FINE_GPUS = 32
"""GPUs up to which a given batch is searched in the finer bounds."""


def stage_layouts(model: ModelSpec, phase: Phase, max_ranks: int) -> Layouts:
    """All layouts of a stage of up to ``max_ranks`` ranks: R = adp * sp * tp = edp * ep * etp, with all kinds of SP.

    Decode has no SP. A dense model has no attention DP, which would be DP, and no experts' axes.
    """
    rows: list[tuple[int, ...]] = []
    for ranks in range(1, max_ranks + 1):
        experts = [(ep, etp) for ep in divisors(ranks) for etp in divisors(ranks // ep)]
        for tp in divisors(ranks):
            for sp in divisors(ranks // tp) if phase == "prefill" else (1,):
                if model.moe is None:
                    if sp * tp == ranks:
                        rows.append((ranks, sp, tp, 1, tp))
                else:
                    rows += [(ranks, sp, tp, ep, etp) for ep, etp in experts]
    table = np.array(rows, dtype=np.int64).T
    ranks, sps, tps, eps, etps = table
    plain = Layouts(ranks, sps, tps, eps, etps, np.full(table.shape[1], ALLGATHER))
    if phase == "decode":
        return plain
    own, on_tp = np.flatnonzero(plain.sp > 1), np.flatnonzero((plain.sp == 1) & (plain.tp > 1))
    every = ((ALLGATHER, np.arange(len(plain))), (MEGATRON, on_tp), (RING, own), (ULYSSES, own))
    kinds = np.repeat([kind for kind, _ in every], [len(some) for _, some in every])
    return replace(plain[np.concatenate([some for _, some in every])], kind=kinds)


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return (*small, *(number // d for d in reversed(small) if d * d != number))


@dataclass(frozen=True)
class Sizes:
    """Micro-batches that differ in layout or size, and which each strategy has.

    Attributes:
        layout: [distinct] number of the layout.
        batch: [distinct] sequences.
        larger: [strategies] which is the larger one.
        mixed: Strategies with micro-batches of two sizes.
        smaller: [mixed] which is the smaller one.
    """

    layout: Ints
    batch: Ints
    larger: Ints
    mixed: Ints
    smaller: Ints


@dataclass(frozen=True)
class Candidates(Columnar):
    """Columns, one entry per strategy of one replica.

    Attributes:
        layout: Number of the stage's layout.
        pp: Stages.
        batch: Sequences of the replica.
        microbatches: Micro-batches.
        chunk: Most new tokens per step; 0 for none.
    """

    layout: Ints
    pp: Ints
    batch: Ints
    microbatches: Ints
    chunk: Ints

    def __len__(self) -> int:
        return len(self.layout)

    @cached_property
    def larger(self) -> Ints:
        """Sequences of the larger micro-batches."""
        return -(-self.batch // self.microbatches)

    @cached_property
    def smaller(self) -> Ints:
        """Sequences of the smaller micro-batches."""
        return self.batch // self.microbatches

    @cached_property
    def larger_count(self) -> Ints:
        """Micro-batches of the larger size; all where there is one size."""
        rest = self.batch % self.microbatches
        return np.where(rest > 0, rest, self.microbatches)

    @cached_property
    def smaller_count(self) -> Ints:
        return self.microbatches - self.larger_count

    @cached_property
    def sizes(self) -> Sizes:
        """The micro-batches, those that are alike once."""
        mixed = np.flatnonzero(self.smaller_count)
        every = np.concatenate([self.layout, self.layout[mixed]]), np.concatenate([self.larger, self.smaller[mixed]])
        (layout, batch), which = distinct_rows(*every)
        return Sizes(layout, batch, which[: len(self)], mixed, which[len(self) :])

    def summed(self, each: Floats) -> Floats:
        """Sums over the micro-batches of every strategy, of figures of the distinct ones."""
        total = self.larger_count * each[self.sizes.larger]
        mixed = self.sizes.mixed
        total[mixed] += self.smaller_count[mixed] * each[self.sizes.smaller]
        return np.asarray(total)

    @cached_property
    def _shares(self) -> tuple[Ints, NDArray[np.uint8]]:
        """The different numbers of sequences of a replica, and which of them each strategy has."""
        values, which = np.unique(self.batch, return_inverse=True)
        return values, which.reshape(-1).astype(np.min_scalar_type(len(values)))

    def sharing(self, batch: int) -> Ints:
        """Numbers of the strategies whose sequences the fullest of some replicas has that share a batch."""
        share, which = self._shares
        # the fewest replicas whose fullest has that many sequences
        dp = -(-batch // share)
        return np.flatnonzero(((dp <= batch) & (-(-batch // dp) == share))[which])

    def steps(self, size: Ints, prompt: int) -> Ints:
        """New tokens per sequence and step of micro-batches of ``size`` sequences."""
        whole = (self.chunk == 0) | (size * prompt <= self.chunk)
        return np.where(whole, prompt, np.maximum(1, self.chunk // np.maximum(1, size)))


def microbatch_counts(batch: int, pp: int, most: int) -> tuple[int, ...]:
    """Numbers of micro-batches that are tried: powers of two, and the stages times those, up to batch and bound."""
    limit = min(batch, most)
    found = {base << shift for base in {1, pp} for shift in range(limit.bit_length()) if base << shift <= limit}
    return tuple(sorted(found))


def chunk_sizes(batch: int, microbatches: int, prompt: int, bounds: Bounds) -> tuple[int, ...]:
    """Chunk sizes that are tried: none (0), and the bounds' sizes below the largest micro-batch's tokens."""
    size = -(-batch // microbatches)
    found, chunk = [0], bounds.least_chunk
    while chunk < size * prompt:
        if chunk >= size and microbatches * -(-prompt // (chunk // size)) <= bounds.trips:
            found.append(chunk)
        chunk *= bounds.chunk_step
    return tuple(found)


@lru_cache(maxsize=4096)
def schedules(pp: int, batches: tuple[int, ...], phase: Phase, prompt: int, bounds: Bounds) -> Ints:
    """[3, schedules] (batch, micro-batches, chunk) of a pipeline of ``pp`` stages."""
    rows = [
        (batch, count, chunk)
        for batch in batches
        for count in microbatch_counts(batch, pp, bounds.microbatches)
        for chunk in (chunk_sizes(batch, count, prompt, bounds) if phase == "prefill" else (0,))
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 3).T


def prompt_schedules(sizes: Sequence[int], prompt: int, bounds: Bounds) -> Ints:
    """[3, schedules] (batch, micro-batches, chunk) of prompts that enter prefill as one micro-batch."""
    rows = [(size, 1, chunk) for size in sizes for chunk in chunk_sizes(size, 1, prompt, bounds)]
    return np.array(rows, dtype=np.int64).reshape(-1, 3).T


def turn_schedules(batches: Sequence[int], pp: int) -> Ints:
    """[3, schedules] (batch, micro-batches, chunk) of sequences that decode steadily on ``pp`` stages.

    As many micro-batches as stages, or twice as many: fewer take as many turns of larger ones, more cost launches.
    """
    rows = [(b, count, 0) for b in batches for count in sorted({min(b, pp), min(b, 2 * pp)})]
    return np.array(rows, dtype=np.int64).reshape(-1, 3).T
