"""What the arrivals and the batch of a workload make of the latencies of its phases (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...compiler.cost.serving import arrival_wait, steady_tpot
from ...compiler.ir.graph import Phase
from ...compiler.spec import WorkloadSpec
from .phase import PhaseAnalysis
from .stage_times import server_times


def under_load(
    phases: Mapping[Phase, PhaseAnalysis], workload: WorkloadSpec, *, separate: bool
) -> dict[Phase, PhaseAnalysis]:
    """The analyses with their queue and their steady state, where the workload makes sense of them.

    Args:
        phases: Analyses of one strategy.
        workload: Lengths, batch and, for a queue, the rate of arrivals.
        separate: Whether the phases have GPUs of their own, so that prompts do not stall decodes.
    """
    found = dict(phases)
    prefill, decode = phases.get("prefill"), phases.get("decode")
    if prefill is not None and workload.rate is not None:
        wait = float(arrival_wait(prompt_seconds(prefill), workload.rate / prefill.graph.mesh.dp))
        found["prefill"] = replace(prefill, queue=wait)
    if prefill is not None and decode is not None:
        stall = 0.0 if separate else prompt_seconds(prefill)
        steady = float(steady_tpot(decode.latency, stall, sequences(decode), workload.output))
        found["decode"] = replace(decode, steady=steady)
    return found


def prompt_seconds(prefill: PhaseAnalysis) -> float:
    """Seconds of the slowest stage or send that one prompt takes: what each further prompt costs a full pipeline."""
    busy = server_times(prefill.graph, prefill.costs)[0].sum(axis=0)
    return float(np.max(busy)) / sequences(prefill)


def sequences(analysis: PhaseAnalysis) -> int:
    """Sequences of one replica, over all its micro-batches."""
    return sum(item.batch for item in analysis.graph.items if item.first)
