"""Rows of the evaluation: what they cost, which are distinct, and which nodes look at more than the new tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ir.graph import Block, Node
from ..ir.ops import CostClass, operator
from ..ir.types import Extent

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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


def by_tokens(block: Block, node: Node) -> bool:
    """Whether the node's cost depends on the new tokens alone."""
    return not looks_at_context(block, node)


def distinct_rows(*columns: Ints) -> tuple[list[Ints], Ints]:
    """Distinct rows of some columns of non-negative integers, and which of them each row is."""
    key = np.zeros(len(columns[0]), dtype=np.int64)
    wide = 1
    for column in columns:
        size = int(column.max(initial=0)) + 1
        if wide * size > 2**62:
            _, key = np.unique(key, return_inverse=True)
            key, wide = key.reshape(-1).astype(np.int64), int(key.max(initial=0)) + 1
        key, wide = key * size + column, wide * size
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    return [column[first] for column in columns], which.reshape(-1)
