"""Global arrays to per-rank shards and back, as their placement says.

The ranks of a stage are numbered row-major over the mesh's atomic axes, in the mesh's own (logical) order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from ..ir.mesh import Mesh
from ..ir.ops.ring import merge_states
from ..ir.types import Number, TensorType, chunk_bounds

Shards = list[np.ndarray]
"""One array per rank of a stage."""

COMBINE: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum": np.add,
    "max": np.maximum,
    "lse": merge_states,
}
"""How two partial values become one, by reduction."""


class ShardFault(ValueError):
    """Shards that are not what their type says: a wrong shape, replicas that differ, elements that nobody holds."""


def coordinates(mesh: Mesh) -> list[dict[str, int]]:
    """Coordinates on every atomic axis, for every rank of a stage."""
    names = [a.name for a in mesh.axes]
    return [dict(zip(names, c, strict=True)) for c in product(*(range(a.size) for a in mesh.axes))]


def local_slices(t: TensorType, at: Mapping[str, int], mesh: Mesh, extents: Mapping[str, Number]) -> tuple[slice, ...]:
    """The part of each dimension that the rank with coordinates ``at`` holds: nested ceiling chunks."""
    slices = []
    for index, (dim, axes) in enumerate(zip(t.dims, t.placement.shards, strict=True)):
        sizes = tuple([mesh.size((a,)) for a in axes])
        held = held_by(axes, t.placement.shift_of(index), at, mesh)
        place = 0
        for axis, size in zip(axes, sizes, strict=True):
            place = place * size + held[axis]
        slices.append(_chunks(int(dim.value(extents, mesh)), sizes)[place])
    return tuple(slices)


@lru_cache(maxsize=4096)
def _chunks(size: int, parts: tuple[int, ...]) -> tuple[slice, ...]:
    """What each position on some axes of these sizes, outermost first, holds of a dimension of ``size``."""
    places = product(*map(range, parts))
    return tuple([slice(*chunk_bounds(size, zip(parts, place, strict=True))) for place in places])


def held_by(axes: Sequence[str], shift: int, at: Mapping[str, int], mesh: Mesh) -> Mapping[str, int]:
    """Coordinates of the rank whose chunk the rank at ``at`` holds after ``shift`` hops round the ring of ``axes``."""
    if not shift:
        return at
    sizes = [mesh.size((a,)) for a in axes]
    place = 0
    for axis, size in zip(axes, sizes, strict=True):
        place = place * size + at[axis]
    place = (place - shift) % mesh.size(axes)
    held = dict(at)
    for axis, size in reversed(list(zip(axes, sizes, strict=True))):
        place, held[axis] = divmod(place, size)
    return held


def cut(
    value: np.ndarray, t: TensorType, mesh: Mesh, extents: Mapping[str, Number], rng: np.random.Generator
) -> Shards:
    """Shards of a global array.

    Args:
        value: The whole, of shape ``t.global_dims``.
        t: How it lies.
        mesh: The ranks.
        extents: Sizes that depend on the item.
        rng: Draws the parts of partial values, which combine to the whole.

    Raises:
        ShardFault: the array is not of the type's shape.
    """
    shape = _global_shape(t, mesh, extents)
    if value.shape != shape:
        raise ShardFault(f"the array has shape {value.shape}, its type {shape}")
    parts: dict[tuple[int, ...], np.ndarray] = {(): value}
    for axis, reduction in t.placement.partial:
        parts = {
            (*at, i): part
            for at, whole in parts.items()
            for i, part in enumerate(_split(whole, mesh.size((axis,)), reduction, rng))
        }
    return [
        parts[tuple(at[a] for a, _ in t.placement.partial)][local_slices(t, at, mesh, extents)].copy()
        for at in coordinates(mesh)
    ]


def join(
    shards: Sequence[np.ndarray], t: TensorType, mesh: Mesh, extents: Mapping[str, Number], tolerance: float = 0.0
) -> np.ndarray:
    """The global array of which these are the shards; partial values are combined.

    Args:
        shards: One array per rank.
        t: How they lie.
        mesh: The ranks.
        extents: Sizes that depend on the item.
        tolerance: Largest absolute difference between replicas.

    Raises:
        ShardFault: a shard has not the shape that its type says, or replicas differ.
    """
    shape = _global_shape(t, mesh, extents)
    parts: dict[tuple[int, ...], np.ndarray] = {}
    held: dict[tuple[int, ...], np.ndarray] = {}
    for rank, (at, shard) in enumerate(zip(coordinates(mesh), shards, strict=True)):
        where = local_slices(t, at, mesh, extents)
        expected = tuple(s.stop - s.start for s in where)
        if shard.shape != expected:
            raise ShardFault(f"rank {rank} {at} holds shape {shard.shape}, its type says {expected}")
        key = tuple(at[a] for a, _ in t.placement.partial)
        whole = parts.setdefault(key, np.zeros(shape, dtype=shard.dtype))
        seen = held.setdefault(key, np.zeros(shape, dtype=bool))
        known = seen[where]
        if known.any() and not np.allclose(whole[where][known], shard[known], rtol=0.0, atol=tolerance):
            raise ShardFault(f"rank {rank} {at} and its replicas differ")
        whole[where] = shard
        seen[where] = True
    for at_key, seen in held.items():
        if not seen.all():
            raise ShardFault(f"no rank holds {int((~seen).sum())} elements of part {at_key}")
    for _, reduction in reversed(t.placement.partial):
        merged: dict[tuple[int, ...], np.ndarray] = {}
        for key, part in parts.items():
            merged[key[:-1]] = COMBINE[reduction](merged[key[:-1]], part) if key[:-1] in merged else part
        parts = merged
    return parts[()]


def _global_shape(t: TensorType, mesh: Mesh, extents: Mapping[str, Number]) -> tuple[int, ...]:
    return tuple(int(d.value(extents, mesh)) for d in t.dims)


def _split(whole: np.ndarray, parts: int, reduction: str, rng: np.random.Generator) -> Iterable[np.ndarray]:
    """Random arrays that combine to ``whole``."""
    if reduction == "sum":
        rest = [rng.standard_normal(whole.shape) for _ in range(parts - 1)]
        return [whole - sum(rest), *rest]
    if reduction == "max":
        holder = rng.integers(parts, size=whole.shape)
        return [np.where(holder == i, whole, whole - rng.exponential(size=whole.shape)) for i in range(parts)]
    # attention states: random outputs whose weighted mean is the output, under denominators that add up to its own
    shares = rng.dirichlet(np.ones(parts), size=whole.shape[:-1])[..., None, :]
    noise = rng.standard_normal((parts, *whole[..., :-1].shape))
    noise -= sum((shares[..., i] * noise[i] for i in range(parts)), np.zeros(1))
    return [
        np.concatenate([whole[..., :-1] + noise[i], whole[..., -1:] + np.log(shares[..., i])], axis=-1)
        for i in range(parts)
    ]
