"""One node on all ranks of a stage: its numpy kernel, once per rank, on that rank's shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..ir.graph import Node
from ..ir.mesh import Mesh
from ..ir.ops import Operator, Shard, operator
from ..ir.types import Extent, Number, TensorType
from .shards import Shards, coordinates, local_slices


def run_node(
    node: Node,
    inputs: Sequence[Shards],
    input_types: Sequence[TensorType],
    params: Mapping[str, Shards],
    mesh: Mesh,
    extents: Mapping[str, Number],
    rule: Operator | None = None,
) -> list[Shards]:
    """Shards of every result of a node whose types are resolved.

    Args:
        node: A node that moves no data between ranks.
        inputs: Shards of the operands.
        input_types: Types of the operands.
        params: Shards of weights and constants, by name.
        mesh: The ranks.
        extents: Sizes that depend on the item.
        rule: The operator, where it is not the registered one.
    """
    rule = rule or operator(node)
    results: list[Shards] = [[] for _ in node.outputs]
    for rank, at in enumerate(coordinates(mesh)):
        shard = Shard(node, starts_of(node, input_types, at, mesh, extents))
        values = rule.kernel(shard, [x[rank] for x in inputs], {name: p[rank] for name, p in params.items()})
        for result, value, output in zip(results, values, node.outputs, strict=True):
            result.append(pad_rows(value, output.type, mesh, extents))
    return results


def starts_of(
    node: Node,
    input_types: Sequence[TensorType],
    at: Mapping[str, int],
    mesh: Mesh,
    extents: Mapping[str, Number],
) -> dict[str, tuple[int, int]]:
    """First global index and global size of every dimension that is cut, for one rank."""
    starts: dict[str, tuple[int, int]] = {}
    for t in (*(p.type for p in node.params), *input_types, *(v.type for v in node.outputs)):
        if not any(t.placement.shards):
            continue
        for dim, axes, where in zip(t.dims, t.placement.shards, local_slices(t, at, mesh, extents), strict=True):
            if axes:
                starts.setdefault(dim.name, (where.start, int(dim.value(extents, mesh))))
    return starts


def pad_rows(value: np.ndarray, t: TensorType, mesh: Mesh, extents: Mapping[str, Number]) -> np.ndarray:
    """Routing groups of unequal size get empty rows up to the size of the largest."""
    missing = [
        int(d.size.value(extents, mesh)) - have if isinstance(d.size, Extent) and d.size.kind == "rows" else 0
        for d, have in zip(t.dims, value.shape, strict=True)
    ]
    return np.pad(value, [(0, m) for m in missing]) if any(missing) else value
