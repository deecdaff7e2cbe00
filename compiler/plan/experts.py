"""The choice's experts under a measured load: how many are redundant, which rank holds which, what the load costs.

TTFT and TPOT of a plan are those of `compile`, which takes every slot to be equally likely. Under a measured load a
layer waits for its heaviest rank; the figures here replace the experts' time by that rank's and leave all else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...passes.analysis.stage_times import busiest_each, phase_latency, phase_servers
from ...passes.analysis.unroll import node_mask
from ..cost import NodeCost, node_costs, resolve_hardware
from ..cost.experts import Load
from ..cost.nodes import loaded_seconds, routed_tokens
from ..ir.graph import Block, Graph, Node
from ..spec import Spec, StrategySpec
from ..spec.expert_load import ExpertLoad
from ..spec.pack_law import degrees_in
from ..spec.strategy import Phase
from .arrangement import Arranger, Timing, shares_weights
from .balance import Dealt, balance, contiguous
from .result import Deployment, Numbers, Plan

Floats = NDArray[np.float64]

MULTIPLES = (0, 1, 2, 3, 4, 6, 8)
"""Redundant experts that are tried, in slots per rank."""

_TOO_LARGE = "does not fit into memory"

WORTHWHILE = 1e-3
"""Relative gain below which fewer redundant experts are as good."""


@dataclass(frozen=True)
class Tried:
    """A number of redundant experts.

    Attributes:
        redundant: The number.
        worst: Load of the heaviest rank over the mean, of the worst layer.
        mean: The same, mean over the layers.
        latency: TTFT or TPOT with the heaviest ranks' expert time, seconds.
        memory: Bytes of the phase's fullest GPU.
        verdict: Empty for the choice, else why it is not.
    """

    redundant: int
    worst: float
    mean: float
    latency: float
    memory: float
    verdict: str = ""


@dataclass(frozen=True)
class PhaseExperts:
    """Experts of one phase on its ranks.

    Attributes:
        ranks: Degree of EP: ranks that hold different experts.
        redundant: Redundant experts of the choice.
        before: Experts in their order, none redundant.
        after: Experts as dealt.
        plain: TTFT or TPOT with the load as it falls on ``before``, seconds.
        latency: The same on ``after``.
        tried: All numbers of redundant experts, ascending.
    """

    ranks: int
    redundant: int
    before: Dealt
    after: Dealt
    plain: float
    latency: float
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class ExpertPlan:
    """What a measured load makes of the choice.

    Attributes:
        load: The load.
        searched: The choice before any expert was redundant.
        phases: Phases with EP; empty where no rank holds other experts than another.
        plain: Figures with the load as it falls on experts in their order.
        numbers: Figures with the load on the experts as dealt.
    """

    load: ExpertLoad
    searched: Deployment
    phases: Mapping[Phase, PhaseExperts]
    plain: Numbers
    numbers: Numbers


def with_load(plan: Plan, spec: Spec, load: ExpertLoad) -> Plan:
    """The plan with its choice's experts replicated and dealt for a load; without a choice it stays as it is.

    Args:
        plan: The answer of a search.
        spec: What was asked.
        load: Measured load of the model's experts.
    """
    return plan if plan.chosen is None else _Dealer(plan, spec, load).plan_with_experts()


def as_searched(plan: Plan) -> Plan:
    """The plan before any expert was redundant: what a search without the load finds."""
    if plan.experts is None or plan.chosen is None:
        return plan
    before, now = plan.experts.searched, plan.chosen
    top, front = (tuple(before if d == now else d for d in ds) for ds in (plan.top, plan.pareto))
    spec = plan.spec.model_copy(update={"strategies": before.strategies})
    return replace(plan, experts=None, chosen=before, top=top, pareto=front, spec=spec)


class _Dealer:
    """Tries numbers of redundant experts on the choice of a plan."""

    def __init__(self, plan: Plan, asked: Spec, load: ExpertLoad) -> None:
        assert plan.chosen is not None
        self.plan, self.spec, self.load, self.choice = plan, asked, load, plan.chosen
        self.hardware, _ = resolve_hardware(asked.cluster, asked.model.dtype, pack=asked.pack)
        self.arranger = Arranger(asked, self.hardware, plan.objective, continuous=plan.continuous)
        spec = self.arranger.asked(self.choice)
        degrees = {s.phase: degrees_in(spec, s) for s in self.choice.strategies}
        self.ranks: dict[Phase, int] = {p: d.ep for p, d in degrees.items() if d.ep > 1}
        alike = shares_weights(spec)
        # Phases that share their weights share their slots.
        self.groups = [list(self.ranks)] if alike and self.ranks else [[p] for p in self.ranks]
        self.dealt: dict[tuple[int, int], Dealt] = {}

    def plan_with_experts(self) -> Plan:
        chosen, phases = self.choice, dict[Phase, PhaseExperts]()
        plain = {p: self._timing(chosen, p, contiguous(self.load.shares, n)) for p, n in self.ranks.items()}
        loaded: Mapping[Phase, Timing] = plain
        for group in self.groups:
            tried = self._attempts(chosen, group, loaded)
            best = self._best(tried)
            chosen, loaded = best.deployment, best.timings
            before = self.arranger.numbers(self.choice, plain)
            for phase in group:
                phases[phase] = self._phase(phase, tried, best, before)
        numbers = self.arranger.numbers
        found = ExpertPlan(self.load, self.choice, phases, numbers(self.choice, plain), numbers(chosen, loaded))
        if chosen is self.choice:
            return replace(self.plan, experts=found)
        now = [chosen if d == self.choice else d for d in (*self.plan.top, *self.plan.pareto)]
        top = len(self.plan.top)
        return replace(
            self.plan, experts=found, chosen=chosen, top=tuple(now[:top]), pareto=tuple(now[top:]),
            spec=self.arranger.asked(chosen),
        )  # fmt: skip

    def _attempts(self, chosen: Deployment, group: Sequence[Phase], loaded: Mapping[Phase, Timing]) -> list[_Attempt]:
        """All numbers of redundant experts up to the first that does not fit."""
        tried: list[_Attempt] = []
        for multiple in MULTIPLES:
            attempt = self._try(chosen, group, multiple, loaded)
            if attempt is None:
                break
            tried.append(attempt)
            if attempt.missed == _TOO_LARGE:
                break
        return tried

    def _try(
        self, chosen: Deployment, group: Sequence[Phase], multiple: int, loaded: Mapping[Phase, Timing]
    ) -> _Attempt | None:
        """The deployment with so many redundant experts per rank in some phases; None where that is too many."""
        redundant = multiple * self.ranks[group[0]]
        if redundant > self.load.shares.shape[1]:
            return None
        strategies = tuple(_with_redundant(s, redundant) if s.phase in group else s for s in chosen.strategies)
        moved = self.arranger.measured(replace(chosen, strategies=strategies), group) if redundant else chosen
        timings = {**loaded, **{p: self._timing(moved, p, self._deal(p, redundant)) for p in group}}
        missed = ""
        if max(moved.numbers.memory_bytes.values()) > self.hardware.memory:
            missed = _TOO_LARGE
        elif self.arranger.misses(moved.numbers):
            missed = "misses a requirement"
        numbers = self.arranger.numbers(moved, timings)
        return _Attempt(redundant, moved, timings, numbers, self.arranger.worth(numbers), missed)

    def _best(self, tried: Sequence[_Attempt]) -> _Attempt:
        """Of the attempts that are worth about the same, the one with the fewest redundant experts."""
        possible = [t for t in tried if not t.missed]
        best = min(possible, key=lambda t: t.worth)

        def close(one: _Attempt) -> bool:
            return all(a <= b + WORTHWHILE * abs(b) for a, b in zip(one.worth, best.worth, strict=True))

        return next(t for t in possible if close(t))

    def _deal(self, phase: Phase, redundant: int) -> Dealt:
        key = self.ranks[phase], redundant
        if key not in self.dealt:
            self.dealt[key] = balance(self.load.shares, *key)
        return self.dealt[key]

    def _timing(self, deployment: Deployment, phase: Phase, dealt: Dealt) -> Timing:
        """Seconds of a phase with the time of the heaviest rank's experts."""
        graph = self.arranger.graph(self.arranger.asked(deployment), phase)
        costs = node_costs(graph, self.hardware)
        model = self.spec.model
        assert model.moe is not None
        times = phase_servers(graph, costs).copy()
        for block, node in graph.nodes():
            if node.op == "expert":
                more = self._more_seconds(graph, block, node, costs[block.name, node.name], dealt, model.moe.top_k)
                for place, stage in enumerate(graph.stages_of(block, node).tolist()):
                    times[:, 2 * stage] += more[:, place]
        return Timing(phase_latency(graph, times), busiest_each(graph, times))

    def _more_seconds(self, graph: Graph, block: Block, node: Node, cost: NodeCost, dealt: Dealt, top_k: int) -> Floats:
        """[items, repetitions] seconds that the heaviest rank takes longer than under a uniform load."""
        shape = (graph.steps, len(graph.items), len(block.layers))
        usual = np.broadcast_to(np.asarray(cost.time, dtype=np.float64), shape)[0]
        known = [(place, self.load.layers.index(i)) for place, i in enumerate(block.layers) if i in self.load.layers]
        more = np.zeros(shape[1:])
        if known:
            places, rows = (list(column) for column in zip(*known, strict=True))
            extents = {name: value[..., None] for name, value in graph.extents().items()}
            tokens = np.broadcast_to(routed_tokens(graph, block, node, extents), (*shape[:2], 1))[0, :, 0]
            sizes, where = np.unique(tokens, return_inverse=True)
            load = slot_load(sizes, dealt.loads[rows], top_k)
            seconds = np.asarray(loaded_seconds(graph, block, node, self.hardware, load))
            more[:, places] = seconds.max(axis=2)[where.reshape(-1)] - usual[:, places]
        return np.where(node_mask(graph, node)[0][:, None], more, 0.0)

    def _phase(self, phase: Phase, tried: Sequence[_Attempt], best: _Attempt, plain: Numbers) -> PhaseExperts:
        rows = []
        for attempt in tried:
            imbalance = self._deal(phase, attempt.redundant).imbalance
            more = _figure(attempt.numbers, phase) / _figure(best.numbers, phase) - 1
            slower = f"{100 * more:.1f} % slower" if more > WORTHWHILE else f"not faster by {100 * WORTHWHILE:g} %"
            verdict = "" if attempt is best else attempt.missed or slower
            rows.append(
                Tried(
                    attempt.redundant, float(imbalance.max()), float(imbalance.mean()), _figure(attempt.numbers, phase),
                    attempt.deployment.numbers.memory_bytes[phase], verdict,
                )
            )  # fmt: skip
        ranks = self.ranks[phase]
        return PhaseExperts(
            ranks=ranks,
            redundant=best.redundant,
            before=contiguous(self.load.shares, ranks),
            after=self._deal(phase, best.redundant),
            plain=_figure(plain, phase),
            latency=_figure(best.numbers, phase),
            tried=tuple(rows),
        )


@dataclass(frozen=True)
class _Attempt:
    """A number of redundant experts with what comes of it."""

    redundant: int
    deployment: Deployment
    timings: Mapping[Phase, Timing]
    numbers: Numbers
    worth: tuple[float, ...]
    missed: str


def _figure(numbers: Numbers, phase: Phase) -> float:
    """TTFT or TPOT."""
    return (numbers.ttft_s if phase == "prefill" else numbers.tpot_s) or 0.0


def slot_load(tokens: Floats, shares: Floats, top_k: int) -> Load:
    """Rows of the slots of each rank, ``[tokens, layers, ranks]`` with the slots as groups of one expert.

    Args:
        tokens: Tokens that are routed, several counts of them.
        shares: [layers, ranks, slots] share of the routed rows that a slot takes.
        top_k: Experts that a token visits; it visits a slot once at most.
    """
    visited = np.minimum(top_k * shares, 1.0)
    count = tokens[:, None, None, None]
    hit = 1 - (1 - visited) ** count
    return Load(hit, count * top_k * shares / np.maximum(hit, 1e-12))


def _with_redundant(strategy: StrategySpec, redundant: int) -> StrategySpec:
    chain = tuple(t.model_copy(update={"redundant": redundant}) if t.name == "ep" else t for t in strategy.chain)
    return strategy.model_copy(update={"chain": chain})
