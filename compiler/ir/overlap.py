"""The edge map of KV transfers: which rank of one layout takes which elements from which rank of another.

A cache ``[batch, context, ...]`` lies in two layouts, the one that prefill leaves and the one that decode wants. Along
every dimension each layout cuts it into disjoint pieces: sequences and heads into nested ceiling chunks, the context
into *sets* of tokens, since a zig-zag order or chunked prefill interleaves them. Two ranks overlap in the product of
what their pieces share. Several ranks may hold the same piece; every element goes to each rank that wants it from
exactly one of them: from the wanting GPU itself where it is among them, else from the holders in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .mesh import Mesh
from .token_order import token_positions
from .types import TensorType

Ints = NDArray[np.int64]

_AT_ONCE = 1 << 21
"""Entries that are worked on together; bounds the memory that a map takes while it is made."""


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that travel together, and the numbers of tokens of the chunks in which their cache was written."""

    sequences: int
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class CacheLayout:
    """How the KV cache of one layer lies on the GPUs of a phase.

    Attributes:
        kind: Type of the cache, with dimensions ``batch`` and ``context`` and any others of constant size.
        mesh: The ranks.
        stage: Stage of the layer.
        microbatches: Micro-batches of one replica. Sequences are numbered over replicas, then micro-batches, then
            attention-DP groups; those of the phase's batch come first, so the last replicas may have fewer.
        token_order: Order of the tokens of each chunk before they are cut, see :func:`token_positions`.
    """

    kind: TensorType
    mesh: Mesh
    stage: int
    microbatches: tuple[MicroBatch, ...]
    token_order: str = "contiguous"

    @property
    def shard_count(self) -> int:
        """Shards are numbered micro-batch by micro-batch, then by rank within the phase."""
        return len(self.microbatches) * self.mesh.gpus

    @property
    def sequences(self) -> int:
        """Sequences for which there is room on all replicas."""
        return self.mesh.dp * sum(m.sequences for m in self.microbatches)

    @cached_property
    def inner(self) -> tuple[str, ...]:
        """Dimensions but the batch, context first."""
        return ("context", *(n for n in self.kind.names if n not in ("batch", "context")))

    @cached_property
    def ranks(self) -> Ints:
        """[batch piece, inner piece, holder]: ranks of replica 0 within the phase, inner pieces row-major."""
        inner = [a for name in self.inner for a in self.kind.axes_of(name)]
        rest = [a.name for a in self.mesh.axes if a.name not in self.kind.placement.used]
        groups = (self.kind.axes_of("batch"), inner, rest)
        table = np.full(1, self.stage * self.mesh.pp_stride, dtype=np.int64)
        for axis in (self.mesh.axis(a) for axes in groups for a in axes):
            table = (table[:, None] + axis.stride * np.arange(axis.size)).ravel()
        return table.reshape([self.mesh.size(axes) for axes in groups])

    def batch_runs(self, sequences: int) -> Ints:
        """[run, 5]: first and past-the-last sequence, replica, micro-batch and batch piece; no run is empty."""
        sizes = [self.mesh.size((a,)) for a in self.kind.axes_of("batch")]
        rows, start = [], 0
        for replica in range(self.mesh.dp):
            for number, microbatch in enumerate(self.microbatches):
                bounds = np.minimum(start + chunk_table(microbatch.sequences, sizes), sequences)
                pieces = np.arange(len(bounds))
                columns = (bounds[:, 0], bounds[:, 1], replica + 0 * pieces, number + 0 * pieces, pieces)
                rows.append(np.stack(columns, axis=1))
                start += microbatch.sequences
        table = np.concatenate(rows)
        return table[table[:, 0] < table[:, 1]]

    def token_pieces(self, chunks: Sequence[int]) -> Ints:
        """Which context piece holds each token."""
        axes = self.kind.axes_of("context")
        sizes = [self.mesh.size((a,)) for a in axes]
        sp = self.mesh.degree("sp")
        pieces = []
        for new in chunks:
            bounds = chunk_table(new, sizes)
            held = np.empty(new, dtype=np.int64)
            held[token_positions(self.token_order, new, sp)] = np.repeat(np.arange(len(bounds)), np.diff(bounds)[:, 0])
            pieces.append(held)
        return np.concatenate(pieces)


def chunk_table(size: int, parts: Sequence[int]) -> Ints:
    """[pieces, 2]: bounds of all nested ceiling chunks of a dimension, row-major over the axes that cut it."""
    low, high = np.zeros(1, dtype=np.int64), np.full(1, size, dtype=np.int64)
    for count in parts:
        step = -(-(high - low) // count)
        starts = np.minimum(high[:, None], low[:, None] + step[:, None] * np.arange(count))
        high = np.minimum(high[:, None], starts + step[:, None]).ravel()
        low = starts.ravel()
    return np.stack([low, high], axis=1)


@dataclass(frozen=True)
class Overlap:
    """Elements that go from shard to shard, as CSR by source shard, targets ascending. A GPU's own are among them.

    Attributes:
        have: Layout of the sources.
        want: Layout of the targets.
        indptr: Where the entries of each source shard begin; one more than there are source shards.
        targets: Target shard of each entry.
        elements: Elements of each entry.
    """

    have: CacheLayout
    want: CacheLayout
    indptr: Ints
    targets: Ints
    elements: Ints

    @cached_property
    def sources(self) -> Ints:
        """Source shard of each entry."""
        return np.repeat(np.arange(self.have.shard_count), np.diff(self.indptr))

    @cached_property
    def source_devices(self) -> Ints:
        """Global rank that each entry leaves."""
        return self.have.mesh.first_rank + self.sources % self.have.mesh.gpus

    @cached_property
    def target_devices(self) -> Ints:
        """Global rank at which each entry arrives."""
        return self.want.mesh.first_rank + self.targets % self.want.mesh.gpus

    @cached_property
    def source_microbatches(self) -> Ints:
        return self.sources // self.have.mesh.gpus

    @cached_property
    def moved(self) -> Ints:
        """Elements of each entry that travel: none where they already lie on the GPU that wants them."""
        return np.where(self.source_devices == self.target_devices, 0, self.elements)

    def crosses(self, domain: int) -> NDArray[np.bool_]:
        """Whether each entry leaves its scale-up domain of so many GPUs."""
        return np.not_equal(self.source_devices // domain, self.target_devices // domain)

    @cached_property
    def by_target(self) -> tuple[Ints, Ints]:
        """(indptr over target shards, entries in their order)."""
        order = np.argsort(self.targets, kind="stable")
        return np.searchsorted(self.targets[order], np.arange(self.want.shard_count + 1)), order

    def entries_from(self, shards: Ints) -> Ints:
        """Entries that leave the given source shards."""
        return _ranges(self.indptr[shards], self.indptr[shards + 1])

    def entries_to(self, shards: Ints) -> Ints:
        """Entries that arrive at the given target shards."""
        indptr, order = self.by_target
        return order[_ranges(indptr[shards], indptr[shards + 1])]


def _ranges(starts: Ints, stops: Ints) -> Ints:
    lengths = stops - starts
    return np.repeat(starts, lengths) + _within(lengths)


def _within(lengths: Ints) -> Ints:
    """0, 1, 2 ... within each of consecutive groups of the given lengths."""
    numbers: Ints = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return numbers


def overlap(have: CacheLayout, want: CacheLayout, tokens: range, sequences: int | None = None) -> Overlap:
    """Who takes what from whom.

    Args:
        have: Layout that holds the cache.
        want: Layout that takes it.
        tokens: Positions that are wanted (a sliding layer wants its window only).
        sequences: Sequences of the batch; default as many as both layouts have room for.

    Raises:
        ValueError: the two are not caches of the same dimensions.
    """
    if have.inner != want.inner:
        raise ValueError(f"caches of dimensions {have.kind.names} and {want.kind.names}")
    room = min(have.sequences, want.sequences)
    runs = _meet(have, want, room if sequences is None else min(sequences, room))
    have_shapes, want_shapes = _shapes(have), _shapes(want)
    shapes = have_shapes[1][runs[:, 3]] * len(want_shapes[0]) + want_shapes[1][runs[:, 6]]
    parts = [np.zeros((3, 0), dtype=np.int64)]
    for shape in np.unique(shapes).tolist():
        before, after = divmod(shape, len(want_shapes[0]))
        shared = _shared_pieces(have, want, have_shapes[0][before], want_shapes[0][after], tokens)
        mine = runs[shapes == shape]
        at_once = max(1, _AT_ONCE // max(1, len(shared[0]) * want.ranks.shape[2] * have.ranks.shape[2]))
        for low in range(0, len(mine), at_once):
            parts.append(_merged(_entries(have, want, mine[low : low + at_once], *shared)))
    source, target, elements = _merged(np.concatenate(parts, axis=1))
    indptr = np.searchsorted(source, np.arange(have.shard_count + 1))
    return Overlap(have, want, indptr, target, elements)


def _shapes(layout: CacheLayout) -> tuple[list[tuple[int, ...]], Ints]:
    """The distinct ways in which the context was written, and which one each micro-batch has."""
    distinct = list(dict.fromkeys(m.chunks for m in layout.microbatches))
    return distinct, np.array([distinct.index(m.chunks) for m in layout.microbatches], dtype=np.int64)


def _meet(have: CacheLayout, want: CacheLayout, sequences: int) -> Ints:
    """[run, 8]: runs of sequences that lie in one batch piece of either layout.

    Columns: first sequence, length, then replica, micro-batch and batch piece of the source, the same of the target.
    """
    left, right = have.batch_runs(sequences), want.batch_runs(sequences)
    cuts = np.unique(np.concatenate([left[:, :2].ravel(), right[:, :2].ravel()]))
    first, length = cuts[:-1], np.diff(cuts)
    from_unit = np.searchsorted(left[:, 0], first, side="right") - 1
    to_unit = np.searchsorted(right[:, 0], first, side="right") - 1
    return np.column_stack([first, length, left[from_unit, 2:], right[to_unit, 2:]])


def _shared_pieces(
    have: CacheLayout, want: CacheLayout, have_chunks: Sequence[int], want_chunks: Sequence[int], tokens: range
) -> tuple[Ints, Ints, Ints]:
    """(source inner piece, target inner piece, elements per sequence) of all pairs that share any."""
    shared = _shared_tokens(have, want, have_chunks, want_chunks, tokens)
    for name in have.inner[1:]:
        shared = np.kron(shared, _shared_chunks(have, want, name))
    source, target = np.nonzero(shared)
    return source, target, shared[source, target]


def _shared_tokens(
    have: CacheLayout, want: CacheLayout, have_chunks: Sequence[int], want_chunks: Sequence[int], tokens: range
) -> Ints:
    """[source piece, target piece]: tokens in common."""
    rows, columns = (side.mesh.size(side.kind.axes_of("context")) for side in (have, want))
    if rows == columns == 1:
        return np.full((1, 1), len(tokens), dtype=np.int64)
    both = have.token_pieces(have_chunks) * columns + want.token_pieces(want_chunks)
    return np.bincount(both[tokens.start : tokens.stop], minlength=rows * columns).reshape(rows, columns)


def _shared_chunks(have: CacheLayout, want: CacheLayout, name: str) -> Ints:
    """[source piece, target piece]: indices in common along a dimension of constant size."""
    tables = []
    for side in (have, want):
        size = side.kind.dims[side.kind.index(name)].size
        if not isinstance(size, int):
            raise ValueError(f"the size of {name} is no constant")
        tables.append(chunk_table(size, [side.mesh.size((a,)) for a in side.kind.axes_of(name)]))
    left, right = tables
    low = np.maximum(left[:, None, 0], right[None, :, 0])
    high = np.minimum(left[:, None, 1], right[None, :, 1])
    shared: Ints = np.maximum(high - low, 0)
    return shared


def _entries(have: CacheLayout, want: CacheLayout, runs: Ints, source: Ints, target: Ints, volume: Ints) -> Ints:
    """[3, entries]: source shard, target shard and elements, of runs whose pieces share the same.

    Rows are (run, source piece, target piece, wanting rank). Within a run and source piece the wanting ranks that lack
    the piece are numbered j = 0 .. k-1; sequence s reaches the j-th from holder (s k + j) mod n, so that the n holders
    take turns, and the turns go on from one run to the next.
    """
    holders, wanting = have.ranks.shape[2], want.ranks.shape[2]
    run = np.repeat(np.arange(len(runs)), len(source) * wanting)
    pair = np.tile(np.repeat(np.arange(len(source)), wanting), len(runs))
    rank = np.tile(np.arange(wanting), len(runs) * len(source))
    first, length, replica, microbatch, piece, to_replica, to_microbatch, to_piece = (c[run] for c in runs.T)
    from_ranks = replica[:, None] * have.mesh.replica_ranks + have.ranks[piece, source[pair]]
    to_rank = to_replica * want.mesh.replica_ranks + want.ranks[to_piece, target[pair], rank]
    at_home = from_ranks + have.mesh.first_rank == (to_rank + want.mesh.first_rank)[:, None]
    lacking = ~at_home.any(axis=1)
    turn, turns = _number_within(lacking, run * have.ranks.shape[1] + source[pair])
    # Holders repeat after n sequences: the first n of a run stand for those that follow.
    heads = np.where(lacking, np.minimum(length, holders), 1)
    row = np.repeat(np.arange(len(run)), heads)
    ahead = _within(heads)
    holder = np.where(
        lacking[row], ((first[row] + ahead) * turns[row] + turn[row]) % holders, at_home.argmax(axis=1)[row]
    )
    count = np.where(lacking[row], -(-(length[row] - ahead) // holders), length[row])
    return np.stack([
        microbatch[row] * have.mesh.gpus + from_ranks[row, holder],
        to_microbatch[row] * want.mesh.gpus + to_rank[row],
        count * volume[pair[row]],
    ])  # fmt: skip


def _number_within(flag: NDArray[np.bool_], group: Ints) -> tuple[Ints, Ints]:
    """Number of each flagged row among those of its group, and how many the group has; groups are contiguous."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(np.append(starts, len(group)))
    before: Ints = np.cumsum(flag) - flag
    totals = np.add.reduceat(flag.astype(np.int64), starts) if len(starts) else np.zeros(0, dtype=np.int64)
    return before - np.repeat(before[starts], sizes), np.repeat(totals, sizes)


def _merged(entries: Ints) -> Ints:
    """The same sorted by source and target, one entry per pair."""
    order = np.lexsort((entries[1], entries[0]))
    source, target, elements = entries[:, order]
    fresh = np.flatnonzero((np.diff(source, prepend=-1) != 0) | (np.diff(target, prepend=-1) != 0))
    if not len(fresh):
        return entries[:, :0]
    return np.stack([source[fresh], target[fresh], np.add.reduceat(elements, fresh)])
