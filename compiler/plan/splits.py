"""Layers to stages: whether a neighbour of the balanced split is faster, measured in seconds of the stages.

The balanced split counts weight bytes. What a stage takes is another matter: a dense layer among experts has fewer
bytes but hardly less attention, an LM head is read once per token in decode and hardly at all in prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...passes.analysis.schedule import stream_of
from ...passes.analysis.stage_times import Timed, busiest_each, phase_latency, phase_servers
from ...passes.analysis.unroll import node_mask
from ...passes.validation import balanced, heaviest
from ..ir.graph import Graph
from ..ir.unrolled import STREAMS
from ..spec import ModelSpec

Floats = NDArray[np.float64]
Split = tuple[int, ...]
"""Layers of each stage."""

MOST_MOVES = 8
"""Layers that are moved at most, one after the other."""


class SplitTimes:
    """Latency of a lowered phase under other splits of its layers: a layer takes its seconds along.

    Args:
        graph: The lowered graph.
        costs: Of all its nodes.
    """

    def __init__(self, graph: Graph, costs: Mapping[tuple[str, str], Timed]) -> None:
        self.graph = graph
        self._layers = _layer_seconds(graph, costs)
        self._fixed = phase_servers(graph, costs).copy()
        self._stages = slice(0, 2 * len(graph.stages) - 1, 2)
        self._fixed[:, self._stages] -= self._of_stages(graph.stages)

    def _of_stages(self, split: Split) -> Floats:
        starts = np.cumsum([0, *split[:-1]])
        return np.add.reduceat(self._layers, starts, axis=1)

    def seconds(self, split: Split) -> Floats:
        """[stages] busy seconds of each stage, all items."""
        return np.asarray((self._fixed[:, self._stages] + self._of_stages(split)).sum(axis=0))

    def slowest(self, split: Split) -> int:
        """The stage that takes longest."""
        return int(self.seconds(split).argmax())

    def latency(self, split: Split) -> float:
        """Seconds of the phase's schedule: TTFT or TPOT where the batch is worked off as a whole."""
        return phase_latency(self.graph, self._times(split))

    def each(self, split: Split) -> float:
        """Seconds of the busiest stage or send per sequence."""
        return busiest_each(self.graph, self._times(split))

    def _times(self, split: Split) -> Floats:
        times = self._fixed.copy()
        times[:, self._stages] += self._of_stages(split)
        return times


def _layer_seconds(graph: Graph, costs: Mapping[tuple[str, str], Timed]) -> Floats:
    """[items, layers] seconds on the main stream."""
    out = np.zeros((len(graph.items), sum(graph.stages)))
    for block in graph.with_role("layer"):
        for node in block.nodes:
            if STREAMS[stream_of(node)] != "main":
                continue
            shape = (graph.steps, len(graph.items), len(block.layers))
            time = np.broadcast_to(np.asarray(costs[block.name, node.name].time, dtype=np.float64), shape)
            out[:, list(block.layers)] += np.where(node_mask(graph, node)[..., None], time, 0.0)[0]
    return out


def better_split(
    model: ModelSpec, start: Split, value: Callable[[Split], tuple[float, ...]], slowest: Callable[[Split], int]
) -> Split:
    """The best split that moving one layer after the other leads to; the start where no move helps.

    Args:
        model: Whose layers are split.
        start: The balanced split.
        value: What a split is worth, smaller is better.
        slowest: The stage of a split that takes longest.
    """
    best, worth = start, value(start)
    limit = heaviest(model, balanced(model, len(start)))
    for _ in range(MOST_MOVES):
        moves = {m: value(m) for m in neighbours(best, slowest(best)) if admitted(model, m, limit)}
        if not moves:
            break
        nearest = min(moves, key=lambda m: (moves[m], m))
        if moves[nearest] >= worth:
            break
        best, worth = nearest, moves[nearest]
    return best


def neighbours(split: Split, slowest: int) -> Iterator[Split]:
    """Splits with one layer moved from or to the first, the last or the slowest stage; no stage is left empty."""
    stages = range(len(split))
    ends = {0, len(split) - 1, slowest}
    for source in stages:
        for target in stages:
            if source != target and split[source] > 1 and (source in ends or target in ends):
                moved = list(split)
                moved[source] -= 1
                moved[target] += 1
                yield tuple(moved)


def admitted(model: ModelSpec, split: Sequence[int], limit: int | None = None) -> bool:
    """Whether the rules find nothing against a split: uneven by more than a layer, it is lighter than the balanced.

    Args:
        model: Whose layers are split.
        split: Layers of each stage.
        limit: Bytes of the heaviest stage of the balanced split, where they are known.
    """
    if max(split) - min(split) <= 1:
        return True
    most = heaviest(model, balanced(model, len(split))) if limit is None else limit
    return heaviest(model, split) < most
