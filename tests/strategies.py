"""Hypothesis strategies for small legal inputs, shared by all tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hypothesis import strategies as st

from paradag.compiler.build import build_graph
from paradag.compiler.ir.graph import Graph, Phase
from paradag.compiler.spec import (
    AcceleratorSpec,
    AttentionSpec,
    ChainTerm,
    ClusterSpec,
    LayersSpec,
    LinearSpec,
    Llama3Spec,
    ModelSpec,
    MoeSpec,
    RotarySpec,
    Spec,
    StrategySpec,
    WorkloadSpec,
    YarnSpec,
)
from paradag.compiler.spec.stage_law import balanced_stages, degrees_of
from paradag.passes.lowering import LowerEp, LowerPp, LowerSp, LowerTp

_HEAD_DIM = 4


@st.composite
def small_specs(
    draw: st.DrawFn, phases: Sequence[Phase] = ("prefill", "decode"), must: Collection[str] = frozenset()
) -> Spec:
    """A legal spec of one to four tiny layers, with a strategy for each of ``phases``.

    All degrees are powers of one base (2 or 3), so that the axes of a stage always nest and all sizes divide; batch,
    input and chunks are arbitrary. ``must`` names what every spec has: ``pp``, ``ep``, ``tp``, ``sp`` (of any kind, in
    prefill), ``ring``, ``ulysses`` where the heads allow it, ``moe``, ``dense``, ``window``, ``chunk``, ``transfer``
    (pools of their own), ``heads`` (no MLA), ``mla``, ``sinks``.
    """
    base = draw(st.sampled_from((2, 2, 3)))
    model = draw(_models(base, frozenset(must)))
    strategies = tuple(draw(_strategies(model, base, phase, frozenset(must))) for phase in phases)
    least = max(s.degree("dp") * s.microbatches for s in strategies)
    sp = max(degrees_of(s, is_moe=model.moe is not None).sp for s in strategies)
    workload = WorkloadSpec(
        batch=draw(st.integers(least, least + 7)),
        input=draw(st.integers(2 * sp, 2 * sp + 9)),
        output=draw(st.integers(1, 5)),
    )
    cluster = ClusterSpec(accelerator=AcceleratorSpec(name="h100_sxm", catalog="h100_sxm"), gpus_per_node=8)
    return Spec(
        model=model,
        cluster=cluster,
        workload=workload,
        strategies=tuple(_with_chunk(draw, s, workload, must) for s in strategies),
    )


def lowered_levels(spec: Spec, phase: Phase, steps: int = 1) -> list[Graph]:
    """The graph of a phase at every level: logical, pp, sp, ep, tp."""
    strategy = spec.strategy(phase)
    assert strategy is not None
    pp = strategy.term("pp")
    stages = (pp.layers if pp else ()) or balanced_stages([1] * spec.model.layers.count, strategy.degree("pp"))
    graphs = [build_graph(spec, phase, "small", steps)]
    for lowering in (LowerPp(stages), LowerSp(), LowerEp(), LowerTp()):
        graphs.append(lowering.run(graphs[-1]))
    return graphs


@st.composite
def _models(draw: st.DrawFn, base: int, must: frozenset[str]) -> ModelSpec:
    count = draw(st.integers(2 if must & {"pp", "window"} else 1, 4))
    moe = None if "dense" in must else draw(_moes(base) if must & {"ep", "moe"} else st.none() | _moes(base))
    patterns = (("sliding", "full"), ("full", "sliding", "sliding"))
    pattern = draw(st.sampled_from(patterns if "window" in must else ((), (), *patterns)))
    layers = LayersSpec(
        count=count,
        dense=draw(st.integers(0, min(1, count - 1) if must & {"ep", "moe"} else 1)) if moe else 0,
        pattern=pattern,
        window=draw(st.integers(1, 6)) if pattern else None,
    )
    attention = draw(_attentions(base, bool(pattern), must))
    return ModelSpec(
        name="small",
        layers=layers,
        hidden=8,
        vocab=draw(st.integers(5, 20)) * base * base,
        ffn=4 * base * base,
        attention=attention,
        moe=moe,
        rotary=draw(_rotaries(attention.kind == "mla")),
        norm_eps=draw(st.sampled_from((1e-6, 1e-5, 1e-2))),
        tied=draw(st.booleans()),
        dtype=draw(st.sampled_from(("bf16", "fp16", "int8"))),
        kv_dtype=draw(st.sampled_from(("bf16", "int8"))),
    )


@st.composite
def _attentions(draw: st.DrawFn, base: int, windowed: bool, must: frozenset[str]) -> AttentionSpec:
    kinds = ("mha", "mqa", "gqa", "mla")
    few = kinds[:3] if must & {"heads", "window", "sinks"} else kinds[3:] if "mla" in must else kinds
    kind = draw(st.sampled_from(few))
    heads = base * base
    if kind == "mla":
        return AttentionSpec(
            kind="mla",
            heads=heads,
            kv_heads=1,
            head_dim=8,
            q_lora=draw(st.none() | st.just(6)),
            kv_lora=8,
            nope_dim=4,
            rope_dim=4,
            v_dim=4,
        )
    return AttentionSpec(
        kind=kind,
        heads=heads,
        kv_heads={"mha": heads, "mqa": 1, "gqa": base}[kind],
        head_dim=_HEAD_DIM,
        qk_norm=draw(st.sampled_from(("none", "head", "full"))),
        bias=draw(st.sampled_from(("none", "qkv", "all"))),
        sinks="sinks" in must or draw(st.booleans()),
        window=None if windowed else draw(st.none() | st.integers(1, 6)),
    )


@st.composite
def _rotaries(draw: st.DrawFn, latent: bool) -> RotarySpec:
    scalings = (
        YarnSpec(factor=40, original=16, mscale=1.0, mscale_all_dim=0.5),
        YarnSpec(factor=4, original=4096, beta_fast=2.0, truncate=False),
        Llama3Spec(factor=8, original=64),
        LinearSpec(factor=3),
    )
    return RotarySpec(
        theta=draw(st.sampled_from((10_000.0, 30.0))),
        style=draw(st.sampled_from(("half", "interleaved"))),
        dim=None if latent else draw(st.sampled_from((None, None, _HEAD_DIM // 2))),
        scaling=draw(st.sampled_from((None, *scalings))),
    )


@st.composite
def _moes(draw: st.DrawFn, base: int) -> MoeSpec:
    return MoeSpec(
        experts=base**3,
        top_k=draw(st.integers(1, base)),
        ffn=base * base,
        shared=draw(st.integers(0, 2)),
        router=draw(st.sampled_from(("softmax", "sigmoid", "topk_softmax"))),
        bias=draw(st.booleans()),
        scale=draw(st.sampled_from((1.0, 2.5, 1 / 3))),
    )


@st.composite
def _strategies(draw: st.DrawFn, model: ModelSpec, base: int, phase: Phase, must: frozenset[str]) -> StrategySpec:
    degree, more = st.sampled_from((1, 1, base, base * base)), st.sampled_from((base, base * base))
    terms = []
    if draw(st.booleans()):
        terms.append(ChainTerm(name="dp", degree=base))
    if model.layers.count > 1 and ("pp" in must or draw(st.booleans())):
        terms.append(ChainTerm(name="pp", degree=draw(st.integers(2, model.layers.count))))
    tp = draw(more if "tp" in must else degree)
    if must & {"ring", "ulysses"}:
        kinds: tuple[str, ...] = ("own",)
    else:
        kinds = ("own", "tp") if "sp" in must and tp > 1 else ("own",) if "sp" in must else ("none", "own", "tp")
    sp = draw(st.sampled_from(kinds)) if phase == "prefill" else "none"
    if sp == "own":
        terms.append(draw(_sp_terms(model, base, tp, must)))
    elif sp == "tp" and tp > 1:
        terms.append(ChainTerm(name="sp", kind="tp"))
    ep = draw(more if "ep" in must else degree) if model.moe else 1
    if ep > 1:
        etp, redundant = draw(st.sampled_from((None, base))), draw(st.sampled_from((0, ep)))
        terms.append(ChainTerm(name="ep", degree=ep, etp=etp, redundant=redundant))
    if tp > 1:
        terms.append(ChainTerm(name="tp", degree=tp))
    strategy = StrategySpec(
        phase=phase,
        chain=tuple(terms),
        microbatches=draw(st.integers(1, 3)),
        placement=draw(st.just(()) | st.permutations(("pp", "adp", "sp", "tp")).map(tuple)),
        pools="separate" if "transfer" in must else draw(st.sampled_from(("shared", "separate"))),
    )
    least = degrees_of(strategy, is_moe=model.moe is not None).ranks
    return strategy.model_copy(update={"ranks": draw(st.sampled_from((None, least * base)))})


@st.composite
def _sp_terms(draw: st.DrawFn, model: ModelSpec, base: int, tp: int, must: Collection[str]) -> ChainTerm:
    """SP with ranks of its own, of a kind that the heads allow, or of the one in ``must``."""
    degree = draw(st.sampled_from((base, base, base * base))) if tp <= base else base
    kinds = [None, "allgather", "ring"]
    if (model.attention.heads // tp) % degree == 0:
        kinds.append("ulysses")
    asked = [k for k in kinds if k in must]
    return ChainTerm(name="sp", degree=degree, kind=draw(st.sampled_from(asked or kinds)))


def _with_chunk(draw: st.DrawFn, strategy: StrategySpec, workload: WorkloadSpec, must: Collection[str]) -> StrategySpec:
    """A chunk of at least one new token per sequence and SP rank of the largest micro-batch."""
    if strategy.phase == "decode" or ("chunk" not in must and draw(st.booleans())):
        return strategy
    assert workload.batch is not None
    replica = -(-workload.batch // strategy.degree("dp"))
    sequences = -(-replica // strategy.microbatches)
    most = max(1, workload.input // 2) if "chunk" in must else workload.input
    least = max(1, strategy.degree("sp"))
    tokens = draw(st.integers(least, max(least, most)))
    return strategy.model_copy(update={"chunk": sequences * tokens})
