"""The KV cache from where it was made to the ranks that decode.

Decode ranks take what they are entitled to: the rows of their own sequences and heads, and of a layer with a window the
tokens of that window. What nobody gave stays NaN, so that whoever reads it spoils the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..ir.graph import Block, Graph
from ..ir.ops import ATTENTION_OPS
from ..ir.types import chunk_bounds
from ..spec.dtypes import dtype
from .executor import Executor
from .positions import cache_axes
from .shards import coordinates, local_slices
from .store import Ref

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """A part of a layer's cache.

    Attributes:
        device: Who holds it, None for the undistributed reference.
        sequences: Numbers of its sequences in the batch.
        positions: Positions of its rows.
        inner: What it holds of the other dimensions.
        item: Pipeline item that made it.
        data: [sequences, positions, ...].
    """

    device: int | None
    sequences: Ints
    positions: Ints
    inner: tuple[slice, ...]
    item: int
    data: np.ndarray


@dataclass(frozen=True)
class Fetch:
    """A part of a layer's cache that a rank takes from what prefill left.

    Attributes:
        source: Device that holds it.
        device: Device that takes it, which may be the same.
        layer: Layer.
        given: Item of prefill in whose cache it lies.
        item: Item of decode to whose cache it goes.
        out_of: Where it lies in the one cache.
        into: Where it goes to in the other.
        fresh: Which of these elements are taken; others came from elsewhere.
    """

    source: int
    device: int
    layer: int
    given: int
    item: int
    out_of: tuple[Ints, ...]
    into: tuple[Ints, ...]
    fresh: NDArray[np.bool_]


@dataclass
class Handover:
    """Caches by (device, layer, item) of decode, and what moved to fill them.

    Attributes:
        caches: The caches.
        moved: Bytes that came from another device.
        fetches: What was taken from where, unless the reference gave it.
    """

    caches: dict[tuple[int, int, int], np.ndarray]
    moved: float = 0.0
    fetches: list[Fetch] = field(default_factory=list)


# --- who decodes what -------------------------------------------------------------------------------------------------


def in_order(graph: Graph) -> dict[int, Ints]:
    """Sequences of each item, numbered micro-batch by micro-batch."""
    seats: dict[int, Ints] = {}
    starts: dict[int, int] = {}
    count = 0
    for number, item in enumerate(graph.items):
        if item.microbatch not in starts:
            starts[item.microbatch] = count
            count += item.batch
        seats[number] = np.arange(starts[item.microbatch], starts[item.microbatch] + item.batch)
    return seats


def staying(prefill: Graph, decode: Graph) -> dict[int, Ints]:
    """Sequences of each decode item, each kept by the attention-DP group that prefilled it while the group has room."""
    queues = _by_group(prefill, in_order(prefill))
    seats = {number: np.full(item.batch, -1, dtype=np.int64) for number, item in enumerate(decode.items)}
    rooms = [(seats[n], low, high, g) for n in seats for g, (low, high) in enumerate(_bounds(decode, len(seats[n])))]
    for seat, low, high, group in rooms:
        taken, queues[group] = queues[group][: high - low], queues[group][high - low :]
        seat[low : low + len(taken)] = taken
    left = [s for queue in queues for s in queue]
    for seat, low, high, _ in rooms:
        for place in range(low, high):
            if seat[place] < 0:
                seat[place] = left.pop(0)
    return seats


def _by_group(graph: Graph, seats: dict[int, Ints]) -> list[list[int]]:
    queues: list[list[int]] = [[] for _ in range(graph.mesh.degree("adp"))]
    for number, item in enumerate(graph.items):
        if item.last:
            for group, (low, high) in enumerate(_bounds(graph, item.batch)):
                queues[group] += seats[number][low:high].tolist()
    return queues


def _bounds(graph: Graph, batch: int) -> list[tuple[int, int]]:
    """Part of a batch of each attention-DP group."""
    sizes = [graph.mesh.size((a,)) for a in graph.mesh.view("adp")]
    return [chunk_bounds(batch, zip(sizes, at, strict=True)) for at in product(*map(range, sizes))]


# --- who has what -----------------------------------------------------------------------------------------------------


def pieces_of_prefill(run: Executor, *, sent: bool) -> dict[int, list[Piece]]:
    """The cache of every layer as prefill left it: what ranks hold, or only what their ``kv_send`` gave away."""
    seats = in_order(run.graph)
    pieces: dict[int, list[Piece]] = {}
    for block in run.graph.with_role("layer"):
        version = next(a for a in block.args if a.carry == "version").source
        kind = block.types[version]
        for layer in block.layers:
            stage = run.graph.stage_of_layer[layer]
            for number, item in enumerate(run.graph.items):
                if not item.last:
                    continue
                for rank, at in enumerate(run.places):
                    store = run.stores[stage][rank]
                    key = (store.device, layer, number)
                    last = Ref(block.name, version, layer, number, 0)
                    data = run.outbox.get(key) if sent else store.cached(last)
                    if data is None:
                        continue
                    batch, _, *inner = local_slices(kind, at, run.mesh, run.extents(number, 0))
                    rows = run.positions.cached(cache_axes(block), at, number, 0)
                    piece = Piece(store.device, seats[number][batch], rows, tuple(inner), number, data)
                    pieces.setdefault(layer, []).append(piece)
    return pieces


def pieces_of_reference(cache: dict[int, np.ndarray]) -> dict[int, list[Piece]]:
    """The cache of every layer, whole."""
    return {
        layer: [
            Piece(None, np.arange(data.shape[0]), np.arange(data.shape[1]),
                  tuple(slice(0, n) for n in data.shape[2:]), 0, data)
        ]
        for layer, data in cache.items()
    }  # fmt: skip


# --- who gets what ----------------------------------------------------------------------------------------------------


def hand_over(
    decode: Graph, devices: Sequence[Sequence[int]], pieces: dict[int, list[Piece]], seats: dict[int, Ints], *,
    windowed: bool
) -> Handover:  # fmt: skip
    """Fill the caches of all decode ranks.

    Args:
        decode: Lowered decode graph.
        devices: Device of every rank, by stage.
        pieces: Parts of the cache, by layer.
        seats: Sequences of each decode item.
        windowed: Whether layers with a window get the tokens of the window only.
    """
    result = Handover({})
    mesh = decode.mesh
    for block in decode.with_role("layer"):
        kind = next(a for a in block.args if a.carry == "version").value.type
        for layer, (number, item) in product(block.layers, enumerate(decode.items)):
            extents = {"batch": item.batch, "new": 1, "context": item.past + 1}
            tokens = np.arange(max(0, item.past - _window(block)) if windowed else 0, item.past)
            for rank, at in enumerate(coordinates(mesh)):
                device = devices[decode.stage_of_layer[layer]][rank]
                where = local_slices(kind, at, mesh, extents)
                cache, parts = _fill(where, device, seats[number], tokens, pieces.get(layer, []))
                result.caches[device, layer, number] = cache
                for piece, out_of, into, fresh in parts:
                    if piece.device is None:
                        continue
                    result.fetches.append(Fetch(piece.device, device, layer, piece.item, number, out_of, into, fresh))
                    if piece.device != device:
                        result.moved += int(fresh.sum()) * dtype(kind.dtype).bytes
    return result


_Part = tuple[Piece, tuple[Ints, ...], tuple[Ints, ...], NDArray[np.bool_]]
"""A piece, where in it something lies, where that goes to, and which of it is wanted still."""


def _fill(
    where: tuple[slice, ...], device: int, seats: Ints, tokens: Ints, pieces: Iterable[Piece]
) -> tuple[np.ndarray, list[_Part]]:
    """One rank's cache, and of which pieces it was made: what of each went where."""
    cache = np.full([s.stop - s.start for s in where], np.nan)
    wanted = np.zeros(cache.shape, dtype=bool)
    wanted[:, tokens - where[1].start] = True
    missing = int(wanted.sum())
    sequences = seats[where[0]]
    parts: list[_Part] = []
    for piece in sorted(pieces, key=lambda p: p.device != device):
        if not missing:
            break
        _, to_batch, from_batch = np.intersect1d(sequences, piece.sequences, return_indices=True)
        _, to_rows, from_rows = np.intersect1d(np.arange(where[1].start, where[1].stop), piece.positions,
                                               return_indices=True)  # fmt: skip
        shared = [slice(max(a.start, b.start), min(a.stop, b.stop))
                  for a, b in zip(where[2:], piece.inner, strict=True)]  # fmt: skip
        if not len(to_batch) or not len(to_rows) or any(s.start >= s.stop for s in shared):
            continue
        into = np.ix_(to_batch, to_rows, *(np.arange(s.start - w.start, s.stop - w.start)
                                           for s, w in zip(shared, where[2:], strict=True)))  # fmt: skip
        out_of = np.ix_(from_batch, from_rows, *(np.arange(s.start - p.start, s.stop - p.start)
                                                 for s, p in zip(shared, piece.inner, strict=True)))  # fmt: skip
        fresh = wanted[into]
        cache[into] = np.where(fresh, piece.data[out_of], cache[into])
        wanted[into] = False
        missing -= int(fresh.sum())
        if fresh.any():
            parts.append((piece, out_of, into, fresh))
    return cache, parts


def _window(block: Block) -> int:
    sizes = [n.attrs["window"] for n in block.nodes if n.op in ATTENTION_OPS and n.attrs.get("window")]
    return sizes[0] if sizes else 1 << 40
