"""The graph with its iteration space over steps, items and layers unrolled into columns, shards still folded.

A *call* is one node at one step, item and layer. Calls are the level at which schedules are made: all shards of a call
have the same level and, costs being those of the fullest rank, the same duration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Block, Graph, Node

Ints = NDArray[np.int64]

EDGE_KINDS = ("data", "pipeline", "sync", "state", "route", "order")
STREAMS = ("main", "send", "transfer", "free")


@dataclass(frozen=True)
class Unrolled:
    """Calls and the edges between them. Every column is indexed by call, calls being sorted topologically by level.

    Attributes:
        graph: Where it comes from.
        templates: (block, node) of each template number.
        template: Template number.
        step: Decode step.
        item: Pipeline item.
        layer: Layer, or -1 outside layers (a boundary call has the layer behind it).
        repetition: Index into the block's layers.
        stage: Pipeline stage.
        level: Level: every edge goes from a lower to a higher one.
        source, target: Ends of each edge, as call numbers, sorted by target, then source.
        edge_kind: Index into :data:`EDGE_KINDS`.
    """

    graph: Graph
    templates: tuple[tuple[Block, Node], ...]
    template: Ints
    step: Ints
    item: Ints
    layer: Ints
    repetition: Ints
    stage: Ints
    level: Ints
    source: Ints
    target: Ints
    edge_kind: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.template)

    def node(self, call: int) -> Node:
        return self.templates[int(self.template[call])][1]

    def block(self, call: int) -> Block:
        return self.templates[int(self.template[call])][0]

    def gather(self, per_template: list[Any]) -> NDArray[np.float64]:
        """A column from arrays per template that broadcast over (steps, items, repetitions)."""
        column = np.zeros(len(self))
        shape = (self.graph.steps, len(self.graph.items))
        for number, values in enumerate(per_template):
            mine = np.flatnonzero(self.template == number)
            array = np.asarray(values, dtype=np.float64)
            if array.ndim == 0:
                column[mine] = array
                continue
            count = array.shape[2] if array.shape[2] > 1 else 1
            full = np.broadcast_to(array, (*shape, count))
            repetition = self.repetition[mine] if count > 1 else 0
            column[mine] = full[self.step[mine], self.item[mine], repetition]
        return column
