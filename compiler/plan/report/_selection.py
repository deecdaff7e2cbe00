"""Sections 5 and 6: what was chosen and why, and that it is feasible."""

from __future__ import annotations

from collections.abc import Iterator

from ....passes.validation import PHASE_RULES, SPEC_RULES
from ...build import two_layouts
from ...knowledge import rules
from ..joint import TOLERANCE
from ..result import Deployment, Miss
from ._facts import Facts, PhaseFacts
from ._format import counted, percent, rate, seconds, size, strategy_text, table
from .sensitivity import objective_figure

_NAMES = {
    "memory": "memory of the fullest GPU",
    "ttft": "TTFT",
    "tpot": "TPOT",
    "throughput": "throughput",
    "throughput_per_gpu": "throughput per GPU",
    "rate": "served rate",
}


def selection(facts: Facts) -> list[str]:
    """The choice, why it is the choice, how far the next is; or the closest and what binds."""
    plan = facts.plan
    lines = ["## 5. Selection", ""]
    if plan.chosen is None:
        return [*lines, *_nothing(facts)]
    for strategy in plan.chosen.strategies:
        lines.append(f"- **{strategy.phase}**: `{strategy_text(strategy)}`")
    n = plan.chosen.numbers
    pools = "in pools of their own" if plan.chosen.separate else "shared by both phases"
    where = f", {pools}" if len(plan.chosen.strategies) == 2 else ""
    spare = -n.gpus % facts.loaded.spec.cluster.gpus_per_node if facts.loaded.spec.cluster.nodes is None else 0
    left = f" ({counted(spare, 'GPU')} of the last node left to other work)" if spare else ""
    lines += [f"- **GPUs**: {n.gpus}{where}{left}; **batch**: {n.batch} sequences in flight", ""]
    lines += [f"Objective: {_objective(facts)}.", ""]
    if not plan.complete:
        lines += ["The search was interrupted: this is the best so far.", ""]
    return [*lines, *_next_best(facts)]


def choice_lines(chosen: Deployment) -> list[str]:
    """The choice and its figures, as plain text."""
    n = chosen.numbers
    pools = f" ({' + '.join(map(str, n.gpus_by_phase.values()))})" if chosen.separate else ""
    where = f"{counted(n.gpus, 'GPU')}{pools}, batch {n.batch}"
    return [
        *(f"{s.phase}: {strategy_text(s)}" for s in chosen.strategies),
        f"{where}: TTFT {seconds(n.ttft_s)}, TPOT {seconds(n.tpot_s)}",
        f"{rate(n.tokens_per_s)} tokens/s, {rate(n.tokens_per_s_per_gpu)} per GPU",
    ]


def _objective(facts: Facts) -> str:
    plan = facts.plan
    if plan.objective == "latency":
        first = "TTFT" if facts.plan.chosen is not None and facts.plan.chosen.numbers.tpot_s is None else "TPOT"
        return f"latency: the smallest {first}, then the most tokens/s, then the fewest GPUs"
    if plan.objective == "balanced":
        return "balanced: the deployment nearest to having both the best latency and the best tokens/s per GPU"
    met = "among the deployments that meet every requirement"
    if facts.loaded.spec.cluster.nodes is None:
        return f"throughput: the most tokens/s per GPU {met}, then the fewest GPUs"
    return f"throughput: the most tokens/s {met}; within {100 * TOLERANCE:g} % of the best the fewest GPUs"


def _next_best(facts: Facts) -> list[str]:
    plan = facts.plan
    if plan.chosen is None or len(plan.top) < 2:
        return ["No second feasible deployment was kept to compare with.", ""]
    # Redundant experts answer a load that the other deployments were not planned for.
    chosen = plan.chosen if plan.experts is None else plan.experts.searched
    other = plan.top[1]
    name, first, more = objective_figure(plan, chosen.numbers)
    second = objective_figure(plan, other.numbers)[1]
    worse = (1 - second / first) if more else (second / first - 1)
    worse = 0.0 if abs(worse) < _EVEN else worse
    if worse:
        text = f"The next best is {100 * abs(worse):.2g} % {'worse' if worse > 0 else 'better'} in {name}"
    elif _figures(chosen) == _figures(other):
        text = "The next best reaches the same in every figure"
    else:
        text = f"The next best ties in {name}, and what the objective looks at next decides"
    reason = ""
    if worse < 0 and plan.objective == "throughput":
        rate_given = facts.spec.workload.rate is not None
        why = "more than what arrives is not served" if rate_given else f"within the tolerance of {100 * TOLERANCE:g} %"
        reason = f", {why}, and takes more GPUs"
    lines = [f"{text}{reason}. It differs in:", ""]
    return [*lines, *(f"- {what}" for what in _differences(chosen, other)), ""]


def _differences(one: Deployment, other: Deployment) -> Iterator[str]:
    for a, b in zip(one.strategies, other.strategies, strict=True):
        if strategy_text(a) != strategy_text(b):
            yield f"{a.phase}: `{strategy_text(b)}` instead of `{strategy_text(a)}`"
    if one.separate != other.separate:
        yield "pools: separate instead of shared" if other.separate else "pools: shared instead of separate"
    a_, b_ = one.numbers, other.numbers
    if a_.batch != b_.batch:
        yield f"batch: {b_.batch} instead of {a_.batch}"
    for name, x, y in zip(_FIGURES, _figures(one), _figures(other), strict=True):
        if x != y:
            yield f"{name}: {y} instead of {x}"


_EVEN = 1e-9
"""Relative distance below which figures are the same but for rounding."""

_FIGURES = ("GPUs", "TTFT", "TPOT", "tokens/s")


def _figures(deployment: Deployment) -> tuple[str, ...]:
    n = deployment.numbers
    return str(n.gpus), seconds(n.ttft_s), seconds(n.tpot_s), rate(n.tokens_per_s)


def _nothing(facts: Facts) -> list[str]:
    plan = facts.plan
    if not plan.top:
        return ["**Nothing is feasible**: no legal strategy fits into the GPUs' memory (PD301).", ""]
    lines = [
        "**Nothing meets every requirement.** No strategy files are written. The closest deployments, by the "
        "requirement that each misses most:",
        "",
    ]
    rows = []
    for number, deployment in enumerate(plan.top, 1):
        for miss in deployment.misses:
            rows.append(
                (str(number), _NAMES[miss.constraint], _shown(miss, miss.value), _limit(miss), f"x {miss.factor:.3g}")
            )
    lines += table(("#", "misses", "reaches", "required", "by"), rows, right=("by",))
    binding = plan.top[0].misses[0] if plan.top[0].misses else None
    if binding is not None:
        lines += [
            f"What binds is the {_NAMES[binding.constraint]}: relaxed by a factor of {binding.factor:.3g} the closest "
            "deployment would be feasible, as far as it misses nothing else.",
            "",
        ]
        if binding.constraint.startswith("throughput") and plan.top[0].numbers.tpot_s is not None:
            lines += ["A required throughput counts generated tokens; section 9 has the prompts counted too.", ""]
    return lines


def _shown(miss: Miss, value: float) -> str:
    if miss.constraint == "memory":
        return size(value)
    if miss.constraint in ("ttft", "tpot"):
        return seconds(value)
    return f"{rate(value)} {_UNITS[miss.constraint]}"


_UNITS = {"throughput": "tokens/s", "throughput_per_gpu": "tokens/s per GPU", "rate": "requests/s"}


def _limit(miss: Miss) -> str:
    upper = miss.constraint in ("memory", "ttft", "tpot")
    return f"at {'most' if upper else 'least'} {_shown(miss, miss.limit)}"


# --- feasibility --------------------------------------------------------------------------------------------------


def feasibility(facts: Facts) -> list[str]:
    """Parts against GPUs, balance, memory, and every constraint as a checklist."""
    lines = ["## 6. Feasibility", ""]
    if facts.subject is None:
        return [*lines, "No strategy to validate.", ""]
    if not facts.plan.feasible:
        lines += ["Of the closest deployment:", ""]
    lines += ["Parts that the model was cut into, against GPUs:", ""]
    columns = ("phase", "replicas (dp)", "stages (pp)", "GPUs of a stage (R)", "GPUs", "attention side", "expert side")
    lines += table(columns, [_parts(phase) for phase in facts.phases.values()])
    for phase in facts.phases.values():
        lines += _balance(phase)
    return [*lines, *_memory(facts), *_checklist(facts)]


def _parts(phase: PhaseFacts) -> tuple[str, ...]:
    d = phase.degrees
    experts = f"edp {d.edp} x ep {d.ep} x etp {d.etp} = {d.edp * d.ep * d.etp}"
    moe = any(n.module == "moe" for _, n in phase.graph.nodes())
    attention = f"adp {d.adp} x sp {d.sp} x tp {d.tp} = {d.adp * d.sp * d.tp}"
    whole = f"{d.dp} x {d.pp} x {d.ranks} = {phase.graph.mesh.gpus}"
    return phase.phase, str(d.dp), str(d.pp), str(d.ranks), whole, attention, experts if moe else "no experts"


def _balance(phase: PhaseFacts) -> list[str]:
    busy = phase.stage_seconds()
    layers = phase.graph.stages
    if len(layers) == 1:
        return [f"Balance of {phase.phase}: one stage; every GPU of it has the same share of each layer.", ""]
    heavy = [m.weights for m in phase.memory.stages]
    uneven = (
        f"{min(layers)} to {max(layers)} layers per stage"
        if min(layers) != max(layers)
        else f"{layers[0]} layers per stage"
    )
    return [
        f"Balance of {phase.phase}: {uneven}; the busiest stage works {percent(float(busy.max() / busy.mean()) - 1)} "
        f"more than the mean, the heaviest holds {percent(max(heavy) * len(heavy) / sum(heavy) - 1)} more weights.",
        "",
    ]


def _memory(facts: Facts) -> list[str]:
    rows = []
    for phase in facts.phases.values():
        m, capacity = phase.memory.fullest, phase.memory.capacity
        parts = (m.weights, m.kv_cache, m.activations, m.buffers, m.total, capacity)
        rows.append((phase.phase, *(size(p) for p in parts), percent(1 - m.total / capacity)))
    columns = ("phase", "weights", "KV cache", "activations", "buffers", "total", "capacity", "headroom")
    lines = ["Memory of the fullest GPU:", "", *table(columns, rows, right=columns[1:])]
    if two_layouts(facts.spec):
        lines += ["The phases lay the weights out differently on the same GPUs: both copies are counted in each.", ""]
    return lines


_ASSUMED = "PD103"
"""Code of what was assumed, which has a section of its own."""


def _checklist(facts: Facts) -> list[str]:
    """Memory and requirements with their figures, the sizes that each phase cuts, then every rule of legality."""
    known = rules()
    told: dict[str, list[str]] = {}
    for finding in facts.findings:
        told.setdefault(finding.code, []).append(f"{finding.severity}: {finding.message}")
    if _ASSUMED in told:
        told[_ASSUMED] = [f"{len(told[_ASSUMED])} of the file, in section 10"]
    errors = {d.code for d in facts.errors}
    lines = ["Checklist:", "", *_limits(facts)]
    for phase in facts.phases.values():
        lines += _cuts(facts, phase)
    codes = {r.code for r in PHASE_RULES} | {r.code for r in SPEC_RULES}
    for code in sorted(codes & known.keys()):
        said = "; ".join(dict.fromkeys(told.get(code, ()))) or "not found"
        lines.append(_line(code, code not in errors, f"{known[code].title}: {said}"))
    return [*lines, ""]


def _limits(facts: Facts) -> Iterator[str]:
    """Memory and requirements with their figures."""
    assert facts.subject is not None
    n, work = facts.subject.numbers, facts.spec.workload
    capacity = facts.hardware.memory
    for phase, used in n.memory_bytes.items():
        yield _line("PD301", used <= capacity, f"{phase}: {size(used)} of {size(capacity)} on the fullest GPU")
    room = facts.spec.cluster.gpus
    if room is not None:
        yield _line("PD207", n.gpus <= room, f"{n.gpus} of {room} GPUs")
    require = work.require
    for code, name, got, limit in (
        ("PD302", "TTFT", n.ttft_s, require.ttft),
        ("PD303", "TPOT", n.tpot_s, require.tpot),
    ):
        if limit is not None and got is not None:
            yield _line(code, got <= limit, f"{name} {seconds(got)}, at most {seconds(limit)}")
    for got, unit, limit in (
        (n.tokens_per_s, "tokens/s", require.throughput),
        (n.tokens_per_s_per_gpu, "tokens/s per GPU", require.throughput_per_gpu),
    ):
        if limit is not None:
            yield _line("PD304", got >= limit, f"{rate(got)} {unit}, at least {rate(limit)}")
    if work.rate is not None:
        met = n.requests_per_s >= work.rate
        yield _line("PD316", met, f"{rate(n.requests_per_s)} requests/s, at least {rate(work.rate)}")


def _cuts(facts: Facts, phase: PhaseFacts) -> Iterator[str]:
    """What each dimension divides, with the sizes."""
    model, d, graph = facts.spec.model, phase.degrees, phase.graph
    a, moe = model.attention, model.moe
    name = phase.phase
    law = d.ranks == d.adp * d.sp * d.tp == d.edp * d.ep * d.etp
    yield _line("PD205", law, f"{name}: R {d.ranks} = {d.adp} x {d.sp} x {d.tp} = {d.edp} x {d.ep} x {d.etp}")
    yield _line("PD211", a.heads % d.tp == 0, f"{name}: {a.heads} heads over tp {d.tp}, {a.heads // d.tp} each")
    if a.kind != "mla":
        split = a.kv_heads % d.tp == 0
        how = f"{a.kv_heads // d.tp} each" if split else f"each on {d.tp // a.kv_heads}"
        met = split or d.tp % a.kv_heads == 0
        yield _line("PD212", met, f"{name}: {a.kv_heads} KV heads over tp {d.tp}, {how}")
    if moe is not None:
        slots = moe.experts + d.redundant
        yield _line("PD215", slots % d.ep == 0, f"{name}: {slots} expert slots over ep {d.ep}, {slots // d.ep} each")
    whole = sum(graph.stages) == model.layers.count
    yield _line("PD216", whole, f"{name}: {model.layers.count} layers = {' + '.join(map(str, graph.stages))}")
    share = -(-(facts.spec.workload.batch or 1) // d.dp)
    count = phase.strategy.microbatches
    yield _line(
        "PD218", share >= count, f"{name}: {share} sequences of a replica in {counted(count, 'micro-batch', 'es')}"
    )


def _line(code: str, met: bool, text: str) -> str:
    return f"- [{'x' if met else ' '}] {code} {text}"
