"""Rows of the evaluation: what they cost, which are distinct, and which nodes look at more than the new tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from ..ir.graph import Block, Node
from ..ir.ops import CostClass, operator
from ..ir.types import Extent

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Columnar:
    """Base of data classes whose fields are columns of equal length: one entry per strategy, pool or deployment."""

    def __getitem__(self, index: Any) -> Self:
        return type(self)(*(getattr(self, f.name)[index] for f in fields(cast(Any, self))))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The entries of all parts, one after the other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cast(Any, cls))))


@dataclass(frozen=True)
class Seconds:
    """Seconds per row.

    Attributes:
        parts: [parts, rows] of each part of a layer.
        prologue: [rows].
        epilogue: [rows], without the token return.
        send: [2, rows] of a message to the next stage, inside a domain and out of it.
        back: [2, rows] of the token return.
    """

    parts: Floats
    prologue: Floats
    epilogue: Floats
    send: Floats
    back: Floats

    def at(self, rows: Ints | slice) -> Seconds:
        """Those of some rows."""
        return Seconds(*(getattr(self, f.name)[..., rows] for f in fields(self)))


@dataclass(frozen=True)
class Bytes:
    """Bytes per row, on the fullest rank.

    The second-to-last axis of the ends is (one stage, several stages).

    Attributes:
        activations: Largest sum of live values: parts [parts, rows].
        buffers: Largest staging buffer, KV transfers left out: [parts, rows].
        transfer: Staging buffer of a KV transfer: [parts, rows].
        ends: activations and buffers of the prologue and the epilogue: [2 (ends), 2 (kinds), 2 (stages), rows].
        boundary: activations and buffers of a boundary: [2, rows].
    """

    activations: Floats
    buffers: Floats
    transfer: Floats
    ends: Floats
    boundary: Floats


def looks_at_context(block: Block, node: Node) -> bool:
    """Whether the node's cost depends on how many tokens came before."""
    if operator(node).cost_class is CostClass.ATTENTION:
        return True
    types = [*(block.types[i] for i in node.inputs), *(v.type for v in node.outputs), *(p.type for p in node.params)]
    sizes = [d.size for t in types for d in t.dims]
    return any(isinstance(s, Extent) and s.kind in ("context", "past", "window") for s in sizes)


NodeFilter = Callable[[Block, Node], bool]


def everything(block: Block, node: Node) -> bool:
    """Any node."""
    return True


def sees_tokens_only(block: Block, node: Node) -> bool:
    """Whether the node's cost depends on the new tokens alone."""
    return not looks_at_context(block, node)


def distinct_rows(*columns: Ints) -> tuple[list[Ints], Ints]:
    """Distinct rows of some columns of non-negative integers, and which of them each row is."""
    key = np.zeros(len(columns[0]), dtype=np.int64)
    wide = 1
    for column in columns:
        code, size = numbered(column)
        if wide * size > 2**62:
            key, wide = numbered(key)
        key, wide = key * size + code, wide * size
    which, count = numbered(key)
    some = np.empty(count, dtype=np.int64)
    some[which] = np.arange(len(key))
    return [column[some] for column in columns], which


def numbered(column: Ints) -> tuple[Ints, int]:
    """The column with its distinct values numbered in their order, and how many there are.

    Without sorting where the values lie close enough together to be looked up in a table.
    """
    if not len(column):
        return column, 0
    low, high = int(column.min()), int(column.max())
    if high - low >= max(len(column) * 4, SPARSE):
        values, which = np.unique(column, return_inverse=True)
        return which.reshape(-1), len(values)
    place = column - low if low else column
    there = np.zeros(high - low + 1, dtype=bool)
    there[place] = True
    count = int(np.count_nonzero(there))
    return (place, count) if count == len(there) else ((np.cumsum(there) - 1)[place], count)


SPARSE = 1 << 16
"""Values that a table is made for however few rows there are."""
