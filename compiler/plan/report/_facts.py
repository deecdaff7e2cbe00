"""What a report says of a deployment beyond the search's figures: its lowered phases, as `compile` would see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ....passes.analysis import TransferPlan, plan_transfer
from ....passes.analysis.communication import Traffic, analyse_communication
from ....passes.analysis.load import mixed_assumptions
from ....passes.analysis.memory import MemoryReport, analyse_memory, weight_bytes
from ....passes.analysis.stage_times import prefill_seconds, server_times, step_interval
from ....passes.analysis.transfer import send_costs
from ....passes.analysis.unroll import node_mask
from ....passes.validation import check_spec
from ...build import (
    batch_items,
    cache_tokens,
    cached_sequences,
    decode_context,
    needs_transfer,
    two_layouts,
)
from ...cost import Hardware, NodeCost, node_costs, resolve_hardware
from ...cost.nodes import BOUNDS
from ...diagnostics import Diagnostic
from ...ir.graph import Graph
from ...spec import Assumption, LoadedSpec, Spec, StrategySpec
from ...spec.pack_law import degrees_in, stated
from ...spec.stage_law import Degrees
from ...spec.strategy import Phase
from ..lowered import lowered
from ..result import Deployment, Plan
from .sensitivity import CONTEXT, Sensitivity

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PhaseFacts:
    """A phase of a deployment, lowered and costed.

    Attributes:
        strategy: Its strategy.
        degrees: The strategy's degrees.
        graph: Its lowered graph.
        costs: Per (block, node).
        memory: Per stage.
        traffic: Communication.
        latency: Seconds of the phase's schedule; TTFT and TPOT where the batch is worked off as a whole.
    """

    strategy: StrategySpec
    degrees: Degrees
    graph: Graph
    costs: Mapping[tuple[str, str], NodeCost]
    memory: MemoryReport
    traffic: tuple[Traffic, ...]
    latency: float

    @property
    def phase(self) -> Phase:
        return self.strategy.phase

    def seconds_by(self, what: str) -> dict[str, float]:
        """Busy seconds of all trips through the pipeline, by ``bound`` or by ``module``; the largest first."""
        totals: dict[str, float] = {}
        shape = (self.graph.steps, len(self.graph.items))
        for block, node in self.graph.nodes():
            cost = self.costs[block.name, node.name]
            mask = node_mask(self.graph, node)[..., None]
            full = (*shape, max(1, len(block.layers)))
            time = np.where(mask, np.broadcast_to(np.asarray(cost.time, dtype=np.float64), full), 0.0)
            bounds = np.broadcast_to(np.asarray(cost.bound, dtype=np.int64), full)
            if what == "bound":
                for number, name in enumerate(BOUNDS):
                    totals[name] = totals.get(name, 0.0) + float(time[bounds == number].sum())
            else:
                totals[node.module] = totals.get(node.module, 0.0) + float(time.sum())
        used = {name: value for name, value in totals.items() if value > 0}
        return dict(sorted(used.items(), key=lambda entry: (-entry[1], entry[0])))

    def work(self) -> tuple[float, float]:
        """FLOPs and HBM bytes of the fullest rank of each stage, summed over stages and all trips."""
        sums = [0.0, 0.0]
        for block, node in self.graph.nodes():
            cost = self.costs[block.name, node.name]
            mask = node_mask(self.graph, node)[..., None]
            full = (*mask.shape[:2], max(1, len(block.layers)))
            for place, value in enumerate((cost.flops, cost.hbm_bytes)):
                sums[place] += float(
                    np.where(mask, np.broadcast_to(np.asarray(value, dtype=np.float64), full), 0).sum()
                )
        return sums[0], sums[1]

    def stage_seconds(self) -> Floats:
        """[stages] busy seconds of each stage, all trips."""
        return np.asarray(server_times(self.graph, self.costs)[0][:, : 2 * len(self.graph.stages) - 1 : 2].sum(axis=0))


@dataclass(frozen=True)
class Facts:
    """Everything that a report is written from.

    Attributes:
        plan: The search's answer.
        loaded: The request.
        hardware: The cluster's figures.
        subject: The choice, or the closest deployment where nothing is feasible; None where nothing fits at all.
        spec: The request with the subject's strategies and batch.
        phases: The subject's phases, prefill first.
        transfer: How the cache moves between them, where it does.
        findings: What the legality rules find on the subject.
        sensitivity: How the choice answers to moved assumptions.
    """

    plan: Plan
    loaded: LoadedSpec
    hardware: Hardware
    subject: Deployment | None
    spec: Spec
    phases: Mapping[Phase, PhaseFacts]
    transfer: TransferPlan | None
    findings: tuple[Diagnostic, ...]
    sensitivity: Sensitivity

    @property
    def continuous(self) -> bool:
        """Whether requests come and go one by one, so that prompts enter prefill a few at a time."""
        return self.plan.continuous

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """The plan's, and what `compile` states besides of such strategies."""
        made = [*self.plan.assumptions, *stated(self.loaded.spec.pack)]
        if "decode" in self.phases:
            context = decode_context(self.spec)
            why = "costs use input + output / 2, the middle of the generation; memory uses input + output"
            made.append(Assumption(CONTEXT, f"{context} tokens at the costed step", why))
        if self.continuous and self.subject is not None:
            made += mixed_assumptions(separate=self.subject.separate)
        if self.spec.model.moe is not None:
            why = "no load given: every expert slot is equally likely"
            if self.plan.experts is not None:
                why = "in every figure but those that section 7 states for the given load"
            made.append(Assumption("expert load", "uniform", why))
        known: dict[str, Assumption] = {}
        for assumption in made:
            known.setdefault(assumption.name, assumption)
        return tuple(known.values())

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return tuple(d for d in self.findings if d.is_error)


def gather(plan: Plan, loaded: LoadedSpec, sensitivity: Sensitivity) -> Facts:
    """The facts of a plan's choice, or of the closest deployment where nothing is feasible."""
    hardware, _ = resolve_hardware(loaded.spec.cluster, loaded.spec.model.dtype, pack=loaded.spec.pack)
    subject = plan.chosen or (plan.top[0] if plan.top else None)
    if subject is None:
        return Facts(plan, loaded, hardware, None, plan.spec, {}, None, (), sensitivity)
    work = plan.spec.workload.model_copy(update={"batch": subject.numbers.batch})
    spec = plan.spec.model_copy(update={"strategies": subject.strategies, "workload": work})
    graphs = {s.phase: lowered(spec, s.phase) for s in spec.strategies}
    transfer = None
    if needs_transfer(spec):
        whole = replace(graphs["prefill"], items=batch_items(spec, "prefill"))
        transfer = plan_transfer(whole, graphs["decode"], spec.workload.batch)
    phases = {phase: _phase(spec, phase, graphs, hardware, transfer) for phase in graphs}
    findings = check_spec(replace(loaded, spec=spec, sources={}))[1]
    return Facts(plan, loaded, hardware, subject, spec, phases, transfer, tuple(findings), sensitivity)


def model_bytes(spec: Spec) -> float:
    """Bytes of one undistributed copy of the weights."""
    alone = spec.model_copy(update={"strategies": (StrategySpec(phase="decode"),)})
    alone = alone.model_copy(update={"workload": spec.workload.model_copy(update={"batch": 1})})
    return float(sum(weight_bytes(lowered(alone, "decode"))))


def _phase(
    spec: Spec, phase: Phase, graphs: Mapping[Phase, Graph], hardware: Hardware, transfer: TransferPlan | None
) -> PhaseFacts:
    graph, strategy = graphs[phase], spec.strategy(phase)
    assert strategy is not None
    sends = send_costs(transfer, graph, hardware) if transfer else {}
    costs = node_costs(graph, hardware) | {key: send.cost for key, send in sends.items()}
    others = [g for p, g in graphs.items() if p != phase]
    other = max(weight_bytes(others[0])) if others and two_layouts(spec) else 0.0
    return PhaseFacts(
        strategy=strategy,
        degrees=degrees_in(spec, strategy),
        graph=graph,
        costs=costs,
        memory=analyse_memory(
            graph,
            hardware.memory,
            cache_tokens(spec, phase),
            other_weights=other,
            cached=cached_sequences(spec, phase),
        ),
        traffic=analyse_communication(graph, costs, hardware, sends),
        latency=prefill_seconds(graph, costs) if phase == "prefill" else step_interval(graph, costs),
    )
