"""What the resharding operators do to the data: a reference interpreter over per-rank arrays.

Every function works on the local arrays of one group alone, as a real collective does: the members of a group see one
another's shards and nothing else, and cut what they hold into ceiling chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from ..ir.mesh import Mesh
from ..ir.reshard import Step
from ..ir.types import chunk_bounds
from .shards import COMBINE, Shards, coordinates

Position = tuple[int, ...]
Group = Mapping[Position, np.ndarray]
"""Shards of a group of ranks, by the coordinates along the axes that the group spans."""

ROUTED = frozenset({"dispatch", "combine"})
"""Collectives that carry routed tokens: rows that no token fills do not travel."""


def is_collective(op: str) -> bool:
    """Whether the operator moves data inside groups of ranks (a local slice is the case of nothing moved)."""
    return op in _MOVES


def reshard(shards: Shards, steps: Iterable[Step], names: Sequence[str], mesh: Mesh) -> Shards:
    """The shards after a plan of :func:`paradag.compiler.ir.reshard.plan`."""
    for step in steps:
        shards = run_collective(step.op, step.attrs, shards, names, mesh)
    return shards


def run_collective(op: str, attrs: Mapping[str, Any], shards: Shards, names: Sequence[str], mesh: Mesh) -> Shards:
    """The shards after one resharding operator.

    Args:
        op: Name of the operator.
        attrs: Its attributes: ``axes`` and the dimensions it moves between.
        shards: One array per rank.
        names: Dimension names of the tensor.
        mesh: The ranks.

    Raises:
        KeyError: not a resharding operator.
    """
    move = _MOVES[op]
    sizes = tuple(mesh.size((a,)) for a in attrs["axes"])
    result = list(shards)
    for members in groups_of(mesh, attrs["axes"]):
        moved = move({at: shards[rank] for at, rank in members.items()}, sizes, attrs, names)
        for at, rank in members.items():
            result[rank] = moved[at]
    return result


def groups_of(mesh: Mesh, axes: Sequence[str]) -> list[dict[Position, int]]:
    """The rank groups of a stage that span ``axes``: ranks by their coordinates along these axes."""
    groups: dict[Position, dict[Position, int]] = {}
    for rank, at in enumerate(coordinates(mesh)):
        fixed = tuple(c for a, c in at.items() if a not in axes)
        groups.setdefault(fixed, {})[tuple(at[a] for a in axes)] = rank
    return list(groups.values())


# --- what travels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Volume:
    """Elements that the ranks of a stage send for one collective.

    Attributes:
        sent: Elements that reach another rank, all ranks; ring algorithms.
        payload: Elements in the input buffers of all ranks (of routed tokens, those of filled rows).
        even: Whether all ranks give equally much, and to everyone alike.
    """

    sent: float
    payload: float
    even: bool


def volume(op: str, attrs: Mapping[str, Any], shards: Shards, names: Sequence[str], mesh: Mesh) -> Volume:
    """What a collective over these input shards sends, counted on the arrays themselves.

    A ring all-reduce is a reduce-scatter and an all-gather of the sum: every element leaves each rank twice but for
    the rank's own chunk.
    """
    axes = attrs["axes"]
    sizes = tuple(mesh.size((a,)) for a in axes)
    sent = payload = 0.0
    even = len({s.shape for s in shards}) == 1
    for members in groups_of(mesh, axes):
        group = {at: shards[rank] for at, rank in members.items()}
        count = len(group)
        total = float(sum(_travelling(op, s) for s in group.values()))
        payload += total
        if op == "all_reduce":
            sent += 2 * total * (count - 1) / count
        elif op == "all_gather":
            sent += total * (count - 1)
        elif op == "reduce_scatter":
            sent += total * (count - 1) / count
        elif op == "ring_shift":
            sent += total
        elif op != "slice":
            kept = (part_for(shard, at, sizes, attrs, names) for at, shard in group.items())
            sent += total - float(sum(_travelling(op, k) for k in kept))
        if op == "all_to_all":
            even = even and next(iter(group.values())).shape[names.index(attrs["to"])] % count == 0
    return Volume(sent, payload, even)


def _travelling(op: str, shard: np.ndarray) -> int:
    if op not in ROUTED:
        return shard.size
    filled: int = (shard != 0).any(axis=-1).sum() * shard.shape[-1]
    return filled


def part_for(
    shard: np.ndarray, at: Position, sizes: Sequence[int], attrs: Mapping[str, Any], names: Sequence[str]
) -> np.ndarray:
    """What a rank of an all-to-all keeps to itself."""
    if isinstance(attrs["to"], str):
        return chunk(shard, names.index(attrs["to"]), at, sizes)
    for size, coordinate, dim in zip(sizes, at, attrs["to"], strict=True):
        shard = chunk(shard, names.index(dim), (coordinate,), (size,))
    return shard


# --- the moves --------------------------------------------------------------------------------------------------------


def _all_reduce(group: Group, sizes: Sequence[int], attrs: Mapping[str, Any], names: Sequence[str]) -> Group:
    return dict.fromkeys(group, _combined(group, attrs))


def _combined(group: Group, attrs: Mapping[str, Any]) -> np.ndarray:
    combine = COMBINE[attrs.get("reduction", "sum")]
    total: np.ndarray = reduce(combine, (group[at] for at in sorted(group)))
    return total


def _reduce_scatter(group: Group, sizes: Sequence[int], attrs: Mapping[str, Any], names: Sequence[str]) -> Group:
    whole, dim = _combined(group, attrs), names.index(attrs["to"])
    return {at: chunk(whole, dim, at, sizes) for at in group}


def _all_gather(group: Group, sizes: Sequence[int], attrs: Mapping[str, Any], names: Sequence[str]) -> Group:
    return dict.fromkeys(group, concatenate(group, sizes, [names.index(attrs["of"])] * len(sizes)))


def _all_to_all(group: Group, sizes: Sequence[int], attrs: Mapping[str, Any], names: Sequence[str]) -> Group:
    # Everyone cuts `to` alike, so cutting before putting together is the same as after.
    whole, to = concatenate(group, sizes, [names.index(d) for d in attrs["of"]]), names.index(attrs["to"])
    return {at: chunk(whole, to, at, sizes) for at in group}


def _combine(group: Group, sizes: Sequence[int], attrs: Mapping[str, Any], names: Sequence[str]) -> Group:
    whole = concatenate(group, sizes, [names.index(attrs["of"])] * len(sizes))
    return {at: part_for(whole, at, sizes, attrs, names) for at in group}


def _slice(group: Group, sizes: Sequence[int], attrs: Mapping[str, Any], names: Sequence[str]) -> Group:
    return {at: chunk(shard, names.index(attrs["to"]), at, sizes) for at, shard in group.items()}


def _ring_shift(group: Group, sizes: Sequence[int], attrs: Mapping[str, Any], names: Sequence[str]) -> Group:
    ring = list(product(*(range(s) for s in sizes)))
    return {at: group[ring[(place - attrs["hops"]) % len(ring)]] for place, at in enumerate(ring)}


_Move = Callable[[Group, Sequence[int], Mapping[str, Any], Sequence[str]], Group]

_MOVES: Mapping[str, _Move] = {
    "all_reduce": _all_reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "all_to_all": _all_to_all,
    "dispatch": _all_to_all,
    "combine": _combine,
    "slice": _slice,
    "ring_shift": _ring_shift,
}


def chunk(shard: np.ndarray, dim: int, at: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """The chunk of ``dim`` that belongs to the rank ``at`` of the group."""
    low, high = chunk_bounds(shard.shape[dim], zip(sizes, at, strict=True))
    return shard[(slice(None),) * dim + (slice(low, high),)]


def concatenate(pieces: Group, sizes: Sequence[int], dims: Sequence[int]) -> np.ndarray:
    """Pieces put together again, along ``dims[i]`` over the i-th axis of the group, innermost axis first."""
    current = dict(pieces)
    for depth in reversed(range(len(sizes))):
        outer: Iterator[Position] = product(*(range(s) for s in sizes[:depth]))
        current = {
            at: np.concatenate([current[(*at, i)] for i in range(sizes[depth])], axis=dims[depth]) for at in outer
        }
    return current[()]
