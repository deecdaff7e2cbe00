"""What a search answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from ..spec import Assumption, Spec, StrategySpec
from ..spec.strategy import Phase
from .space import Bounds

if TYPE_CHECKING:
    from .experts import ExpertPlan

Objective = Literal["latency", "throughput", "balanced"]
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "balanced")


@dataclass(frozen=True)
class Numbers:
    """What one deployment reaches.

    Attributes:
        batch: Sequences in flight over all replicas.
        gpus: GPUs of all pools.
        gpus_by_phase: GPUs of each phase.
        ttft_s: Seconds from the begin of prefill to the last request's first token; None without prefill.
        tpot_s: Seconds between a micro-batch's steps; None without decode.
        requests_per_s: Requests served, both phases taken together.
        tokens_per_s: Generated tokens per second served (prompt tokens where only prefill is planned).
        memory_bytes: Bytes of each phase's fullest GPU.
        kv_transfer_s: Seconds that the busiest rank sends the caches of a batch; 0 with shared pools of one layout.
    """

    batch: int
    gpus: int
    gpus_by_phase: Mapping[Phase, int]
    ttft_s: float | None
    tpot_s: float | None
    requests_per_s: float
    tokens_per_s: float
    memory_bytes: Mapping[Phase, float]
    kv_transfer_s: float = 0.0

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.tokens_per_s / self.gpus


@dataclass(frozen=True)
class Miss:
    """A requirement that a deployment misses.

    Attributes:
        constraint: ``memory``, ``ttft``, ``tpot``, ``throughput``, ``throughput_per_gpu`` or ``rate``.
        value: What it reaches: bytes, seconds, tokens per second (and GPU), requests per second.
        limit: What is required, in the same unit.
    """

    constraint: str
    value: float
    limit: float

    @property
    def factor(self) -> float:
        """By how much the requirement is missed; above 1."""
        upper = self.constraint in ("memory", "ttft", "tpot")
        return self.value / self.limit if upper else self.limit / max(self.value, 1e-300)


@dataclass(frozen=True)
class Deployment:
    """Strategies of the phases, and what they reach.

    Attributes:
        strategies: Prefill first.
        separate: Whether the phases have GPUs of their own.
        numbers: What it reaches.
        misses: Requirements missed, worst first; empty for a feasible one.
    """

    strategies: tuple[StrategySpec, ...]
    separate: bool
    numbers: Numbers
    misses: tuple[Miss, ...] = ()

    def strategy(self, phase: Phase) -> StrategySpec | None:
        return next((s for s in self.strategies if s.phase == phase), None)


@dataclass(frozen=True)
class PhaseCounts:
    """What happened to the strategies of a phase. Strategies are those of one replica.

    Attributes:
        considered: Strategies in the bounds of the search.
        pruned: Rule code to strategies that break it; one that breaks several counts for the first.
        memory: Strategies that alone need more than a GPU's memory.
        evaluated: Strategies whose latency was computed.
        sla: Evaluated strategies that alone miss a requirement on latency.
    """

    considered: int = 0
    pruned: Mapping[str, int] = field(default_factory=dict)
    memory: int = 0
    evaluated: int = 0
    sla: int = 0


Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Plan:
    """The best strategies and why.

    Attributes:
        objective: What was optimised.
        spec: The whole request with the chosen strategies and batch, as `compile` takes it; without any where nothing
            is feasible.
        chosen: The choice; None where nothing is feasible.
        top: The best deployments, the choice first; where nothing is feasible, the closest ones.
        pareto: Deployments that no other beats in TPOT, TTFT and tokens per second and GPU together, by TPOT.
        counts: By phase.
        pairs: Pairs of strategies that were compared as deployments.
        tables: By phase, columns of all strategies whose latency was computed.
        runner_up: Distance of the next best from the choice in the objective's first figure, as a share; None where
            there is none.
        assumptions: Everything taken for the user.
        seconds: Wall time of the search.
        bounds: Where the search of schedules stopped.
        complete: False where the search was interrupted: the best so far.
        experts: The choice's experts under a measured load, where one was given.
    """

    objective: Objective
    spec: Spec
    chosen: Deployment | None
    top: tuple[Deployment, ...]
    pareto: tuple[Deployment, ...]
    counts: Mapping[Phase, PhaseCounts]
    pairs: int
    tables: Mapping[Phase, Columns]
    runner_up: float | None
    assumptions: tuple[Assumption, ...]
    seconds: float
    bounds: Bounds
    complete: bool = True
    experts: ExpertPlan | None = None

    @property
    def continuous(self) -> bool:
        """Whether requests come and go one by one (``mode mixed``)."""
        return self.spec.workload.mode == "mixed"

    @property
    def feasible(self) -> bool:
        return self.chosen is not None

    @property
    def evaluated(self) -> int:
        """Strategies whose latency was computed, both phases."""
        return sum(c.evaluated for c in self.counts.values())
