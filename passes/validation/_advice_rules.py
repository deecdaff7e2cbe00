"""Rules on what the numbers of a compiled phase say beyond memory and requirements. All are advice but PD313.

Every threshold is a constant below, with its reason; a knowledge pack may set another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np

from ...compiler.build.mesh import pools_separate
from ...compiler.cost import BOUNDS
from ...compiler.diagnostics import Diagnostic
from ...compiler.ir.graph import Phase
from ...compiler.ir.ops import CostClass, operator
from ...compiler.spec import LoadedSpec
from ..analysis import PhaseAnalysis
from ..analysis.memory import analyse_memory
from ..analysis.stage_times import server_times
from ..analysis.unroll import node_mask
from ._alternatives import as_it_is, decode_with, smaller
from ._case import Finding

BUBBLES = 1 / 3
"""Idle share of a pipeline's stages: above it one more micro-batch per stage gains more than a tenth."""

COMMUNICATION = 0.5
"""Share of the busy time: above it more time goes to moving data than to computing on it."""

LATENCY = 0.25
"""Share of the busy time that goes to hops and launches of collectives, whatever their size."""

IMBALANCE = 1.2
"""Slowest stage over the mean: whole layers alone cost less than this where a stage has five or more."""

OUT_OF_RATIO = 2.0
"""Requests per second of one pool over the other's: above it the faster one idles more than half of its time."""

Phases = Mapping[Phase, PhaseAnalysis]


@dataclass(frozen=True)
class ResultRule:
    """A rule on the analyses of all phases."""

    code: str
    check: Callable[[LoadedSpec, Phases], Iterator[Finding]]


def advice_findings(loaded: LoadedSpec, phases: Phases) -> Iterator[Diagnostic]:
    """Findings of all rules of this module on a compilation that fits into memory."""
    for rule in ADVICE_RULES:
        for f in rule.check(loaded, phases):
            yield Diagnostic(rule.code, f.message, loaded.span(*f.at), f.expected, f.help, f.severity)


def _limit(loaded: LoadedSpec, name: str, usual: float) -> float:
    """A threshold: the knowledge pack's, else the usual one."""
    return loaded.pack.value(name, usual) if loaded.pack else usual


def over_parallelised(loaded: LoadedSpec, phases: Phases) -> Iterator[Finding]:
    """Fewer ranks in decode are not faster than those asked for."""
    strategy = loaded.spec.strategy("decode")
    if "decode" not in phases or strategy is None:
        return
    now = as_it_is(phases["decode"])
    for name in ("tp", "ep"):
        degree = strategy.degree(name)
        other = decode_with(loaded, phases, {name: smaller(degree)}) if degree > 1 else None
        if other is not None and other.gpus < now.gpus and other.fits and other.tpot <= now.tpot:
            yield Finding(
                f"decode: `{name} {smaller(degree)}` instead of `{name} {degree}` takes {other.gpus} GPUs instead of "
                f"{now.gpus} and is no slower: {_ms(other.tpot)} instead of {_ms(now.tpot)} per token",
                (f"strategy.decode.{name}", "strategy.decode"),
                "a degree that makes a step faster than the next smaller one",
                f"use `{name} {smaller(degree)}`, and the GPUs for `dp`",
            )


def pipeline_not_needed(loaded: LoadedSpec, phases: Phases) -> Iterator[Finding]:
    """In decode stages are there for memory: where whole replicas fit and are as fast, they do the same."""
    strategy = loaded.spec.strategy("decode")
    pp = strategy.degree("pp") if strategy is not None else 1
    if "decode" not in phases or strategy is None or pp == 1:
        return
    now = as_it_is(phases["decode"])
    dp, m = pp * strategy.degree("dp"), max(1, strategy.microbatches // pp)
    other = decode_with(loaded, phases, {"pp": 1, "dp": dp, "microbatches": m})
    if other is not None and other.fits and other.tpot <= now.tpot:
        yield Finding(
            f"decode fits without `pp {pp}`: `dp {dp}` on the same GPUs takes {_ms(other.tpot)} per token "
            f"instead of {_ms(now.tpot)}",
            ("strategy.decode.pp", "strategy.decode"),
            "pipeline stages in decode where memory needs them",
            f"write `dp {dp}` for `pp {pp}`",
        )


def bubbles(loaded: LoadedSpec, phases: Phases) -> Iterator[Finding]:
    """The stages of a pipeline work most of the time."""
    for phase, analysis in phases.items():
        stages = len(analysis.graph.stages)
        if stages == 1:
            continue
        busy = _stage_seconds(analysis)
        idle = 1 - float(busy.sum()) / (stages * analysis.latency)
        most = _limit(loaded, "stage_idle_share", BUBBLES)
        if idle > most:
            m = sum(i.first for i in analysis.graph.items)
            yield Finding(
                f"{phase}: the {stages} stages idle {idle:.0%} of the time, with {m} micro-batch{'es' * (m > 1)}",
                (f"strategy.{phase}.microbatches", f"strategy.{phase}.pp", f"strategy.{phase}"),
                f"stages that idle less than {most:.0%}",
                f"use `microbatches {stages}`"
                if m < stages
                else "use more micro-batches or smaller chunks, or fewer stages",
            )


def uneven_stages(loaded: LoadedSpec, phases: Phases) -> Iterator[Finding]:
    """No stage takes much longer than the others."""
    for phase, analysis in phases.items():
        seconds = _stage_seconds(analysis)
        ratio = float(seconds.max() / seconds.mean()) if len(seconds) > 1 else 1.0
        most = _limit(loaded, "stage_imbalance", IMBALANCE)
        if ratio > most:
            slowest = int(seconds.argmax())
            yield Finding(
                f"{phase}: stage {slowest} takes {ratio:.2f} times as long as the mean of the {len(seconds)} stages",
                (f"strategy.{phase}.pp", f"strategy.{phase}"),
                f"at most {most:g} times",
                f"give stage {slowest} fewer layers: `pp {len(seconds)} {{ layers ... }}`",
            )


def _stage_seconds(analysis: PhaseAnalysis) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds that each stage works in one step or prefill, all items together."""
    columns = 2 * len(analysis.graph.stages) - 1
    times = server_times(analysis.graph, analysis.costs)[0]
    return np.asarray(times[:, 0:columns:2].sum(axis=0), dtype=np.float64)


def communication_dominates(loaded: LoadedSpec, phases: Phases) -> Iterator[Finding]:
    """Less than half of a phase's time goes to communication."""
    for phase, analysis in phases.items():
        share, _ = _network_shares(analysis)
        most = _limit(loaded, "communication_share", COMMUNICATION)
        if share > most:
            row = max((t for t in analysis.traffic if t.op != "KVTransfer"), key=lambda t: t.seconds)
            term = row.axes if row.axes in {"pp", "sp", "tp"} else "ep"
            yield Finding(
                f"{phase}: {share:.0%} of the time is communication, most of it {row.op} over {row.axes}",
                (f"strategy.{phase}.{term}", f"strategy.{phase}"),
                f"at most {most:.0%}",
                f"lower `{term}`, keep its group on the fast link, or overlap it with computation",
            )


def messages_too_small(loaded: LoadedSpec, phases: Phases) -> Iterator[Finding]:
    """Collectives move enough to be worth their hops."""
    for phase, analysis in phases.items():
        _, share = _network_shares(analysis)
        most = _limit(loaded, "latency_share", LATENCY)
        if share > most:
            yield Finding(
                f"{phase}: {share:.0%} of the time is latency of collectives whose messages are too small",
                (f"strategy.{phase}.tp", f"strategy.{phase}"),
                f"at most {most:.0%}",
                "use fewer ranks or micro-batches, or a larger batch",
            )


def _network_shares(analysis: PhaseAnalysis) -> tuple[float, float]:
    """Shares of a phase's busy time, all stages together: all communication, and the part of it that is mere latency.

    KV transfers run beside everything else and count neither here nor there: PD315 speaks of them.
    """
    whole = network = late = 0.0
    graph = analysis.graph
    for block, node in graph.nodes():
        if node.op == "kv_send":
            continue
        cost = analysis.costs[block.name, node.name]
        shape = (graph.steps, len(graph.items), max(1, len(block.layers)))
        seconds = np.where(node_mask(graph, node)[..., None], np.broadcast_to(cost.time, shape), 0.0)
        whole += float(seconds.sum())
        if operator(node).cost_class is CostClass.NETWORK:
            network += float(seconds.sum())
            late += float(np.where(np.asarray(cost.bound) == BOUNDS.index("latency"), seconds, 0.0).sum())
    return (network / whole, late / whole) if whole else (0.0, 0.0)


def pools_out_of_ratio(loaded: LoadedSpec, phases: Phases) -> Iterator[Finding]:
    """Separate pools serve about as many requests per second each."""
    if not pools_separate(loaded.spec) or len(phases) < 2:
        return
    rates = _requests_per_s(loaded, phases)
    ratio = rates["prefill"] / rates["decode"]
    most = max(1.0, _limit(loaded, "pool_ratio", OUT_OF_RATIO))
    if not 1 / most <= ratio <= most:
        pair: tuple[Phase, Phase] = ("decode", "prefill") if ratio > 1 else ("prefill", "decode")
        slow, fast = pair
        yield Finding(
            f"the {fast} pool serves {rates[fast]:.3g} requests/s, the {slow} pool {rates[slow]:.3g}",
            (f"strategy.{slow}", "strategy.prefill"),
            f"pools within a factor of {most:g}",
            f"give {slow} about {max(ratio, 1 / ratio):.2g} times its GPUs, or take them from {fast}",
        )


def rate_too_high(loaded: LoadedSpec, phases: Phases) -> Iterator[Finding]:
    """The rate of requests is one that the strategy serves."""
    wanted = loaded.spec.workload.rate
    if wanted is None or not phases:
        return
    rates = _requests_per_s(loaded, phases)
    separate = pools_separate(loaded.spec)
    served = min(rates.values()) if separate else 1 / sum(1 / r for r in rates.values())
    if served < wanted:
        yield Finding(
            f"{wanted:g} requests/s arrive, {served:.3g} are served: the queue grows without end",
            ("workload.rate", "workload"),
            f"at most {served:.3g} requests/s",
            f"use {ceil(wanted / served)} times the replicas (`dp`)",
        )


def _requests_per_s(loaded: LoadedSpec, phases: Phases) -> dict[Phase, float]:
    work = loaded.spec.workload
    tokens = {"prefill": work.input, "decode": work.output}
    return {phase: analysis.tokens_per_s / tokens[phase] for phase, analysis in phases.items()}


def longest_request(loaded: LoadedSpec, phases: Phases) -> Iterator[Finding]:
    """The longest sequence fits into the cache of its GPUs, if need be alone."""
    work = loaded.spec.workload
    if work.sequence is None:
        return
    longest = work.sequence[1]
    for phase, analysis in phases.items():
        fullest = analysis.memory.fullest
        room = analysis.memory.capacity - fullest.total + fullest.kv_cache
        held = sum(-(-i.batch // analysis.graph.mesh.degree("adp")) for i in analysis.graph.items if i.first)
        one = analyse_memory(analysis.graph, analysis.memory.capacity, longest).fullest.kv_cache / max(1, held)
        if one > room:
            yield Finding(
                f"{phase}: one sequence of {longest:,} tokens takes {one / 1e9:.1f} GB of cache on a GPU "
                f"that has {room / 1e9:.1f} GB left for it",
                ("workload.sequence", "workload"),
                f"sequences of at most {int(longest * room / one):,} tokens",
                "raise `pp` or `tp` (up to the number of KV heads), or use a narrower `kv_dtype`",
            )


def transfer_too_slow(loaded: LoadedSpec, phases: Phases) -> Iterator[Finding]:
    """The KV cache leaves the prefill pool as fast as it is made."""
    prefill = phases.get("prefill")
    if prefill is None:
        return
    sent = sum(t.seconds for t in prefill.traffic if t.op == "KVTransfer") / len(prefill.graph.stages)
    if sent > prefill.latency:
        yield Finding(
            f"sending the KV cache takes {_ms(sent)}, prefill itself {_ms(prefill.latency)}",
            ("strategy.prefill",),
            "a transfer that prefill hides",
            "share the pools, use a narrower `kv_dtype`, or a faster `link scale_out`",
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


ADVICE_RULES = (
    ResultRule("PD307", over_parallelised),
    ResultRule("PD308", pipeline_not_needed),
    ResultRule("PD309", bubbles),
    ResultRule("PD310", communication_dominates),
    ResultRule("PD311", messages_too_small),
    ResultRule("PD312", pools_out_of_ratio),
    ResultRule("PD313", longest_request),
    ResultRule("PD314", uneven_stages),
    ResultRule("PD315", transfer_too_slow),
    ResultRule("PD316", rate_too_high),
)
"""Rules on results, in the order in which they are told."""
