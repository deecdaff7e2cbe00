"""Sections 3 and 4: what was considered and dropped, and how the best compare."""

from __future__ import annotations

from collections.abc import Sequence

from ...knowledge import rules
from ...spec.pack import Pack
from ..result import Deployment, PhaseCounts
from ..space import Bounds
from ._facts import Facts
from ._format import rate, seconds, size, strategy_text, table
from ._pack import pack_lines, pack_rules

PLOT = "pareto.svg"
"""Name of the plot's file."""

_WHY = {
    "law": "the GPU-count law does not admit the layout of the stage",
    "memory": "weights, KV cache, activations and buffers of a replica are more than a GPU holds",
}


def candidates(facts: Facts) -> list[str]:
    """What was considered, what was eliminated by which rule, what is left."""
    plan, work = facts.plan, facts.loaded.spec.workload
    lines = [
        "## 3. Candidates",
        "",
        "Considered are, for each phase: every number of pipeline stages and replicas (DP) that the GPUs allow; every "
        "layout of a stage of R GPUs with R = adp * sp * tp = edp * ep * etp in whole numbers, SP in prefill only, "
        f"also on the TP group; {_schedules(facts, facts.plan.bounds)}.",
        "",
    ]
    if len(plan.counts) == 2:
        alike = ", in one layout of the weights," if plan.continuous else ""
        lines += [f"Both phases on the same GPUs{alike} and each on GPUs of its own are compared.", ""]
    pack = facts.loaded.spec.pack
    lines += pack_lines(pack)
    rows: list[Sequence[str]] = []
    for phase, counts in plan.counts.items():
        rows += [(phase, *row) for row in _eliminated(counts, pack)]
    lines += table(("phase", "rule", "why", "strategies"), rows, right=("strategies",))
    late = [(p, c.sla) for p, c in plan.counts.items() if c.sla]
    for phase, count in late:
        limit = work.require.ttft if phase == "prefill" else work.require.tpot
        name, code = ("TTFT", "PD302") if phase == "prefill" else ("TPOT", "PD303")
        lines += [f"Of those evaluated in {phase}, {count:,} alone miss the {name} of {seconds(limit)} ({code}).", ""]
    return [
        *lines,
        f"Strategies here are those of one replica; one that breaks several rules counts for the first. "
        f"{plan.pairs:,} deployments (strategies of the phases with replicas) were left to compare after those that "
        "another beats in everything.",
        "",
    ]


def _schedules(facts: Facts, bounds: Bounds) -> str:
    """How the work of a replica was cut in the strategies considered."""
    chunks = (
        f"in prefill chunks in powers of {bounds.chunk_step} from {bounds.least_chunk} tokens, up to {bounds.trips} "
        "trips through the pipeline"
    )
    if facts.continuous:
        return (
            "requests come and go one by one: prompts enter prefill in micro-batches of powers of two; sequences "
            f"decode in as many micro-batches as stages or twice as many; {chunks}"
        )
    return f"micro-batches in powers of two, and those times the stages, up to {bounds.microbatches}; {chunks}"


def _eliminated(counts: PhaseCounts, pack: Pack | None) -> list[tuple[str, str, str]]:
    known, places = rules(), pack_rules(pack)
    rows = [("-", "considered", f"{counts.considered:,}")]
    for code, count in counts.pruned.items():
        why = known[code].title if code in known else places.get(code) or _WHY.get(code, code)
        rows.append(("-" if code in _WHY else code, f"eliminated: {why}", f"{count:,}"))
    if counts.memory:
        rows.append(("PD301", f"eliminated: {_WHY['memory']}", f"{counts.memory:,}"))
    return [*rows, ("-", "evaluated: latency computed", f"{counts.evaluated:,}")]


# --- performance --------------------------------------------------------------------------------------------------

_FIGURES = ("batch", "GPUs", "TTFT", "TPOT", "requests/s", "tokens/s", "tokens/s per GPU", "memory")


def performance(facts: Facts) -> list[str]:
    """The best side by side, and the Pareto frontier."""
    plan = facts.plan
    lines = ["## 4. Performance", ""]
    if not plan.top:
        return [*lines, "Nothing to compare: no legal strategy fits into memory.", ""]
    feasible = (
        "The best deployments, the choice first" if plan.feasible else "The closest deployments; none is feasible"
    )
    lines += [f"{feasible}:", "", *_compared(plan.top)]
    if plan.pareto:
        lines += [
            "The Pareto frontier: no feasible deployment beats one of these in TPOT, TTFT and tokens per second and "
            f"GPU together ([plot]({PLOT})).",
            "",
            *_compared(plan.pareto, plan.chosen),
        ]
    return lines


def _compared(deployments: Sequence[Deployment], chosen: Deployment | None = None) -> list[str]:
    rows = []
    for number, deployment in enumerate(deployments, 1):
        n = deployment.numbers
        mark = " (choice)" if chosen is not None and deployment == chosen else ""
        gpus = str(n.gpus)
        if deployment.separate:
            gpus += " = " + " + ".join(str(g) for g in n.gpus_by_phase.values())
        rows.append((
            f"{number}{mark}",
            *(strategies(deployment)),
            str(n.batch), gpus, seconds(n.ttft_s), seconds(n.tpot_s), rate(n.requests_per_s),
            rate(n.tokens_per_s), rate(n.tokens_per_s_per_gpu),
            size(max(n.memory_bytes.values())),
        ))  # fmt: skip
    phases = [s.phase for s in deployments[0].strategies]
    pools = ["pools"] if len(phases) == 2 else []
    return table(("#", *phases, *pools, *_FIGURES), rows, right=_FIGURES)


def strategies(deployment: Deployment) -> list[str]:
    """Cells: each phase's strategy, and the kind of pools where there are two phases."""
    cells = [f"`{strategy_text(s)}`" for s in deployment.strategies]
    return [*cells, "separate" if deployment.separate else "shared"] if len(cells) == 2 else cells
