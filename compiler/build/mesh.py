"""The mesh of a phase from its strategy."""

from __future__ import annotations

from ..ir.mesh import Mesh, build_mesh, expert_order
from ..spec import ModelSpec, Spec
from ..spec.stage_law import Degrees, degrees_of
from ..spec.strategy import Phase, StrategySpec


def phase_degrees(spec: Spec, phase: Phase) -> Degrees:
    """Degrees of the phase's strategy.

    Raises:
        KeyError: the phase has no strategy.
    """
    strategy = spec.strategy(phase)
    if strategy is None:
        raise KeyError(phase)
    return degrees_of(strategy, is_moe=spec.model.moe is not None)


def phase_mesh(spec: Spec, phase: Phase) -> Mesh:
    """The ranks of a phase. With separate pools the decode ranks follow the prefill ranks.

    Raises:
        AxesDoNotNest: see :func:`paradag.compiler.ir.mesh.build_mesh`.
        KeyError: the phase has no strategy.
    """
    degrees = phase_degrees(spec, phase)
    strategy = spec.strategy(phase)
    assert strategy is not None
    first_rank = 0
    if phase == "decode" and pools_separate(spec):
        first_rank = phase_degrees(spec, "prefill").gpus
    return mesh_of(degrees, spec.model, strategy, first_rank)


def mesh_of(degrees: Degrees, model: ModelSpec, strategy: StrategySpec, first_rank: int = 0) -> Mesh:
    """The mesh of given degrees."""
    placement = tuple(a for a in strategy.placement if a != "dp")
    attention, experts = _views(degrees)
    return build_mesh(
        attention=attention,
        experts=experts,
        kv_groups=kv_replicas(model, degrees.tp),
        sp_kv_groups=_sp_kv_groups(model, degrees, strategy),
        pp=degrees.pp,
        dp=degrees.dp,
        placement=placement,
        first_rank=first_rank,
    )


def kv_replicas(model: ModelSpec, tp: int) -> int:
    """Ranks of a TP group that hold the same KV head; the latent cache of MLA is replicated, but its heads are not."""
    if model.attention.kind == "mla" or tp <= model.attention.kv_heads:
        return 1
    return tp // model.attention.kv_heads


def kv_replicas_on_sp(model: ModelSpec, degrees: Degrees) -> int:
    """Neighbours on sp that hold the same KV heads where SP cuts the heads that TP has left to a rank (Ulysses)."""
    left = model.attention.kv_heads // degrees.tp
    return degrees.sp // left if left and model.attention.kind != "mla" and degrees.sp % left == 0 else 1


def two_layouts(spec: Spec) -> bool:
    """Whether the same GPUs hold the weights twice, because the phases lay them out differently."""
    if len(spec.strategies) < 2 or pools_separate(spec):
        return False
    return _weight_layout(spec, "prefill") != _weight_layout(spec, "decode")


def _weight_layout(spec: Spec, phase: Phase) -> tuple[object, ...]:
    """What decides where a phase keeps its weights: how SP and attention DP share the ranks between them does not."""
    d, strategy = phase_degrees(spec, phase), spec.strategy(phase)
    assert strategy is not None
    pp = strategy.term("pp")
    order, _ = expert_order(*_views(d), kv_replicas(spec.model, d.tp), _sp_kv_groups(spec.model, d, strategy))
    placed = (strategy.placement, d.adp, d.sp) if strategy.placement else ()
    return d.dp, d.pp, d.ranks, d.tp, d.ep, d.etp, d.redundant, pp.layers if pp else (), order, placed


def _views(d: Degrees) -> tuple[dict[str, int], dict[str, int]]:
    """Degrees of attention's axes and of the experts'."""
    return {"adp": d.adp, "sp": d.sp, "tp": d.tp}, {"edp": d.edp, "ep": d.ep, "etp": d.etp}


def _sp_kv_groups(model: ModelSpec, d: Degrees, strategy: StrategySpec) -> int:
    return kv_replicas_on_sp(model, d) if strategy.sp_kind == "ulysses" else 1


def pools_separate(spec: Spec) -> bool:
    """Whether prefill and decode have GPUs of their own."""
    return len(spec.strategies) == 2 and any(s.pools == "separate" for s in spec.strategies)
