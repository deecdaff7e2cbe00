"""What a phase's latency is the sum of: calls one after another, prefill's critical path or decode's steady cycle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...compiler.ir.unrolled import STREAMS
from .schedule import stream_of
from .stage_times import step_servers

if TYPE_CHECKING:
    from .critical_path import CriticalPath
    from .phase import PhaseAnalysis

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LatencyPath:
    """Calls whose times add up to the latency, as columns.

    Attributes:
        analysis: The phase.
        kind: ``path``: the critical path of prefill. ``trip``: a decode micro-batch through all stages, sends and the
            token return, which bounds the steady interval where the pipeline is not full. ``round``: all micro-batches
            on the slowest stage or send, which bounds it where the pipeline is full.
        call: Call, or -1 for the token return that the last step of a chain leaves out.
        template, item, repetition: What the call is a call of; all are of the first step.
        stage: Pipeline stage.
    """

    analysis: PhaseAnalysis
    kind: Literal["path", "trip", "round"]
    call: Ints
    template: Ints
    item: Ints
    repetition: Ints
    stage: Ints

    def figures(self, name: str) -> Floats:
        """A figure of :class:`NodeCost` (``time``, ``flops``, ``bound`` ...) per call."""
        graph, templates = self.analysis.graph, self.analysis.flat.unrolled.templates
        column = np.zeros(len(self.template))
        for number in np.unique(self.template).tolist():
            block, node = templates[number]
            shape = (graph.steps, len(graph.items), max(1, len(block.layers)))
            values: Any = getattr(self.analysis.costs[block.name, node.name], name)
            mine = self.template == number
            column[mine] = np.broadcast_to(values, shape)[0, self.item[mine], self.repetition[mine]]
        return column

    @property
    def seconds(self) -> Floats:
        """Seconds of each call; their sum is the latency."""
        return self.figures("time")


def latency_path(analysis: PhaseAnalysis) -> LatencyPath:
    """The calls that make the latency of a phase: TTFT without queue, or TPOT."""
    if analysis.graph.phase == "prefill":
        return _of_calls(analysis, "path", _prefill_calls(analysis))
    times = step_servers(analysis.graph, analysis.costs)
    item, server = int(times.sum(axis=1).argmax()), int(times.sum(axis=0).argmax())
    trip = times[item].sum() >= times[:, server].sum()
    calls = analysis.flat.unrolled
    stream = np.array([stream_of(n) for _, n in calls.templates], dtype=np.int64)[calls.template]
    sends = stream == STREAMS.index("send")
    chosen = (calls.step == 0) & (sends | (stream == STREAMS.index("main")))
    chosen &= calls.item == item if trip else 2 * calls.stage + sends == server
    path = _of_calls(analysis, "trip" if trip else "round", np.flatnonzero(chosen))
    last = times.shape[1] - 1
    if len(analysis.graph.stages) == 1 or analysis.graph.steps > 1 or not (trip or server == last):
        return path
    return _with_return(path, np.array([item]) if trip else np.arange(len(times)))


def _of_calls(analysis: PhaseAnalysis, kind: Literal["path", "trip", "round"], call: Ints) -> LatencyPath:
    calls = analysis.flat.unrolled
    columns = {name: getattr(calls, name)[call] for name in ("template", "item", "repetition", "stage")}
    return LatencyPath(analysis, kind, call, **columns)


def _with_return(path: LatencyPath, items: Ints) -> LatencyPath:
    """The path, and the token return of the items, which a single step has no calls of."""
    templates = path.analysis.flat.unrolled.templates
    number = next(i for i, (block, node) in enumerate(templates) if node.name == "return_send")
    same = np.ones(len(items), dtype=np.int64)
    last = len(path.analysis.graph.stages) - 1
    more = {"call": -same, "template": number * same, "item": items, "repetition": 0 * same, "stage": last * same}
    columns = {name: np.concatenate([getattr(path, name), values]) for name, values in more.items()}
    return LatencyPath(path.analysis, path.kind, **columns)


def _prefill_calls(analysis: PhaseAnalysis) -> Ints:
    """The critical path to the end of the last kernel or send; KV transfers run on beside it."""
    critical, calls = analysis.critical, analysis.flat.unrolled
    transfers = np.array([STREAMS[stream_of(n)] == "transfer" for _, n in calls.templates])[calls.template]
    if not len(critical.calls) or not transfers[critical.calls[-1]]:
        return critical.calls
    return _path_to(critical, int(np.where(transfers, -1.0, critical.call_finish).argmax()))


def _path_to(critical: CriticalPath, call: int) -> Ints:
    """The longest path that ends in a call."""
    calls = critical.flat.unrolled
    path = [call]
    while True:
        low, high = np.searchsorted(calls.target, [path[-1], path[-1] + 1])
        if low == high:
            return np.array(path[::-1], dtype=np.int64)
        before = calls.source[low:high]
        path.append(int(before[critical.call_finish[before].argmax()]))
