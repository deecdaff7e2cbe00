"""The best arrangement of one deployment: order of axes and split of layers, in figures of its lowered graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, log
from typing import NamedTuple

from ...passes.analysis.memory import analyse_memory, weight_bytes
from ...passes.analysis.stage_times import Timed, busiest_each, phase_latency, phase_servers
from ...passes.validation import stage_layers
from ..build import build_items, cache_tokens, cached_sequences, needs_transfer, phase_mesh, pools_separate, two_layouts
from ..cost import Hardware, node_times
from ..cost.serving import settled_wait, steady_tpot, step_wait
from ..ir.graph import Graph
from ..spec import Spec, StrategySpec
from ..spec.strategy import Phase
from .answer import chosen_spec
from .lowered import lowered
from .orders import USUAL, Compared, Order, PhaseOrders, orders
from .result import Deployment, Miss, Numbers, Objective
from .splits import Split, SplitTimes, better_split

GAIN = 1e-6
"""Least relative gain for which something is written into a strategy."""

Worth = tuple[float, ...]
"""What figures are worth, smaller is better."""


class Timing(NamedTuple):
    """Seconds of a phase: of its schedule, and of the busiest stage or send per sequence."""

    latency: float
    each: float


class Arranger:
    """Finds arrangements of deployments of one request; strategies that several of them share are lowered once.

    Args:
        spec: The request, without strategies.
        hardware: GPUs and links.
        objective: What was optimised.
        continuous: Whether requests come and go one by one.
        context: Tokens per sequence of the costed decode step; default the usual middle of the generation.
    """

    def __init__(
        self,
        spec: Spec,
        hardware: Hardware,
        objective: Objective,
        *,
        continuous: bool,
        context: int | None = None,
    ) -> None:
        self.spec, self.hardware, self.objective, self.context = spec, hardware, objective, context
        self.continuous = continuous
        self.compared = 0
        self._graphs: dict[tuple[object, ...], Graph] = {}
        self._orders: dict[tuple[object, ...], tuple[PhaseOrders, Compared | None]] = {}
        self._timings: dict[tuple[object, ...], Timing] = {}
        self._splits: dict[tuple[object, ...], SplitTimes] = {}
        self._costed: dict[tuple[object, ...], Mapping[tuple[str, str], Timed]] = {}

    def improved(self, deployment: Deployment) -> Deployment:
        """The deployment in its best arrangement: itself where that is the usual one, or where it does not fit."""
        if any(m.constraint == "memory" for m in deployment.misses):
            return deployment
        return self._with_splits(self._with_orders(deployment))

    def asked(self, deployment: Deployment) -> Spec:
        """The request with a deployment's strategies and batch."""
        return chosen_spec(self.spec, deployment, continuous=self.continuous)

    def graph(self, spec: Spec, phase: Phase) -> Graph:
        """The lowered graph of a phase; how its layers are dealt to stages changes nothing else of it."""
        strategy = spec.strategy(phase)
        assert strategy is not None
        key = (_with_layers(strategy, ()), *_key(spec, phase)[1:])
        if key not in self._graphs:
            self._graphs[key] = lowered(spec, phase, self.context)
        return replace(self._graphs[key], stages=stage_layers(spec, phase))

    # --- orders of axes ---------------------------------------------------------------------------------------------

    def _with_orders(self, deployment: Deployment) -> Deployment:
        spec = self.asked(deployment)
        phases = [s.phase for s in deployment.strategies]
        if shares_weights(spec) and not _alike(spec):
            # Another order would lay the weights out twice: SP and attention DP share the ranks differently.
            return deployment
        options = {p: found for p in phases if (found := self._compared(spec, p)) is not None}
        compared = {p: c for p, (_, c) in options.items() if c is not None}
        if not compared:
            return deployment
        if _alike(spec):
            whole = {p: every for p, (o, _) in options.items() if (every := o.compare(whole=True)) is not None}
            common = set.intersection(*(set(c.latency) for c in whole.values()))
            tried = [dict.fromkeys(phases, o) for o in next(iter(whole.values())).latency if o in common]
        else:
            whole, tried = compared, []

        def numbers(order: Mapping[Phase, Order]) -> Numbers:
            timings = {p: Timing(whole[p].latency[o], whole[p].each[o]) for p, o in order.items() if p in whole}
            return self.numbers(deployment, timings)

        if not tried:
            # Apart from each other, each phase has its own best.
            own = {p: min(c.distinct, key=lambda o: self.worth(numbers({p: o}))) for p, c in whole.items()}
            tried = [own]
        best = min(tried, key=lambda order: self.worth(numbers(order)))
        if not self._gains(numbers(best), deployment.numbers):
            return deployment
        strategies = tuple(
            s if best.get(s.phase, USUAL) == USUAL else s.model_copy(update={"placement": best[s.phase]})
            for s in deployment.strategies
        )
        return self._judged(replace(deployment, strategies=strategies, numbers=numbers(best)))

    def _compared(self, spec: Spec, phase: Phase) -> tuple[PhaseOrders, Compared | None] | None:
        """The orders of a phase, and what they reach where one may be better; None where there is but one."""
        if len(orders(phase_mesh(spec, phase), self.hardware.domain)) == 1:
            return None
        key = _key(spec, phase)
        if key not in self._orders:
            own = PhaseOrders(spec, self.graph(spec, phase), self.hardware)
            self._orders[key] = own, own.compare()
            self.compared += own.ways if own.ways > 1 else 0
        return self._orders[key]

    # --- splits of layers -------------------------------------------------------------------------------------------

    def _with_splits(self, deployment: Deployment) -> Deployment:
        spec = self.asked(deployment)
        staged = [s.phase for s in deployment.strategies if s.degree("pp") > 1]
        together = staged and (_alike(spec) or shares_weights(spec))
        for phases in [staged] if together else [[p] for p in staged]:
            deployment = self._with_split(deployment, phases)
        return deployment

    def _with_split(self, deployment: Deployment, phases: Sequence[Phase]) -> Deployment:
        """The deployment with the best split that some phases have in common."""
        spec = self.asked(deployment)
        # A single item takes the sum of all stages, however they are cut.
        if not self.continuous and all(len(build_items(spec, p)) == 1 for p in phases):
            return deployment
        times = {p: self._split_times(spec, p) for p in phases}
        start = times[phases[0]].graph.stages

        def worth(split: Split) -> Worth:
            self.compared += 1
            timings = {p: Timing(t.latency(split), t.each(split)) for p, t in times.items()}
            return self.worth(self.numbers(deployment, timings))

        best = better_split(spec.model, start, worth, times[phases[-1]].slowest)
        if best == start:
            return deployment
        strategies = tuple(_with_layers(s, best) if s.phase in phases else s for s in deployment.strategies)
        timings = {p: Timing(t.latency(best), t.each(best)) for p, t in times.items()}
        found = self._weighed(replace(deployment, strategies=strategies), self.numbers(deployment, timings))
        fits = max(found.numbers.memory_bytes.values()) <= self.hardware.memory
        return self._judged(found) if fits and self._gains(found.numbers, deployment.numbers) else deployment

    def _split_times(self, spec: Spec, phase: Phase) -> SplitTimes:
        key = _key(spec, phase)
        if key not in self._splits:
            self._splits[key] = SplitTimes(self.graph(spec, phase), self._costs(spec, phase))
        return self._splits[key]

    def measured(self, deployment: Deployment, phases: Sequence[Phase]) -> Deployment:
        """The deployment with figures of its own lowered graphs: latency of some phases, and memory."""
        spec = self.asked(deployment)
        return self._weighed(deployment, self.numbers(deployment, {p: self.timing(spec, p) for p in phases}))

    def _weighed(self, deployment: Deployment, numbers: Numbers) -> Deployment:
        """The deployment with figures, and with the memory of its own lowered graphs."""
        spec, hardware = self.asked(deployment), self.hardware
        graphs = {s.phase: self.graph(spec, s.phase) for s in deployment.strategies}
        memory: dict[Phase, float] = {}
        for phase, graph in graphs.items():
            others = [g for p, g in graphs.items() if p != phase]
            other = max(weight_bytes(others[0])) if others and two_layouts(spec) else 0.0
            kept, cached = cache_tokens(spec, phase), cached_sequences(spec, phase)
            report = analyse_memory(graph, hardware.memory, kept, other_weights=other, cached=cached)
            memory[phase] = report.fullest.total
        return replace(deployment, numbers=replace(numbers, memory_bytes=memory))

    def timing(self, spec: Spec, phase: Phase) -> Timing:
        """Seconds of a phase as its lowered graph has them."""
        key = _key(spec, phase)
        if key not in self._timings:
            graph = self.graph(spec, phase)
            times = phase_servers(graph, self._costs(spec, phase))
            self._timings[key] = Timing(phase_latency(graph, times), busiest_each(graph, times))
        return self._timings[key]

    def _costs(self, spec: Spec, phase: Phase) -> Mapping[tuple[str, str], Timed]:
        """Seconds of a phase's nodes."""
        key = _key(spec, phase)
        if key not in self._costed:
            self._costed[key] = node_times(self.graph(spec, phase), self.hardware)
        return self._costed[key]

    # --- figures ----------------------------------------------------------------------------------------------------

    def numbers(self, deployment: Deployment, timings: Mapping[Phase, Timing]) -> Numbers:
        """The deployment's figures with other seconds of some phases."""
        n, work = deployment.numbers, self.spec.workload
        if self.continuous:
            ttft, tpot, requests = self._continuous(deployment, timings)
            tokens = requests * work.output
            return replace(n, ttft_s=ttft, tpot_s=tpot, requests_per_s=requests, tokens_per_s=tokens)
        first, step = n.ttft_s, n.tpot_s
        if "prefill" in timings:
            first = timings["prefill"].latency + self._queue(deployment, timings["prefill"])
        if "decode" in timings:
            step = timings["decode"].latency
        if first is not None and step is not None:
            decode = work.output * step
            busy = max(first, n.kv_transfer_s, decode) if deployment.separate else first + decode
        else:
            busy = first if first is not None else work.output * (step or 0.0)
        requests = n.batch / busy
        tokens = requests * (work.input if step is None else work.output)
        return replace(n, ttft_s=first, tpot_s=step, requests_per_s=requests, tokens_per_s=tokens)

    def _continuous(self, deployment: Deployment, timings: Mapping[Phase, Timing]) -> tuple[float, float, float]:
        """TTFT, TPOT and requests/s of a continuous batch, see :mod:`.continuous`."""
        spec, work, n = self.asked(deployment), self.spec.workload, deployment.numbers
        prefill, decode = (timings.get(p) or self.timing(spec, p) for p in ("prefill", "decode"))
        replicas = {s.phase: s.degree("dp") for s in deployment.strategies}
        turns = {s.phase: s.microbatches for s in deployment.strategies}
        ttft = prefill.latency + self._queue(deployment, prefill)
        if deployment.separate:
            size = ceil(ceil(n.batch / replicas["prefill"]) / turns["prefill"])
            sent = 1 / max(prefill.each, n.kv_transfer_s / size)
            served = n.batch / (work.output * decode.latency)
            return ttft, decode.latency, min(sent * replicas["prefill"], served)
        share = n.batch / replicas["decode"]
        tpot = float(steady_tpot(decode.latency, prefill.each, share, work.output))
        return ttft + float(step_wait(decode.latency, turns["decode"])), tpot, n.batch / (work.output * tpot)

    def _queue(self, deployment: Deployment, prefill: Timing) -> float:
        """Seconds that a prompt waits at the required rate; none where the queue grows without end."""
        rate, strategy = self.spec.workload.rate, deployment.strategy("prefill")
        if rate is None or strategy is None:
            return 0.0
        return float(settled_wait(prefill.each, rate / strategy.degree("dp")))

    def worth(self, numbers: Numbers) -> Worth:
        """What figures of one deployment are worth: first the requirement missed most, then the objective's.

        To twelve digits: the same sum in another order is the same.
        """
        return tuple(float(f"{figure:.11e}") for figure in self._figures(numbers))

    def _figures(self, numbers: Numbers) -> Worth:
        missed = max((m.factor for m in self.misses(numbers)), default=1.0)
        first = numbers.tpot_s if numbers.tpot_s is not None else numbers.ttft_s or 0.0
        # What pools of their own leave equal is decided by the latency that the objective does not look at.
        last = numbers.ttft_s or 0.0
        # More requests than arrive are not served.
        rate = self.spec.workload.rate
        tokens = numbers.tokens_per_s * (1.0 if rate is None else min(1.0, rate / numbers.requests_per_s))
        if self.objective == "latency":
            return missed, first, -tokens, last
        if self.objective == "balanced":
            return missed, log(first / tokens), last
        return missed, -tokens, first, last

    def _gains(self, numbers: Numbers, before: Numbers) -> bool:
        """Whether figures are better than others by more than rounding."""
        for mine, other in zip(self.worth(numbers), self.worth(before), strict=True):
            if abs(mine - other) > GAIN * abs(other):
                return mine < other
        return False

    def misses(self, numbers: Numbers) -> tuple[Miss, ...]:
        """The requirements that figures miss, worst first."""
        require, rate, output = self.spec.workload.require, numbers.requests_per_s, self._output
        limits = (
            ("ttft", numbers.ttft_s, require.ttft),
            ("tpot", numbers.tpot_s, require.tpot),
            ("throughput", rate * output, require.throughput),
            ("throughput_per_gpu", rate * output / numbers.gpus, require.throughput_per_gpu),
            ("rate", rate, self.spec.workload.rate),
        )
        found = [Miss(name, got, limit) for name, got, limit in limits if got is not None and limit is not None]
        return tuple(sorted((m for m in found if m.factor > 1), key=lambda m: -m.factor))

    @property
    def _output(self) -> int:
        return self.spec.workload.output

    def _judged(self, deployment: Deployment) -> Deployment:
        return replace(deployment, misses=self.misses(deployment.numbers))


def _key(spec: Spec, phase: Phase) -> tuple[object, ...]:
    """What a lowered phase depends on, within one request."""
    return spec.strategy(phase), spec.workload.batch, phase_mesh(spec, phase).first_rank, needs_transfer(spec)


def _alike(spec: Spec) -> bool:
    """Whether both phases lay the cache out alike on the same GPUs: it would move if they did not stay so."""
    return len(spec.strategies) == 2 and not needs_transfer(spec)


def shares_weights(spec: Spec) -> bool:
    """Whether both phases use the same weights on the same GPUs: they would be there twice if that did not stay so."""
    return len(spec.strategies) == 2 and not pools_separate(spec) and not two_layouts(spec)


def _with_layers(strategy: StrategySpec, split: Split) -> StrategySpec:
    chain = tuple(t.model_copy(update={"layers": split}) if t.name == "pp" else t for t in strategy.chain)
    return strategy.model_copy(update={"chain": chain})
