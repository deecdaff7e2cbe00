"""Rules on how the KV cache lies: within a phase, and between the pools of prefill and decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...compiler.build.mesh import pools_separate
from ...compiler.spec import LoadedSpec
from ._case import Case, Finding


def redundant_without_ep(case: Case) -> Iterator[Finding]:
    """Redundant experts balance ranks, so there are ranks to balance."""
    d = case.degrees
    if case.moe_layers and d.redundant and d.ep == 1:
        yield Finding(
            f"{d.redundant} redundant experts, and no expert parallelism whose ranks they could balance",
            ("ep.redundant", "ep"),
            "`ep` of 2 or more beside `redundant`",
            f"remove `redundant {d.redundant}`",
        )


def latent_replicated(case: Case) -> Iterator[Finding]:
    """The latent cache of MLA does not shrink with TP."""
    a, tp = case.model.attention, case.degrees.tp
    if case.phase == "decode" and a.kind == "mla" and tp > 1:
        yield Finding(
            f"the latent KV cache is held {tp} times: each rank of a TP group has all of it",
            ("tp",),
            "attention DP, which cuts the cache by requests",
            f"lower `tp`; with `ranks {case.degrees.ranks}` the ranks become attention-DP groups"
            if case.degrees.fits()
            else "lower `tp`",
        )


def pipelined_decode_pool(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """A decode pool of its own has one stage."""
    decode = _of(cases, "decode")
    prefill = _of(cases, "prefill")
    if decode is None or prefill is None or not pools_separate(loaded.spec) or decode.degrees.pp == 1:
        return
    pp = decode.degrees.pp
    yield Finding(
        f"decode in a pool of its own has {pp} pipeline stages",
        ("strategy.decode.pp", "strategy.decode"),
        "`pp 1` in a decode pool: engines' KV transfer takes one decode stage, or at most as many as in prefill",
        f"write `dp {pp * decode.degrees.dp}` or a larger `tp` for `pp {pp}`",
    )


def replicated_heads_between_pools(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """Between pools of different TP no KV head is replicated."""
    prefill, decode = _of(cases, "prefill"), _of(cases, "decode")
    attention = loaded.spec.model.attention
    if prefill is None or decode is None or not pools_separate(loaded.spec) or attention.kind == "mla":
        return
    widths = prefill.degrees.tp, decode.degrees.tp
    if widths[0] == widths[1] or max(widths) <= attention.kv_heads:
        return
    yield Finding(
        f"the pools have TP {widths[0]} and {widths[1]}, and {attention.kv_heads} KV heads are replicated in one",
        ("strategy.decode.tp", "strategy.prefill.tp", "strategy.decode"),
        f"the same `tp` in both pools, or at most {attention.kv_heads} in each",
        f"write `tp {min(max(widths), attention.kv_heads)}` in both",
    )


def _of(cases: Sequence[Case], phase: str) -> Case | None:
    return next((c for c in cases if c.phase == phase), None)
