"""Time of each pipeline stage and send per item, the input of the schedule's closed forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...compiler.cost import decode_interval
from ...compiler.cost.closed_form import pipeline_makespan
from ...compiler.ir.graph import Graph
from ...compiler.ir.types import Number
from ...compiler.ir.unrolled import STREAMS
from .schedule import stream_of
from .unroll import node_mask

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Timed(Protocol):
    """Whatever is known of a node, its seconds among it."""

    @property
    def time(self) -> Number:
        """Seconds, as an array that broadcasts over (steps, items, repetitions)."""


def server_times(graph: Graph, costs: Mapping[tuple[str, str], Timed]) -> Floats:
    """[steps, items, servers] seconds: stage 0, send 0, stage 1, ..., last stage, and in decode the token return.

    A graph of one stage has one server.
    """
    stages = len(graph.stages)
    shape = (graph.steps, len(graph.items))
    returns = 1 if stages > 1 and graph.phase == "decode" else 0
    times = np.zeros((*shape, 2 * stages - 1 + returns))
    runs: dict[tuple[str, str], tuple[Ints, Ints, Ints]] = {}
    for block, node in graph.nodes():
        stream = STREAMS[stream_of(node)]
        if stream not in ("main", "send"):
            continue
        time = np.asarray(costs[block.name, node.name].time, dtype=np.float64)
        repetitions = max(1, len(block.layers))
        full = np.where(node_mask(graph, node)[..., None], np.broadcast_to(time, (*shape, repetitions)), 0.0)
        if (block.name, stream) not in runs:
            runs[block.name, stream] = _runs(2 * graph.stages_of(block, node).astype(np.int64) + (stream == "send"))
        order, servers, starts = runs[block.name, stream]
        times[:, :, servers] += np.add.reduceat(full[..., order], starts, axis=-1)
    return times


def _runs(server: Ints) -> tuple[Ints, Ints, Ints]:
    """Repetitions in the order of their servers, those servers, and where each one's repetitions begin."""
    order = np.argsort(server, kind="stable")
    servers, starts = np.unique(server[order], return_index=True)
    return order, servers, starts


def prefill_seconds(graph: Graph, costs: Mapping[tuple[str, str], Timed]) -> float:
    """Closed form of the prefill's makespan, to the last request's first token."""
    return float(pipeline_makespan(server_times(graph, costs)[0]))


def phase_servers(graph: Graph, costs: Mapping[tuple[str, str], Timed]) -> Floats:
    """[items, servers] seconds that the latency of the graph's phase comes from."""
    return server_times(graph, costs)[0] if graph.phase == "prefill" else step_servers(graph, costs)


def phase_latency(graph: Graph, times: Floats) -> float:
    """TTFT or TPOT from what :func:`phase_servers` gives."""
    return float(pipeline_makespan(times)) if graph.phase == "prefill" else servers_interval(graph, times)


def busiest_each(graph: Graph, times: Floats) -> float:
    """Seconds per sequence of the busiest stage or send, from what :func:`phase_servers` gives."""
    return float(times.sum(axis=0).max()) / sum(item.batch for item in graph.items if item.first)


def step_interval(graph: Graph, costs: Mapping[tuple[str, str], Timed]) -> float:
    """Closed form of the steady decode interval (TPOT) at the context of the first step.

    With micro-batches of unequal size the slowest server's round is the sum over them, and the longest trip is the
    fullest micro-batch's; the token return counts in every step.
    """
    return servers_interval(graph, step_servers(graph, costs))


def servers_interval(graph: Graph, times: Floats) -> float:
    """The same from [items, servers] seconds of a step."""
    if len({(i.batch, i.new, i.past) for i in graph.items}) == 1:
        return float(decode_interval(times[0], len(graph.items)))
    return float(max(times.sum(axis=1).max(), times.sum(axis=0).max()))


def step_servers(graph: Graph, costs: Mapping[tuple[str, str], Timed]) -> Floats:
    """[items, servers] seconds of the first step in a steady stream of steps, whose token return always counts."""
    times: Floats = server_times(graph, costs)[0]
    if graph.phase == "decode" and len(graph.stages) > 1 and graph.steps == 1:
        times = times.copy()
        times[:, -1] = _return_seconds(graph, costs)
    return times


def _return_seconds(graph: Graph, costs: Mapping[tuple[str, str], Timed]) -> Floats:
    """Token return per item, which the last step of a chain leaves out."""
    time = next(np.asarray(costs["epilogue", n.name].time) for b, n in graph.nodes() if n.name == "return_send")
    return np.broadcast_to(time, (graph.steps, len(graph.items), 1))[0, :, 0]
