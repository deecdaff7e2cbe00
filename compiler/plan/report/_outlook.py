"""Sections 8 to 10: communication, expected latency and throughput, assumptions and how much hangs on them."""

from __future__ import annotations

from ...spec import Assumption
from ._facts import Facts, PhaseFacts
from ._format import percent, rate, seconds, size, strategy_text, table
from .sensitivity import FACTORS, Response, Sensitivity


def communication(facts: Facts) -> list[str]:
    """Collectives and messages, their bytes and links."""
    lines = ["## 8. Communication", ""]
    for phase in facts.phases.values():
        lines += _traffic(phase, continuous=facts.continuous)
    if not facts.phases:
        lines += ["Nothing runs.", ""]
    return lines


def _traffic(phase: PhaseFacts, *, continuous: bool) -> list[str]:
    prompts = "one micro-batch of prompts" if continuous else "the batch"
    unit = prompts if phase.phase == "prefill" else "a decode step of the batch"
    if not phase.traffic:
        return [f"{phase.phase.capitalize()}: no communication; every GPU works alone.", ""]
    total = sum(t.bytes for t in phase.traffic)
    rows = [
        (
            t.op,
            "prefill to decode" if t.op == "KVTransfer" else t.axes,
            t.link.replace("_", "-"),
            f"{t.count:,}",
            size(t.bytes),
            seconds(t.seconds),
        )
        for t in phase.traffic
    ]
    columns = ("operation", "over", "link", "count", "bytes", "time")
    head = f"{phase.phase.capitalize()}, for {unit}: {size(total)} on the wire of one replica."
    if len(phase.graph.stages) > 1:
        head += " Counts and times are those of one GPU of each stage, summed over the stages."
    else:
        head += " Counts and times are those of one GPU."
    return [head, "", *table(columns, rows, right=columns[3:])]


def expected(facts: Facts) -> list[str]:
    """Latency and throughput."""
    lines = ["## 9. Expected latency and throughput", ""]
    if facts.subject is None:
        return [*lines, "None: nothing fits.", ""]
    n, work = facts.subject.numbers, facts.spec.workload
    require = work.require
    rows = [(_ttft(facts), seconds(n.ttft_s), _at_most(require.ttft))] if n.ttft_s is not None else []
    if n.tpot_s is not None:
        rows.append(("TPOT", seconds(n.tpot_s), _at_most(require.tpot)))
    generated = "generated tokens/s" if n.tpot_s is not None else "prompt tokens/s"
    rows += [
        ("requests/s", rate(n.requests_per_s), f"at least {rate(work.rate)}" if work.rate else "-"),
        (generated, rate(n.tokens_per_s), f"at least {rate(require.throughput)}" if require.throughput else "-"),
        (
            f"{generated} per GPU",
            rate(n.tokens_per_s_per_gpu),
            f"at least {rate(require.throughput_per_gpu)}" if require.throughput_per_gpu else "-",
        ),
    ]
    if n.ttft_s is not None and n.tpot_s is not None:
        whole_load = n.requests_per_s * (work.input + work.output) / n.gpus
        rows.append(("tokens/s per GPU, prompts counted too", rate(whole_load), "-"))
    if facts.subject.separate:
        rows.append(
            ("KV transfer: all that the busiest GPU holds, as the search reckons", seconds(n.kv_transfer_s), "-")
        )
    if n.ttft_s is not None and n.tpot_s is not None:
        whole = n.ttft_s + work.output * n.tpot_s
        rows.append((f"a request of {work.output} tokens, TTFT + output x TPOT", seconds(whole), "-"))
    lines += table(("figure", "expected", "required"), rows, right=("expected",))
    if n.ttft_s is not None and n.tpot_s is not None:
        lines += [_HOW[facts.continuous, facts.subject.separate], ""]
    return lines


_HOW = {
    (False, False): "The phases take turns on the same GPUs: requests/s = batch / (TTFT + output x TPOT).",
    (False, True): "Each pool works on its own batch: requests/s = batch / max(TTFT, KV transfer, output x TPOT).",
    (True, False): "Prompts enter a micro-batch at a time and take turns with decode steps, which TPOT includes: "
    "requests/s = batch / (output x TPOT).",
    (True, True): "Each pool is sized for itself, the slower one sets the rate: prompts/s are what prefill computes or "
    "sends away, whichever is less; answers/s are batch / (output x TPOT).",
}
"""Throughput, by whether requests come one by one and whether the pools are separate."""


def _ttft(facts: Facts) -> str:
    """What the time to the first token is of."""
    rate_given = facts.spec.workload.rate is not None
    if not facts.continuous:
        return "TTFT of the batch, with the queue at the given rate" if rate_given else "TTFT of the batch, no queue"
    step = "" if facts.subject is not None and facts.subject.separate else " and half of a decode step"
    return f"TTFT: a micro-batch of prompts{step}" + (", with the queue at the given rate" if rate_given else "")


def _at_most(limit: float | None) -> str:
    return "-" if limit is None else f"at most {seconds(limit)}"


# --- assumptions --------------------------------------------------------------------------------------------------


def assumptions(facts: Facts) -> list[str]:
    """Everything taken for the user, and what moves with it."""
    lines = ["## 10. Assumptions and sensitivity", ""]
    rows = [(a.name, a.value, a.why, _answer(facts, a)) for a in facts.assumptions]
    columns = ("assumption", "value", "why", "how much hangs on it")
    lines += table(columns, rows) if rows else ["No assumptions were made.", ""]
    return [*lines, *_moves(facts, facts.sensitivity)]


def _answer(facts: Facts, assumption: Assumption) -> str:
    """What moving the assumption does to the choice, in a few words; else what is stated with the assumption."""
    found = facts.sensitivity
    mine = [r for r in found.responses if assumption.name in r.figure.assumptions]
    if not mine:
        known = _NOT_MOVED.get(assumption.name) or assumption.sensitivity
        return known or "not moved: no quantity, or part of what is run"
    changes = [r.change for r in mine if r.change is not None]
    low, high = (percent(f(changes, default=0.0), signed=True) for f in (min, max))
    reach = f"{found.objective} {low} to {high}" if low != high else f"{found.objective} {low}"
    other = [
        f"x {r.factor:g}" + (f" of {r.figure.name}" if len(mine) > len(FACTORS) else "") for r in mine if not r.same
    ]
    return "; ".join(filter(None, (f"another choice at {', '.join(other)}" if other else "the choice stays", reach)))


_NOT_MOVED = {
    "batch": "searched, not taken: the best size is part of the choice",
    "expert load": "not moved: no load is known that it could be moved to",
}


def _moves(facts: Facts, found: Sensitivity) -> list[str]:
    whose = "choice" if facts.plan.feasible else "closest deployment"
    if not found.responses:
        return [f"Sensitivity was not analysed: {found.reason}.", ""]
    scope = (
        "For this the whole search is made again"
        if found.layouts is None
        else f"For this the search is made again over the {found.layouts} stage layouts of the deployments in section "
        "4, with all stages, replicas, batches and schedules,"
    )
    kept = sum(r.same for r in found.responses)
    lines = [
        f"{scope} with one figure moved at a time, by {' and '.join(f'x {f:g}' for f in FACTORS)}. The {whose} stays "
        f"in {kept} of {len(found.responses)} moves.",
        "",
    ]
    columns = ("figure", "value", "moved", "best then", f"its {found.objective}", f"the {whose} falls behind by")
    lines += table(columns, [_response(r) for r in found.responses], right=("moved", *columns[4:]))
    return [*lines, f"{found.reason}.", ""] if found.reason else lines


def _response(response: Response) -> tuple[str, ...]:
    figure = response.figure
    source = f"assumed: {', '.join(sorted(figure.assumptions))}" if figure.assumptions else "given"
    head = (figure.name, f"{figure.value} ({source})", f"x {response.factor:g}")
    if response.best is None or response.change is None or response.regret is None:
        return (*head, "nothing fits", "-", "-")
    best = "the same"
    if not response.same:
        chains = " / ".join(f"`{strategy_text(s)}`" for s in response.best.strategies)
        best = f"{chains}, batch {response.best.numbers.batch}, {response.best.numbers.gpus} GPUs"
    if not response.feasible:
        best += " (misses a requirement)"
    behind = ("at least " if response.bound and response.regret > 0 else "") + percent(response.regret)
    return (*head, best, percent(response.change, signed=True), behind)
