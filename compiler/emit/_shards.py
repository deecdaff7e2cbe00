"""Shards of a node: coordinates, device groups and local tensor sizes, as arrays over its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.mesh import ATTENTION_VIEW, EXPERT_VIEW, Mesh
from ..ir.ops import GROUP
from ..ir.types import TensorType, ceil_div

Ints = NDArray[np.int64]


def atom_coordinates(mesh: Mesh, expanded: Sequence[str]) -> dict[str, Ints]:
    """Coordinate of every shard on each atomic axis over which a node is expanded."""
    sizes = [mesh.size((a,)) for a in expanded]
    shards = np.arange(mesh.size(expanded), dtype=np.int64)
    return dict(zip(expanded, np.unravel_index(shards, sizes) if sizes else (), strict=True))


def named_coordinates(mesh: Mesh, expanded: Sequence[str], view: str) -> dict[str, Ints]:
    """The same on named axes: those of the node's own view first, then the other's, then atomic axes left over."""
    atoms = atom_coordinates(mesh, expanded)
    left = set(expanded)
    named: dict[str, Ints] = {}
    own, other = (EXPERT_VIEW, ATTENTION_VIEW) if view == "expert" else (ATTENTION_VIEW, EXPERT_VIEW)
    for name in (*own, *other):
        axes = mesh.view(name)
        if axes and left >= set(axes):
            value = np.zeros(mesh.size(expanded), dtype=np.int64)
            for a in axes:
                value = value * mesh.size((a,)) + atoms[a]
            named[name] = value
            left -= set(axes)
    return named | {a: atoms[a] for a in expanded if a in left}


def device_groups(mesh: Mesh, expanded: Sequence[str], stage: int) -> Ints:
    """Global ranks of replica 0 that each shard of a node runs on, ascending: [shards, ranks]."""
    atoms = atom_coordinates(mesh, expanded)
    base = mesh.first_rank + stage * mesh.pp_stride + np.zeros(mesh.size(expanded), dtype=np.int64)
    for name, coordinate in atoms.items():
        base = base + mesh.axis(name).stride * coordinate
    offsets = np.zeros(1, dtype=np.int64)
    for axis in mesh.axes:
        if axis.name not in atoms:
            offsets = (offsets[:, None] + axis.stride * np.arange(axis.size)).ravel()
    return base[:, None] + np.sort(offsets)


def axis_words(mesh: Mesh, axes: Sequence[str], *, experts: bool = False) -> list[str]:
    """Atomic axes in the user's words: the named axis that comes next, or the atomic axis itself where none fits.

    Args:
        mesh: The mesh.
        axes: Atomic axes, outermost first.
        experts: Speak of (edp, ep, etp) where possible, not of (adp, sp, tp).
    """
    tiers = (EXPERT_VIEW, ATTENTION_VIEW, ("kv",)) if experts else (ATTENTION_VIEW, ("kv",), EXPERT_VIEW)
    rest = tuple(axes)
    words: list[str] = []
    while rest:
        word = next((v for views in tiers for v in views if _begins(rest, mesh.view(v))), None)
        words.append(word or rest[0])
        rest = rest[len(mesh.view(word)) if word else 1 :]
    return words


def _begins(axes: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return bool(part) and axes[: len(part)] == part


@dataclass(frozen=True)
class LocalTensor:
    """A tensor seen from the shards of a node, routing groups merged into one dimension.

    Attributes:
        name: Name of the value or weight.
        dtype: Number format.
        dims: Names of the dimensions.
        global_sizes: Whole sizes.
        sizes: Sizes on one rank of each shard: [shards, dims].
        placement: Named axes of each cut dimension.
        partial: Reductions by named axis.
        shift: By how many ranks the chunks of a dimension have been passed on round the ring that cuts it.
    """

    name: str
    dtype: str
    dims: tuple[str, ...]
    global_sizes: tuple[int, ...]
    sizes: Ints
    placement: Mapping[str, list[str]]
    partial: Mapping[str, str]
    shift: Mapping[str, int]

    def row(self, shard: int) -> dict[str, Any]:
        """What the JSON row of a shard says of the tensor."""
        row = {
            "name": self.name,
            "dims": dict(zip(self.dims, self.sizes[shard].tolist(), strict=True)),
            "global_dims": dict(zip(self.dims, self.global_sizes, strict=True)),
            "dtype": self.dtype,
            "placement": dict(self.placement),
            "partial": dict(self.partial),
        }
        return {**row, "shift": dict(self.shift)} if self.shift else row


def local_tensor(
    name: str, kind: TensorType, extents: Mapping[str, int], mesh: Mesh, atoms: Mapping[str, Ints], *, experts: bool
) -> LocalTensor:
    """Exact sizes of a tensor on every shard, largest over the axes that the node is not expanded over.

    ``rows`` of routed tokens are the expected rows of one slot, rounded up.

    Args:
        name: Name of the value or weight.
        kind: Its type.
        extents: ``batch``, ``new`` and ``context`` of the item and step.
        mesh: The mesh.
        atoms: Coordinates of the shards, see :func:`atom_coordinates`.
        experts: Whether the node is in the expert view, for the names of axes.
    """
    shards = len(next(iter(atoms.values()))) if atoms else 1
    whole: dict[str, int] = {}
    local: dict[str, Ints] = {}
    cuts: dict[str, tuple[str, ...]] = {}
    for index, (dim, axes) in enumerate(zip(kind.dims, kind.placement.shards, strict=True)):
        if getattr(dim.size, "kind", "") == "rows":
            size, sizes = _rows(kind, dim.size, extents, mesh, atoms, shards)
        else:
            size = int(dim.value(extents, mesh))
            held = _held(atoms, axes, kind.placement.shift_of(index), mesh)
            sizes = _chunk(np.full(shards, size, dtype=np.int64), axes, mesh, held)
        key = "group" if dim.name.startswith(GROUP) else dim.name
        whole[key] = whole.get(key, 1) * size
        local[key] = local[key] * sizes if key in local else sizes
        cuts[key] = (*cuts.get(key, ()), *axes)
    return LocalTensor(
        name,
        kind.dtype,
        tuple(whole),
        tuple(whole.values()),
        np.stack(list(local.values()), axis=1) if local else np.zeros((shards, 0), dtype=np.int64),
        {d: axis_words(mesh, a, experts=experts or d == "slot") for d, a in cuts.items() if a},
        _partial(kind, mesh, experts=experts),
        {d: hops for d, hops in zip(kind.names, kind.placement.shift, strict=False) if hops},
    )


def _partial(kind: TensorType, mesh: Mesh, *, experts: bool) -> dict[str, str]:
    words: dict[str, str] = {}
    for reduction in sorted({r for _, r in kind.placement.partial}):
        axes = mesh.ordered(a for a, r in kind.placement.partial if r == reduction)
        words.update(dict.fromkeys(axis_words(mesh, axes, experts=experts), reduction))
    return words


def _held(atoms: Mapping[str, Ints], axes: Sequence[str], shift: int, mesh: Mesh) -> Mapping[str, Ints]:
    """Coordinates of the ranks whose chunks the shards hold after so many hops round the ring of ``axes``."""
    if not shift or any(a not in atoms for a in axes):
        return atoms
    sizes = [mesh.size((a,)) for a in axes]
    place = (np.ravel_multi_index([atoms[a] for a in axes], sizes) - shift) % mesh.size(axes)
    return {**atoms, **dict(zip(axes, np.unravel_index(place, sizes), strict=True))}


def _chunk(sizes: Ints, axes: Sequence[str], mesh: Mesh, atoms: Mapping[str, Ints]) -> Ints:
    """Sizes after nested ceiling cuts. The first chunk is the largest, so it stands for axes without coordinates."""
    for name in axes:
        step = ceil_div(sizes, mesh.size((name,)))
        sizes = np.clip(sizes - atoms[name] * step, 0, step) if name in atoms else step
    return sizes


def _rows(
    kind: TensorType, extent: Any, extents: Mapping[str, int], mesh: Mesh, atoms: Mapping[str, Ints], shards: int
) -> tuple[int, Ints]:
    """Expected rows of one slot: of the fullest group, and of the groups that each shard holds.

    A shard that holds one group (its group dimensions are cut by the axes that cut the tokens) has that group's tokens;
    one that holds several has, at most, the fullest's.
    """
    groups = (axes for d, axes in zip(kind.dims, kind.placement.shards, strict=True) if d.name.startswith(GROUP))
    cut = {a for axes in groups for a in axes}
    held = {name: coordinate for name, coordinate in atoms.items() if name in cut}
    batch = _chunk(np.full(shards, extents["batch"], dtype=np.int64), extent.batch_axes, mesh, held)
    new = _chunk(np.full(shards, extents["new"], dtype=np.int64), extent.new_axes, mesh, held)
    most = int(extent.value(extents, mesh))
    # Rounded first: a density such as 8/320 is no exact binary fraction.
    expected = np.ceil(np.round(np.append(batch * new, most) * kind.density, 9)).astype(np.int64)
    return int(expected[-1]), expected[:-1]
