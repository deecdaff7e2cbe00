"""The law of the stage and the mesh of atomic axes: the worked examples, rank order, groups."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paradag.compiler.build import phase_mesh
from paradag.compiler.build.mesh import mesh_of
from paradag.compiler.ir.mesh import ATTENTION_VIEW, EXPERT_VIEW, AxesDoNotNest, Mesh, build_mesh
from paradag.compiler.run import coordinates
from paradag.compiler.spec import (
    AcceleratorSpec,
    AttentionSpec,
    ChainTerm,
    ClusterSpec,
    LayersSpec,
    ModelSpec,
    MoeSpec,
    Spec,
    StrategySpec,
    WorkloadSpec,
)
from paradag.compiler.spec.stage_law import Degrees, degrees_of


def chain(text: str, ranks: int | None = None, placement: str = "", **phase: str) -> StrategySpec:
    """A strategy from ``"pp 4 -> ep 2 etp 4 -> tp 8"``."""
    terms = []
    for part in text.split("->") if text else []:
        words = part.split()
        options = {words[i]: int(words[i + 1]) for i in range(2, len(words), 2)}
        kind = "tp" if words[1] == "tp" else None
        terms.append(ChainTerm(name=words[0], degree=None if kind else int(words[1]), kind=kind, **options))
    options = {"phase": "prefill", **phase}
    return StrategySpec(chain=tuple(terms), ranks=ranks, placement=tuple(placement.split()), **options)  # type: ignore[arg-type]


def model(kv_heads: int = 64, *, moe: bool = True, kind: str = "gqa") -> ModelSpec:
    return ModelSpec(
        name="m",
        layers=LayersSpec(count=8),
        hidden=64,
        vocab=128,
        ffn=128,
        attention=AttentionSpec(kind=kind, heads=64, kv_heads=kv_heads, head_dim=8),  # type: ignore[arg-type]
        moe=MoeSpec(experts=64, top_k=2, ffn=64) if moe else None,
    )


def made(text: str, kv_heads: int = 64, *, moe: bool = True, **options: object) -> Mesh:
    strategy = chain(text, **options)  # type: ignore[arg-type]
    return mesh_of(degrees_of(strategy, is_moe=moe), model(kv_heads, moe=moe), strategy)


def degrees(mesh: Mesh) -> dict[str, int]:
    return {n: mesh.degree(n) for n in (*ATTENTION_VIEW, *EXPERT_VIEW) if mesh.degree(n) > 1}


EXAMPLES = [
    # chain, MoE, R, GPUs, degrees of the views
    ("pp 4 -> ep 32 -> tp 16", True, 32, 128, {"adp": 2, "tp": 16, "ep": 32}),
    ("pp 2 -> tp 8", False, 8, 16, {"tp": 8, "etp": 8}),
    ("sp 2 -> ep 8 -> tp 4", True, 8, 8, {"sp": 2, "tp": 4, "ep": 8}),
    ("ep 32", True, 32, 32, {"adp": 32, "ep": 32}),
    ("ep 2 -> tp 8", True, 8, 8, {"tp": 8, "edp": 4, "ep": 2}),
    ("tp 8", True, 8, 8, {"tp": 8, "etp": 8}),
    ("ep 2 etp 4 -> tp 8", True, 8, 8, {"tp": 8, "ep": 2, "etp": 4}),
    ("ep 8 etp 2 -> tp 4", True, 16, 16, {"adp": 4, "tp": 4, "ep": 8, "etp": 2}),
    ("dp 3 -> pp 2 -> tp 4", False, 4, 24, {"tp": 4, "etp": 4}),
    ("sp tp -> tp 4", False, 4, 4, {"tp": 4, "etp": 4}),
    ("", False, 1, 1, {}),
]


@pytest.mark.parametrize("text, moe, ranks, gpus, views", EXAMPLES)
def test_the_law_of_the_stage(text: str, moe: bool, ranks: int, gpus: int, views: dict[str, int]) -> None:
    law = degrees_of(chain(text), is_moe=moe)
    assert law.fits()
    assert (law.ranks, law.gpus) == (ranks, gpus)
    mesh = made(text, moe=moe)
    assert (mesh.stage_ranks, mesh.gpus) == (ranks, gpus)
    assert degrees(mesh) == views


def test_degrees_that_leave_no_whole_number_of_groups() -> None:
    assert not degrees_of(chain("ep 6 -> tp 4"), is_moe=True).fits()
    assert degrees_of(chain("ep 8 -> tp 4"), is_moe=True).fits()
    assert not degrees_of(chain("tp 4", ranks=6), is_moe=False).fits()


def test_given_ranks_make_attention_dp_and_expert_replicas() -> None:
    law = degrees_of(chain("ep 4 -> tp 2", ranks=8), is_moe=True)
    assert (law.adp, law.edp) == (4, 2)
    mesh = made("ep 4 -> tp 2", ranks=8)
    assert degrees(mesh) == {"adp": 4, "tp": 2, "edp": 2, "ep": 4}


def test_expert_parallelism_of_a_dense_model_does_not_make_experts_its_own() -> None:
    assert degrees_of(chain("tp 8"), is_moe=False).etp == 8


# --- atomic axes ----------------------------------------------------------------------------------------------------


def test_atomic_axes_are_the_common_refinement() -> None:
    mesh = made("ep 2 -> tp 8")
    assert [(a.name, a.size, a.stride) for a in mesh.axes] == [("tp0", 4, 2), ("tp1", 2, 1)]
    assert mesh.view("tp") == ("tp0", "tp1")
    assert mesh.view("edp") == ("tp0",)
    assert mesh.view("ep") == ("tp1",)
    assert mesh.view("etp") == ()


def test_experts_over_attention_dp_and_tp() -> None:
    mesh = made("ep 32 -> tp 16")
    assert [(a.name, a.size) for a in mesh.axes] == [("adp", 2), ("tp", 16)]
    assert mesh.view("ep") == ("adp", "tp")


def test_kv_head_replication_is_an_axis() -> None:
    mesh = made("tp 16", kv_heads=8, moe=False)
    assert [(a.name, a.size, a.stride) for a in mesh.axes] == [("tp0", 8, 2), ("tp1", 2, 1)]
    assert mesh.view("kv") == ("tp0",)
    assert mesh.degree("kv") == 8
    replicas = mesh.ranks(0, {"tp0": 3}, ["tp1"])
    assert replicas == [6, 7]  # neighbours hold the same KV head


def test_kv_heads_are_split_where_there_are_enough() -> None:
    assert made("tp 8", kv_heads=8, moe=False).view("kv") == ("tp",)
    assert made("tp 8", kv_heads=16, moe=False).view("kv") == ("tp",)
    assert made("tp 8", kv_heads=1, moe=False).view("kv") == ()


def test_the_heads_of_mla_are_all_split() -> None:
    mla = model(1, kind="mla").model_copy(
        update={
            "attention": AttentionSpec(
                kind="mla", heads=64, kv_heads=1, head_dim=12, kv_lora=16, nope_dim=8, rope_dim=4, v_dim=8
            )
        }
    )
    strategy = chain("tp 8")
    mesh = mesh_of(degrees_of(strategy, is_moe=True), mla, strategy)
    assert mesh.view("kv") == mesh.view("tp") == ("tp",)


def test_kv_replication_and_expert_axes_refine_together() -> None:
    mesh = made("pp 4 -> ep 32 -> tp 16", kv_heads=4)
    assert [(a.name, a.size) for a in mesh.axes] == [("adp", 2), ("tp0", 4), ("tp1", 4)]
    assert mesh.view("kv") == ("tp0",)
    assert mesh.view("ep") == ("adp", "tp0", "tp1")


def test_expert_replicas_go_innermost_where_only_that_nests() -> None:
    attention = {"adp": 2, "sp": 1, "tp": 3}
    mesh = build_mesh(attention=attention, experts={"edp": 3, "ep": 2, "etp": 1})
    assert [(a.name, a.size) for a in mesh.axes] == [("adp", 2), ("tp", 3)]
    assert mesh.view("ep") == ("adp",)
    assert mesh.view("edp") == ("tp",)


def test_axes_that_do_not_nest() -> None:
    with pytest.raises(AxesDoNotNest):
        build_mesh(attention={"adp": 2, "sp": 1, "tp": 3}, experts={"edp": 1, "ep": 3, "etp": 2})


def test_axes_in_the_users_words() -> None:
    mesh = made("ep 2 -> tp 8")
    assert mesh.describe(("tp0", "tp1")) == "tp"
    assert mesh.describe(("tp0",)) == "edp"
    assert mesh.ordered(("tp1", "tp0")) == ("tp0", "tp1")


# --- rank order -----------------------------------------------------------------------------------------------------


def rank_of(mesh: Mesh, stage: int, at: dict[str, int]) -> int:
    (rank,) = mesh.ranks(stage, at, [])
    return rank


def along(mesh: Mesh, view: str, at: dict[str, int]) -> int:
    """Coordinate on a named axis."""
    position = 0
    for axis in mesh.view(view):
        position = position * mesh.size((axis,)) + at[axis]
    return position


powers = st.integers(0, 3).map(lambda e: 2**e)


@st.composite
def laws(draw: st.DrawFn) -> tuple[Degrees, int]:
    """Degrees that are powers of two, and a number of KV heads."""
    sp, tp, ep, etp = (draw(powers) for _ in range(4))
    ranks = max(sp * tp, ep * etp) * draw(st.sampled_from((1, 2)))
    law = Degrees(dp=draw(st.integers(1, 3)), pp=draw(st.integers(1, 3)), sp=sp, ep=ep, tp=tp, etp=etp, ranks=ranks)
    return law, draw(powers)


@given(laws())
def test_ranks_are_row_major_in_both_views(case: tuple[Degrees, int]) -> None:
    law, kv_heads = case
    mesh = mesh_of(law, model(kv_heads), chain(""))
    assert mesh.gpus == law.gpus
    for stage in range(mesh.pp):
        for position, at in enumerate(coordinates(mesh)):
            rank = rank_of(mesh, stage, at)
            assert rank == stage * law.ranks + position
            attention = (along(mesh, "adp", at) * law.sp + along(mesh, "sp", at)) * law.tp + along(mesh, "tp", at)
            experts = (along(mesh, "edp", at) * law.ep + along(mesh, "ep", at)) * law.etp + along(mesh, "etp", at)
            assert rank == stage * law.ranks + attention == stage * law.ranks + experts
            assert along(mesh, "kv", at) == along(mesh, "tp", at) * min(law.tp, kv_heads) // law.tp


@given(laws(), st.permutations(("pp", "adp", "sp", "tp")))
def test_groups_partition_the_ranks(case: tuple[Degrees, int], order: list[str]) -> None:
    law, kv_heads = case
    mesh = mesh_of(law, model(kv_heads), chain("", placement=" ".join(order)))
    everyone = set(range(mesh.replica_ranks))
    for view in (*ATTENTION_VIEW, *EXPERT_VIEW, "kv"):
        varying = mesh.view(view)
        others = [a for a in mesh.axes if a.name not in varying]
        groups = [
            mesh.ranks(stage, dict(zip([a.name for a in others], at, strict=True)), varying)
            for stage in range(mesh.pp)
            for at in product(*(range(a.size) for a in others))
        ]
        assert all(len(g) == mesh.degree(view) for g in groups)
        assert sorted(r for g in groups for r in g) == sorted(everyone)


@given(laws())
def test_views_cover_the_stage_once(case: tuple[Degrees, int]) -> None:
    law, kv_heads = case
    mesh = mesh_of(law, model(kv_heads), chain(""))
    names = [a.name for a in mesh.axes]
    for view in (ATTENTION_VIEW, EXPERT_VIEW):
        assert sorted(a for n in view for a in mesh.view(n)) == sorted(names)
    assert len(set(names)) == len(names)
    assert all(a.size > 1 for a in mesh.axes)
    assert prod(a.size for a in mesh.axes) == law.ranks


def test_placement_changes_the_hardware_order_alone() -> None:
    plain = made("pp 2 -> sp 2 -> tp 4", moe=False)
    assert plain.ranks(0, {}, plain.view("tp")) == [0, 1, 2, 3]
    assert plain.ranks(0, {}, plain.view("sp")) == [0, 4]
    assert plain.ranks(1, {}, plain.view("tp")) == [8, 9, 10, 11]
    turned = made("pp 2 -> sp 2 -> tp 4", moe=False, placement="tp sp adp pp")
    assert turned.ranks(0, {}, turned.view("tp")) == [0, 4, 8, 12]
    assert turned.ranks(0, {}, turned.view("sp")) == [0, 2]
    assert turned.ranks(1, {}, turned.view("tp")) == [1, 5, 9, 13]
    assert turned.views == plain.views


def test_separate_pools_put_decode_behind_prefill() -> None:
    strategies = (chain("pp 2 -> tp 4", pools="separate"), chain("tp 2", phase="decode", pools="separate"))
    spec = Spec(
        model=model(moe=False),
        cluster=ClusterSpec(accelerator=AcceleratorSpec(name="h100_sxm", catalog="h100_sxm"), nodes=2, gpus_per_node=8),
        workload=WorkloadSpec(batch=4, input=8, output=2),
        strategies=strategies,
    )
    prefill, decode = phase_mesh(spec, "prefill"), phase_mesh(spec, "decode")
    assert (prefill.first_rank, prefill.gpus, decode.first_rank, decode.gpus) == (0, 8, 8, 2)
    assert decode.ranks(0, {}, decode.view("tp")) == [8, 9]
    shared = spec.model_copy(update={"strategies": tuple(s.model_copy(update={"pools": "shared"}) for s in strategies)})
    assert phase_mesh(shared, "decode").first_rank == 0


def test_a_phase_without_a_strategy_has_no_mesh() -> None:
    spec = Spec(
        model=model(moe=False),
        cluster=ClusterSpec(accelerator=AcceleratorSpec(name="h100_sxm", catalog="h100_sxm"), nodes=1, gpus_per_node=8),
        workload=WorkloadSpec(batch=4, input=8, output=2),
        strategies=(chain("tp 2"),),
    )
    with pytest.raises(KeyError):
        phase_mesh(spec, "decode")
