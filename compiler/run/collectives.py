"""What the resharding operators do to the data: a reference interpreter over per-rank arrays.

Every function works on the local arrays alone, as a real collective does: the members of a group see one another's
shards and nothing else, and cut what they hold into ceiling chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from ..ir.mesh import Mesh
from ..ir.reshard import Step
from ..ir.types import chunk_bounds
from .shards import COMBINE, Shards, coordinates

Group = Mapping[tuple[int, ...], np.ndarray]
"""Shards of a group of ranks, by the coordinates along the axes that the group spans."""


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
    axes: tuple[str, ...] = attrs["axes"]
    sizes = tuple(mesh.size((a,)) for a in axes)
    move = _MOVES[op]
    others: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    for rank, at in enumerate(coordinates(mesh)):
        fixed = tuple(c for a, c in at.items() if a not in axes)
        others.setdefault(fixed, {})[tuple(at[a] for a in axes)] = rank
    result = list(shards)
    for members in others.values():
        group = {position: shards[rank] for position, rank in members.items()}
        for position, rank in members.items():
            result[rank] = move(group, position, sizes, attrs, names)
    return result


def _all_reduce(
    group: Group, at: tuple[int, ...], sizes: tuple[int, ...], attrs: Mapping[str, Any], names: Sequence[str]
) -> np.ndarray:
    combine = COMBINE[attrs.get("reduction", "sum")]
    return reduce(combine, (group[c] for c in sorted(group)))


def _reduce_scatter(
    group: Group, at: tuple[int, ...], sizes: tuple[int, ...], attrs: Mapping[str, Any], names: Sequence[str]
) -> np.ndarray:
    return _chunk(_all_reduce(group, at, sizes, attrs, names), names.index(attrs["to"]), at, sizes)


def _all_gather(
    group: Group, at: tuple[int, ...], sizes: tuple[int, ...], attrs: Mapping[str, Any], names: Sequence[str]
) -> np.ndarray:
    return _concatenate(group, sizes, [names.index(attrs["of"])] * len(sizes))


def _all_to_all(
    group: Group, at: tuple[int, ...], sizes: tuple[int, ...], attrs: Mapping[str, Any], names: Sequence[str]
) -> np.ndarray:
    to = names.index(attrs["to"])
    received = {sender: _chunk(shard, to, at, sizes) for sender, shard in group.items()}
    return _concatenate(received, sizes, [names.index(d) for d in attrs["of"]])


def _combine(
    group: Group, at: tuple[int, ...], sizes: tuple[int, ...], attrs: Mapping[str, Any], names: Sequence[str]
) -> np.ndarray:
    received = dict(group)
    for size, coordinate, dim in zip(sizes, at, attrs["to"], strict=True):
        received = {
            sender: _chunk(shard, names.index(dim), (coordinate,), (size,)) for sender, shard in received.items()
        }
    return _concatenate(received, sizes, [names.index(attrs["of"])] * len(sizes))


def _slice(
    group: Group, at: tuple[int, ...], sizes: tuple[int, ...], attrs: Mapping[str, Any], names: Sequence[str]
) -> np.ndarray:
    return _chunk(group[at], names.index(attrs["to"]), at, sizes)


_Move = Callable[[Group, tuple[int, ...], tuple[int, ...], Mapping[str, Any], Sequence[str]], np.ndarray]

_MOVES: Mapping[str, _Move] = {
    "all_reduce": _all_reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "all_to_all": _all_to_all,
    "dispatch": _all_to_all,
    "combine": _combine,
    "slice": _slice,
}


def _chunk(shard: np.ndarray, dim: int, at: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """The chunk of ``dim`` that belongs to the rank ``at`` of the group."""
    low, high = chunk_bounds(shard.shape[dim], zip(sizes, at, strict=True))
    return shard[(slice(None),) * dim + (slice(low, high),)]


def _concatenate(pieces: Group, sizes: Sequence[int], dims: Sequence[int]) -> np.ndarray:
    """Pieces put together again, along ``dims[i]`` over the i-th axis of the group, innermost axis first."""
    current = dict(pieces)
    for depth in reversed(range(len(sizes))):
        outer = product(*(range(s) for s in sizes[:depth]))
        current = {
            at: np.concatenate([current[(*at, i)] for i in range(sizes[depth])], axis=dims[depth]) for at in outer
        }
    return current[()]
