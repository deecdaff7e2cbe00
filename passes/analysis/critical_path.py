"""The critical path: the chain of nodes that determines the latency, through data, state and order edges.

All shards of a call have one duration (that of the fullest rank) and the same kinds of predecessors, so they finish
together: the longest path over calls is the longest path over nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...compiler.cost import BOUNDS, NodeCost
from ...compiler.ir.flat import FlatGraph

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CriticalPath:
    """The critical path and the schedule that follows from it.

    Attributes:
        flat: The graph.
        calls: Calls on the path, first to last.
        seconds: Length of the path.
        call_finish: Earliest finish of every call, seconds.
    """

    flat: FlatGraph
    calls: Ints
    seconds: float
    call_finish: Floats

    @property
    def finish(self) -> Floats:
        """Earliest finish of every node, seconds."""
        return np.repeat(self.call_finish, self.flat.width)

    @cached_property
    def nodes(self) -> Ints:
        """Node ids on the path, first to last: of each call the lowest shard that leads on."""
        if not len(self.calls):
            return self.calls
        flat, nodes = self.flat, [int(self.flat.first[self.calls[-1]])]
        for call in reversed(self.calls[:-1].tolist()):
            before = flat.predecessors(nodes[-1])
            low, high = np.searchsorted(before, flat.first[call : call + 2])
            nodes.append(int(before[low:high].min()))
        return np.array(nodes[::-1], dtype=np.int64)


def critical_path(flat: FlatGraph) -> CriticalPath:
    """Longest path of a flat graph. Ties go to the lowest call, so the path is deterministic."""
    duration = flat.call_duration.tolist()
    if not duration:
        return CriticalPath(flat, np.zeros(0, dtype=np.int64), 0.0, flat.call_duration)
    finish, before = _longest(duration, flat.unrolled.source.tolist(), flat.unrolled.target.tolist())
    call = max(range(len(finish)), key=finish.__getitem__)
    seconds, path = finish[call], [call]
    while (call := before[call]) >= 0:
        path.append(call)
    return CriticalPath(flat, np.array(path[::-1], dtype=np.int64), seconds, np.array(finish))


def _longest(duration: list[float], sources: list[int], targets: list[int]) -> tuple[list[float], list[int]]:
    """Finish of each call and the predecessor that it waits for; edges are sorted by target, calls topologically."""
    count = len(duration)
    finish, before = [0.0] * count, [-1] * count
    edge, edges = 0, len(sources)
    for call in range(count):
        ready, via = 0.0, -1
        while edge < edges and targets[edge] == call:
            done = finish[sources[edge]]
            if done > ready or via < 0:
                ready, via = done, sources[edge]
            edge += 1
        finish[call] = ready + duration[call]
        before[call] = via
    return finish, before


def seconds_by_bound(path: CriticalPath, costs: Mapping[tuple[str, str], NodeCost]) -> dict[str, float]:
    """Seconds of the critical path by what binds its nodes (compute, memory, network, latency)."""
    unrolled = path.flat.unrolled
    bound = unrolled.gather([costs[b.name, n.name].bound for b, n in unrolled.templates]).astype(np.int64)
    weights = path.flat.call_duration[path.calls]
    seconds = np.bincount(bound[path.calls], weights=weights, minlength=len(BOUNDS))
    return {name: float(s) for name, s in zip(BOUNDS, seconds, strict=True) if s > 0}
