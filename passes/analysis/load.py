"""What the arrivals and the batch of a workload make of the latencies of its phases (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...compiler.cost.serving import arrival_wait, steady_tpot, step_wait
from ...compiler.ir.graph import Phase
from ...compiler.spec import Assumption, WorkloadSpec
from .phase import PhaseAnalysis
from .stage_times import busiest_each, server_times


def under_load(
    phases: Mapping[Phase, PhaseAnalysis], workload: WorkloadSpec, *, separate: bool
) -> dict[Phase, PhaseAnalysis]:
    """The analyses with their queue and their steady state, where the workload makes sense of them.

    Args:
        phases: Analyses of one strategy.
        workload: Lengths, batch and, for a queue, the rate of arrivals.
        separate: Whether the phases have GPUs of their own, so that prompts do not stall decodes.
    """
    prefill, decode, mixed = phases.get("prefill"), phases.get("decode"), workload.mode == "mixed"
    found = {phase: replace(analysis, mixed=mixed) for phase, analysis in phases.items()}
    each = prompt_seconds(prefill) if prefill is not None else 0.0
    if prefill is not None:
        waits = []
        if workload.rate is not None:
            waits.append(float(arrival_wait(each, workload.rate / prefill.graph.mesh.dp)))
        if mixed and decode is not None and not separate:
            waits.append(step_wait(decode.latency, len(decode.graph.items)))
        found["prefill"] = replace(found["prefill"], per_prompt=each, queue=sum(waits) if waits else None)
    if prefill is not None and decode is not None:
        stall = 0.0 if separate else each
        steady = float(steady_tpot(decode.latency, stall, sequences(decode), workload.output))
        found["decode"] = replace(found["decode"], steady=steady)
    return found


def mixed_assumptions(*, separate: bool) -> list[Assumption]:
    """What ``mode mixed`` takes for granted, for the report."""
    made = [
        Assumption(
            "prompts",
            "arrive evenly, one micro-batch after another",
            "the prefill DAG is one micro-batch; a burst of requests would queue, which TTFT leaves out",
        )
    ]
    if not separate:
        made.append(
            Assumption(
                "prompts and decodes",
                "take turns on the GPUs",
                "TPOT is the decode step and its share of other prompts; TTFT waits for half of the step that runs; "
                "running both in one step would save the second reading of the weights",
            )
        )
    return made


def prompt_seconds(prefill: PhaseAnalysis) -> float:
    """Seconds of the slowest stage or send that one prompt takes: what each further prompt costs a full pipeline."""
    return busiest_each(prefill.graph, server_times(prefill.graph, prefill.costs)[0])


def sequences(analysis: PhaseAnalysis) -> int:
    """Sequences of one replica, over all its micro-batches."""
    return sum(item.batch for item in analysis.graph.items if item.first)
