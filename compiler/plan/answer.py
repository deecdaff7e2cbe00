"""From ranked deployments to the plan."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, gcd
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..spec import ChainTerm, Spec, StrategySpec
from ..spec.pack_law import settled
from ..spec.strategy import Phase
from .frontier import grouped_skyband
from .joint import LAYERS, Options, Pairs, misses, pareto, ranking
from .layouts import ALLGATHER, KIND_NAMES, Layouts
from .result import Columns, Deployment, Miss, Numbers, Plan
from .space import Candidates

if TYPE_CHECKING:
    from .phase import Needs
    from .question import Question
    from .table import PhaseTable

Ints = NDArray[np.int64]
Tables = Mapping[Phase, "PhaseTable"]
PhaseOptions = Sequence[Mapping[tuple[Phase, bool], Options]]
"""Per batch, the options by phase and whether pools are separate."""

PARETO = 64
"""Most deployments of the Pareto frontier that are told."""


def answer(
    question: Question,
    tables: Tables,
    pairs: Pairs,
    options: PhaseOptions,
    *,
    complete: bool,
    counts: Tables | None = None,
) -> Plan:
    """The plan of a search.

    Args:
        question: What was asked.
        tables: Strategies of the phases.
        pairs: Deployments.
        options: What the deployments' columns number.
        complete: Whether the search came to its end.
        counts: Tables with the counts, where ``tables`` hold strategies that do not fit into memory.
    """
    work = question.spec.workload
    output = work.output if "decode" in question.phases else work.input
    factors = misses(pairs, work.require, work.rate, work.output)
    worst = np.max([np.ones(len(pairs)), *factors.values()], axis=0)
    feasible = np.flatnonzero(worst <= 1.0) if counts is None else np.zeros(0, dtype=np.int64)
    writer = _Writer(question, tables, pairs, options, factors, output)
    order = feasible[ranking(pairs[feasible], question.objective, question.per_gpu, output, work.rate)]
    front = _front(pairs, feasible, output)
    if not len(feasible):
        # the closest: by the requirement that is missed most, then by the objective
        order = ranking(pairs, question.objective, question.per_gpu, output, work.rate)
        order = order[np.argsort(worst[order], kind="stable")]
    order = leading(pairs, order, 4 * question.top)
    writer.remember(np.concatenate([front, order]))
    top = tuple(writer.distinct(order, question.top))
    chosen = top[0] if len(feasible) else None
    return Plan(
        objective=question.objective,
        spec=chosen_spec(question.spec, chosen, continuous=question.continuous),
        chosen=chosen,
        top=top,
        pareto=tuple(writer.deployment(int(i)) for i in front),
        counts={phase: table.counts for phase, table in (counts or tables).items()},
        pairs=len(pairs),
        tables={phase: _columns(table) for phase, table in tables.items()},
        runner_up=distance(question, top) if chosen else None,
        assumptions=tuple(question.assumptions),
        seconds=time.perf_counter() - question.began,
        bounds=question.bounds,
        complete=complete,
    )


def leading(pairs: Pairs, order: Ints, most: int) -> Ints:
    """The first ``most`` of ranked deployments, without those that few others of as many GPUs, shared or not, beat.

    Whatever beats another deployment in everything comes before it, so that the first tell about the first.
    """
    count = 8 * most
    while True:
        some = order[:count]
        band = grouped_skyband(
            2 * pairs.gpus[some] + pairs.separate[some],
            np.stack([pairs.ttft[some], pairs.tpot[some], -pairs.requests[some]]),
            LAYERS,
        )
        if len(band) >= most or len(some) == len(order):
            return np.asarray(some[band[:most]])
        count *= 8


def _front(pairs: Pairs, feasible: Ints, output: int) -> Ints:
    """The Pareto frontier of feasible deployments: that of the frontiers of each batch."""
    by_batch = np.split(feasible, np.flatnonzero(np.diff(pairs.options[feasible])) + 1)
    each = np.concatenate([part[pareto(pairs[part], output)] for part in by_batch])
    return each[pareto(pairs[each], output)][:PARETO]


class _Writer:
    """Turns numbers of deployments into deployments."""

    def __init__(
        self,
        question: Question,
        tables: Tables,
        pairs: Pairs,
        options: PhaseOptions,
        factors: Mapping[str, NDArray[np.float64]],
        output: int,
    ) -> None:
        self.question, self.tables, self.pairs, self.options = question, tables, pairs, options
        self.factors, self.output = factors, output
        self._shared: dict[tuple[int, int], Needs] = {}

    def deployment(self, index: int) -> Deployment:
        pairs, question = self.pairs, self.question
        separate = bool(pairs.separate[index])
        by_phase = self.options[int(pairs.options[index])]
        chosen = {phase: (by_phase[phase, separate], int(getattr(pairs, phase)[index])) for phase in question.phases}
        strategies = tuple(
            self._strategy(phase, int(o.strategy[i]), int(o.dp[i]), int(pairs.batch[index]), separate=separate)
            for phase, (o, i) in chosen.items()
        )
        requests = float(pairs.requests[index])
        numbers = Numbers(
            batch=int(pairs.batch[index]),
            gpus=int(pairs.gpus[index]),
            gpus_by_phase={phase: int(o.gpus[i]) for phase, (o, i) in chosen.items()},
            ttft_s=float(pairs.ttft[index]) if "prefill" in chosen else None,
            tpot_s=float(pairs.tpot[index]) if "decode" in chosen else None,
            requests_per_s=requests,
            tokens_per_s=requests * self.output,
            memory_bytes=self._memory(chosen, int(pairs.batch[index]), separate=separate),
            kv_transfer_s=float(pairs.transfer[index]),
        )
        return Deployment(strategies, separate, numbers, self._misses(index, numbers))

    def distinct(self, order: Ints, most: int) -> Iterator[Deployment]:
        """The first deployments, each once: replicas of a stage that share nothing are replicas of the pipeline."""
        told: set[tuple[object, ...]] = set()
        for index in order.tolist():
            if len(told) == most:
                return
            deployment = self.deployment(index)
            numbers = deployment.numbers
            figures = (numbers.ttft_s, numbers.tpot_s, numbers.requests_per_s, *numbers.memory_bytes.values())
            key = (
                deployment.separate, numbers.batch, numbers.gpus,
                *(f"{figure:.9e}" for figure in figures if figure is not None),
                *(key for phase in self.question.phases for key in self._splits(index, phase)),
            )  # fmt: skip
            if key not in told:
                told.add(key)
                yield deployment

    def _splits(self, index: int, phase: Phase) -> tuple[int, ...]:
        """How a phase is split, with replicas of the pipeline and independent parts of a stage taken together."""
        table = self.tables[phase]
        options = self.options[int(self.pairs.options[index])][phase, bool(self.pairs.separate[index])]
        option = int(getattr(self.pairs, phase)[index])
        strategy, dp = int(options.strategy[option]), int(options.dp[option])
        names = ("layout", "pp", "microbatches", "chunk")
        layout, pp, microbatches, chunk = (int(getattr(table.candidates, n)[strategy]) for n in names)
        d = table.costs.layouts.degrees(layout)
        apart = gcd(d.adp, d.edp) if self.question.spec.model.moe is not None else 1
        return (pp, microbatches, chunk * dp, dp * apart, d.ranks // apart, d.sp, d.tp, d.ep, d.etp,
                int(table.costs.layouts.kind[layout]))  # fmt: skip

    def _strategy(self, phase: Phase, index: int, dp: int, batch: int, *, separate: bool) -> StrategySpec:
        """A strategy as written; prompts of a continuous batch enter prefill one micro-batch after another."""
        table = self.tables[phase]
        strategy = strategy_spec(
            self.question.spec, phase, table.candidates, table.costs.layouts, index, dp, separate=separate
        )
        if self.question.continuous and phase == "prefill":
            strategy = strategy.model_copy(update={"microbatches": self._rounds(index, dp, batch)})
        return strategy

    def _rounds(self, index: int, dp: int, batch: int) -> int:
        """Micro-batches in which the sequences of a replica of a continuous batch pass through prefill."""
        return ceil(ceil(batch / dp) / int(self.tables["prefill"].candidates.batch[index]))

    def _memory(self, chosen: Mapping[Phase, tuple[Options, int]], batch: int, *, separate: bool) -> dict[Phase, float]:
        """Bytes of each phase's fullest GPU, as `compile` counts them."""
        rows = {p: int(o.strategy[i]) for p, (o, i) in chosen.items()}
        needs = {p: (t.alone if separate else t.needs)[[rows[p]]] for p, t in self.tables.items() if p in chosen}
        if self.question.continuous and not separate:
            row, dp = rows["prefill"], int(chosen["prefill"][0].dp[chosen["prefill"][1]])
            needs["prefill"] = self._beside(row, self._rounds(row, dp, batch))
        total = {p: float(need.total[0]) for p, need in needs.items()}
        if len(chosen) < 2:
            return total
        (first, i), (second, j) = chosen["prefill"], chosen["decode"]
        if separate or first.cache_code[i] != second.cache_code[j]:
            total["prefill"] = float(needs["prefill"].with_transfer[0])
        if not separate and first.weights_code[i] != second.weights_code[j]:
            total["prefill"] += float(needs["decode"].weights[0])
            total["decode"] += float(needs["prefill"].weights[0])
        return total

    def _beside(self, row: int, rounds: int) -> Needs:
        """Memory of a prefill strategy of a continuous batch on shared GPUs, with the caches of so many rounds."""
        if (row, rounds) not in self._shared:
            self._look_at([(row, rounds)])
        return self._shared[row, rounds]

    def remember(self, indices: Ints) -> None:
        """Find the memory of several deployments at once."""
        pairs, found = self.pairs, []
        if self.question.continuous:
            for index in indices[~pairs.separate[indices]].tolist():
                option = self.options[0]["prefill", False]
                row, dp = (int(c[pairs.prefill[index]]) for c in (option.strategy, option.dp))
                found.append((row, self._rounds(row, dp, int(pairs.batch[index]))))
        if found:
            self._look_at(list(dict.fromkeys(found)))

    def _look_at(self, rounds: Sequence[tuple[int, int]]) -> None:
        table, kept = self.tables["prefill"], self.question.kept("prefill")[1:]
        rows, times = (np.array(column) for column in zip(*rounds, strict=True))
        needs = table.costs.needs(table.candidates[rows], kept, times=(times,))[0]
        self._shared.update({key: needs[[place]] for place, key in enumerate(rounds)})

    def _misses(self, index: int, numbers: Numbers) -> tuple[Miss, ...]:
        require, rate = self.question.spec.workload.require, self.question.spec.workload.rate
        limits = {**require.model_dump(), "rate": rate}
        values = {
            "ttft": numbers.ttft_s,
            "tpot": numbers.tpot_s,
            "throughput": numbers.tokens_per_s,
            "throughput_per_gpu": numbers.tokens_per_s_per_gpu,
            "rate": numbers.requests_per_s,
        }
        found = [
            Miss(name, float(value), float(limit))
            for name, factor in self.factors.items()
            if factor[index] > 1 and (value := values[name]) is not None and (limit := limits[name]) is not None
        ]
        memory, capacity = max(numbers.memory_bytes.values()), self.question.hardware.memory
        if memory > capacity:
            found.append(Miss("memory", memory, capacity))
        return tuple(sorted(found, key=lambda m: -m.factor))


def strategy_spec(
    spec: Spec, phase: Phase, candidates: Candidates, layouts: Layouts, index: int, dp: int, *, separate: bool
) -> StrategySpec:
    """A strategy as the language says it: degrees of 1 and what follows from the built-in law are left out."""
    at = int(candidates.layout[index])
    d = layouts.degrees(at, pp=int(candidates.pp[index]), dp=dp)
    chain = [ChainTerm(name=name, degree=degree) for name, degree in (("dp", d.dp), ("pp", d.pp)) if degree > 1]
    if d.sp_on_tp:
        chain.append(ChainTerm(name="sp", kind="tp"))
    elif d.sp > 1:
        kind = int(layouts.kind[at])
        chain.append(ChainTerm(name="sp", degree=d.sp, kind=KIND_NAMES[kind] if kind != ALLGATHER else None))
    usual = 1 if d.ep > 1 else d.tp
    # A pack's law may read an open TP inside the experts in its own way.
    told = d.etp != usual or (spec.pack is not None and spec.pack.law.etp is not None)
    if d.ep > 1 or d.etp != usual:
        chain.append(ChainTerm(name="ep", degree=d.ep, etp=d.etp if told else None))
    if d.tp > 1:
        chain.append(ChainTerm(name="tp", degree=d.tp))
    strategy = StrategySpec(
        phase=phase,
        chain=tuple(chain),
        ranks=d.ranks if d.ranks != max(d.sp * d.tp, d.ep * d.etp) else None,
        microbatches=int(candidates.microbatches[index]),
        chunk=int(candidates.chunk[index]) or None,
        pools="separate" if separate else "shared",
    )
    return settled(spec, strategy)


def chosen_spec(spec: Spec, chosen: Deployment | None, *, continuous: bool) -> Spec:
    """The request with a deployment's strategies and batch; without any where there is none.

    Args:
        spec: The request.
        chosen: The deployment.
        continuous: Whether requests come and go one by one.
    """
    work = spec.workload.model_copy(update={"mode": "mixed"} if continuous else {})
    if chosen is None:
        return spec.model_copy(update={"strategies": (), "workload": work})
    work = work.model_copy(update={"batch": chosen.numbers.batch})
    return spec.model_copy(update={"strategies": chosen.strategies, "workload": work})


def distance(question: Question, top: Sequence[Deployment]) -> float | None:
    """How much worse the next best is in the figure that the objective looks at first; by tokens/s where that ties."""
    if len(top) < 2:
        return None
    first, second = (d.numbers for d in top[:2])
    if question.objective == "latency":
        a, b = (n.tpot_s if n.tpot_s is not None else n.ttft_s or 0.0 for n in (first, second))
        if b > a:
            return b / a - 1
    # More than what arrives is not served.
    rate = question.spec.workload.rate
    served = [n.tokens_per_s * min(1.0, rate / n.requests_per_s if rate else 1.0) for n in (first, second)]
    if question.per_gpu or question.objective == "balanced":
        return 1 - served[1] / second.gpus / (served[0] / first.gpus)
    return 1 - served[1] / served[0]


def _columns(table: PhaseTable) -> Columns:
    candidates, layouts = table.candidates, table.costs.layouts
    here = layouts[candidates.layout]
    return {
        "pp": candidates.pp,
        **{n: getattr(here, n) for n in ("ranks", "adp", "sp", "tp", "edp", "ep", "etp")},
        "sp_kind": here.kind,
        "replica_batch": candidates.batch,
        "microbatches": candidates.microbatches,
        "chunk": candidates.chunk,
        "seconds": table.seconds,
        "memory_bytes": table.alone.total,
    }
