"""All analyses of one phase, in one typed result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

from ...compiler.cost import Hardware, NodeCost, node_costs
from ...compiler.ir.flat import FlatGraph
from ...compiler.ir.graph import Graph
from .communication import Traffic, analyse_communication
from .critical_path import CriticalPath, critical_path, seconds_by_bound
from .flatten import flatten
from .memory import MemoryReport, analyse_memory
from .stage_times import prefill_seconds, step_interval
from .transfer import TransferPlan, send_costs
from .unroll import unroll
from .utilization import Utilization, analyse_utilization


@dataclass(frozen=True)
class PhaseAnalysis:
    """A lowered phase and what is known of it.

    Attributes:
        graph: The lowered graph.
        hardware: What it runs on.
        costs: Per (block, node).
        flat: The flat graph, expanded over step, item, layer, adp, sp, edp and ep (over ranks if asked).
        critical: Critical path of the flat graph.
        memory: Memory per stage.
        traffic: Communication.
        latency: Seconds of the DAG's schedule: to the last first token (prefill), from step to step (decode). Nothing
            queues.
        queue: Prefill: mean seconds that a request waits for its turn, infinite where more arrive than are served.
            None where nothing is said of arrivals.
        steady: Decode: seconds per token of the steady continuous batch, prompts of others included. None where
            prefill is not known.
        mixed: Whether prompts arrive one micro-batch after another (``mode mixed``) and, on shared GPUs, take turns
            with decode steps: the steady figure is what a request sees.
        per_prompt: Prefill: seconds of the slowest stage or send that each further prompt takes. None where it was
            not asked for.
    """

    graph: Graph
    hardware: Hardware
    costs: Mapping[tuple[str, str], NodeCost]
    flat: FlatGraph
    critical: CriticalPath
    memory: MemoryReport
    traffic: tuple[Traffic, ...]
    latency: float
    queue: float | None = None
    steady: float | None = None
    mixed: bool = False
    per_prompt: float | None = None

    @property
    def loaded_latency(self) -> float:
        """TTFT or TPOT that a request sees: with its wait for its turn, and the prompts of others in a mixed batch.

        Where the queue grows without end it is left out.
        """
        if self.mixed and self.steady is not None:
            return self.steady
        waits = self.queue is not None and isfinite(self.queue)
        return self.latency + (self.queue or 0.0 if waits else 0.0)

    @cached_property
    def utilization(self) -> Utilization:
        """How much of the machine the phase uses, and what its ranks do meanwhile."""
        return analyse_utilization(self)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over all replicas: prompt tokens in prefill, generated tokens in decode."""
        firsts = [i for i in self.graph.items if i.first]
        if self.graph.phase == "decode":
            return self.graph.mesh.dp * sum(i.batch for i in firsts) / self.loaded_latency
        if self.mixed and self.per_prompt:
            return self.graph.mesh.dp * sum(i.new for i in self.graph.items) / self.per_prompt
        return self.graph.mesh.dp * sum(i.batch * i.new for i in self.graph.items) / self.latency


def analyse_phase(
    graph: Graph,
    hardware: Hardware,
    context: int,
    *,
    other_weights: float = 0.0,
    cached: Sequence[int] | None = None,
    expand_ranks: bool = False,
    transfer: TransferPlan | None = None,
) -> PhaseAnalysis:
    """Costs, flat graph, critical path, memory and communication of a lowered graph.

    Args:
        graph: Graph at level ``tp``.
        hardware: GPU and links.
        context: Tokens per sequence that the KV cache must hold.
        other_weights: Weights of the other phase on the same GPUs, bytes.
        cached: Sequences of each micro-batch whose caches lie there at once; default the graph's.
        expand_ranks: Split compute nodes over tp and etp too.
        transfer: What the KV sends of prefill really move; without it they count all that a rank holds.
    """
    sends = send_costs(transfer, graph, hardware) if transfer else {}
    costs = node_costs(graph, hardware) | {key: send.cost for key, send in sends.items()}
    flat = flatten(unroll(graph), costs, expand_ranks=expand_ranks)
    latency = prefill_seconds(graph, costs) if graph.phase == "prefill" else step_interval(graph, costs)
    return PhaseAnalysis(
        graph=graph,
        hardware=hardware,
        costs=costs,
        flat=flat,
        critical=critical_path(flat),
        memory=analyse_memory(graph, hardware.memory, context, other_weights=other_weights, cached=cached),
        traffic=analyse_communication(graph, costs, hardware, sends),
        latency=latency,
    )


def time_by_bound(analysis: PhaseAnalysis) -> dict[str, float]:
    """Seconds of the phase's critical path by what binds its nodes."""
    return seconds_by_bound(analysis.critical, analysis.costs)
