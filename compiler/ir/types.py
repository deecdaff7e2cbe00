"""Tensor types: dtype, named dimensions and placement on the mesh."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from ..spec.dtypes import dtype as lookup_dtype
from .mesh import Mesh

Number = Any
"""An int, a float, or a numpy array of them: sizes and costs broadcast over items, steps or strategies."""

REDUCTIONS = ("sum", "max", "lse")


@dataclass(frozen=True)
class Extent:
    """A size that depends on the pipeline item or the decode step.

    ``batch``: sequences of the item over all attention-DP groups. ``new``: new tokens per sequence. ``context``:
    tokens per sequence after this step, ``past`` before it. ``window``: the part of the context that a sliding layer
    reads, ``min(context, new + w - 1)``. ``rows``: tokens of one routing group, the local tokens of a rank that holds
    ``batch`` cut by ``batch_axes`` and ``new`` cut by ``new_axes``.
    """

    kind: str
    window: int = 0
    batch_axes: tuple[str, ...] = ()
    new_axes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind == "window":
            return f"window({self.window})"
        if self.kind == "rows":
            return f"rows({'.'.join(self.batch_axes) or '-'},{'.'.join(self.new_axes) or '-'})"
        return self.kind

    def value(self, extents: Mapping[str, Number], mesh: Mesh) -> Number:
        """The size, given ``batch``, ``new`` and ``context`` (numbers or arrays)."""
        if self.kind == "window":
            return _minimum(extents["context"], extents["new"] + (self.window - 1))
        if self.kind == "rows":
            batch = ceil_div(extents["batch"], mesh.size(self.batch_axes))
            return batch * ceil_div(extents["new"], mesh.size(self.new_axes))
        if self.kind == "past":
            return extents["context"] - extents["new"]
        return extents[self.kind]


class Rows(dict[str, Number]):
    """Extents as arrays over many strategies, for one mesh: what was reckoned from them is kept.

    Attributes:
        local: Sizes on the fullest rank by global size and the axes that cut it.
        elements: Elements by those of all dimensions.
        types: The same by the identity of the tensor type, which is kept with them: nodes ask for one type many times.
    """

    def __init__(self, **extents: Number) -> None:
        super().__init__(extents)
        self.local: dict[tuple[Size, tuple[str, ...]], Number] = {}
        self.elements: dict[tuple[Any, ...], Number] = {}
        self.types: dict[int, tuple[TensorType, Number]] = {}


BATCH = Extent("batch")
NEW = Extent("new")
CONTEXT = Extent("context")
PAST = Extent("past")

Size = int | Extent


def ceil_div(value: Number, by: Number) -> Number:
    """Ceiling division; works on numbers and arrays."""
    return -(-value // by)


def _minimum(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    import numpy as np

    return np.minimum(a, b)


@dataclass(frozen=True)
class Dim:
    """A named global dimension."""

    name: str
    size: Size

    def value(self, extents: Mapping[str, Number], mesh: Mesh) -> Number:
        """The global size as a number (or an array over items)."""
        return self.size if isinstance(self.size, int) else self.size.value(extents, mesh)


@dataclass(frozen=True)
class Placement:
    """Where a tensor lies on the mesh.

    Attributes:
        shards: Per dimension, the atomic axes that cut it, outermost first. Cuts nest: each axis cuts what the axes
            before it left into ceiling chunks, so the last chunks may be smaller or empty.
        partial: (axis, reduction) pairs, sorted: the ranks along that axis hold summands (or maxima, or log-sum-exp
            states) of the value. On every other axis the tensor is replicated.
        shift: Per dimension, by how many ranks its chunks have been passed on round the ring of the axes that cut it:
            the rank of ring position i holds chunk i - shift (modulo the ring). Empty where nothing is shifted.
    """

    shards: tuple[tuple[str, ...], ...]
    partial: tuple[tuple[str, str], ...] = ()
    shift: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.shift and not any(self.shift):
            object.__setattr__(self, "shift", ())
        elif self.shift and len(self.shift) != len(self.shards):
            raise ValueError(f"{len(self.shards)} dimensions, {len(self.shift)} shifts")
        used = [a for axes in self.shards for a in axes] + [a for a, _ in self.partial]
        if len(used) != len(set(used)):
            raise ValueError(f"an axis is used twice in placement {self}")

    @property
    def used(self) -> frozenset[str]:
        return frozenset(a for axes in self.shards for a in axes) | self.partial_axes

    @property
    def partial_axes(self) -> frozenset[str]:
        return frozenset(a for a, _ in self.partial)

    def shift_of(self, dim: int) -> int:
        """By how many ranks the chunks of a dimension are passed on."""
        return self.shift[dim] if self.shift else 0

    def reduction(self, axis: str) -> str:
        """How the partial values along ``axis`` combine."""
        return dict(self.partial)[axis]

    def without_partial(self, axes: Iterable[str] | None = None) -> Placement:
        """The same, no longer partial on ``axes`` (default: on any)."""
        drop = self.partial_axes if axes is None else set(axes)
        return replace(self, partial=tuple(p for p in self.partial if p[0] not in drop))


def replicated(rank: int) -> Placement:
    """A tensor of ``rank`` dimensions that every device holds whole."""
    return Placement(((),) * rank)


@dataclass(frozen=True)
class TensorType:
    """A tensor: dtype, global dimensions, placement.

    Attributes:
        dtype: Name of the number format.
        dims: Named global dimensions.
        placement: Cut and partial axes.
        density: Expected share of the rows that are filled: ``top_k / slots`` for routed tokens, else 1.
    """

    dtype: str
    dims: tuple[Dim, ...]
    placement: Placement
    density: float = 1.0

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.placement.shards):
            raise ValueError(f"{len(self.dims)} dimensions, {len(self.placement.shards)} placements")

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple([d.name for d in self.dims])

    def index(self, name: str) -> int:
        return self.names.index(name)

    def has(self, name: str) -> bool:
        return name in self.names

    def axes_of(self, name: str) -> tuple[str, ...]:
        """Atomic axes that cut the named dimension."""
        return self.placement.shards[self.index(name)]

    def shift_of(self, name: str) -> int:
        """By how many ranks the chunks of the named dimension are passed on."""
        return self.placement.shift_of(self.index(name))

    def placed(self, placement: Placement) -> TensorType:
        return TensorType(self.dtype, self.dims, placement, self.density)

    def local_dims(self, extents: Mapping[str, Number], mesh: Mesh) -> dict[str, Number]:
        """Sizes on the fullest rank, by dimension name."""
        known = extents.local if isinstance(extents, Rows) else {}
        found = {}
        for d, axes in zip(self.dims, self.placement.shards, strict=True):
            key = (d.size, axes)
            if key not in known:
                known[key] = ceil_div(d.value(extents, mesh), mesh.size(axes))
            found[d.name] = known[key]
        return found

    def local_elements(self, extents: Mapping[str, Number], mesh: Mesh) -> Number:
        """Expected elements on the fullest rank."""
        if not isinstance(extents, Rows):
            return prod(self.local_dims(extents, mesh).values(), start=self.density)
        seen = extents.types.get(id(self))
        if seen is not None:
            return seen[1]
        key = (self.density, *zip((d.size for d in self.dims), self.placement.shards, strict=True))
        if key not in extents.elements:
            extents.elements[key] = prod(self.local_dims(extents, mesh).values(), start=self.density)
        extents.types[id(self)] = self, extents.elements[key]
        return extents.elements[key]

    def local_bytes(self, extents: Mapping[str, Number], mesh: Mesh) -> Number:
        """Expected bytes on the fullest rank."""
        return self.local_elements(extents, mesh) * lookup_dtype(self.dtype).bytes


def tensor(dtype: str, *dims: tuple[str, Size], density: float = 1.0) -> TensorType:
    """A replicated tensor type: ``tensor("bf16", ("batch", BATCH), ("hidden", 4096))``."""
    return TensorType(dtype, tuple(Dim(n, s) for n, s in dims), replicated(len(dims)), density)


def chunk_bounds(size: int, cuts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """First and past-the-last index that a rank holds of a dimension of ``size``.

    Args:
        size: Global size.
        cuts: (axis size, this rank's coordinate) for each axis that cuts the dimension, outermost first.
    """
    low, high = 0, size
    for parts, coordinate in cuts:
        step = ceil_div(high - low, parts)
        new_low = min(high, low + coordinate * step)
        high = min(high, new_low + step)
        low = new_low
    return low, high
