"""Ring and Ulysses in the search: figures, the ranks that a ring crosses, and how a choice is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import paradag
from paradag.compiler.cost import network
from paradag.compiler.ir.mesh import build_mesh
from paradag.compiler.plan import Deployment, Law, Plan
from paradag.compiler.plan.layouts import ALLGATHER, KIND_NAMES, RING, ULYSSES, Layouts, ring_crosses
from paradag.compiler.plan.write import plan_files
from paradag.compiler.spec import LoadedSpec

from .conditions import DENSE, MLA, MOE, SLIDING, condition

CLOSE = 1e-9
MHA = DENSE.replace("gqa { heads 8 kv_heads 2", "mha { heads 8")
MQA = DENSE.replace("kv_heads 2", "kv_heads 1")


def with_kind(loaded: LoadedSpec, kind: int) -> tuple[Plan, list[Deployment]]:
    """A plan whose prefill has SP of a kind, and its deployments."""

    def fits(layouts: Layouts) -> np.ndarray:
        # decode has no SP to choose
        return np.asarray(layouts.kind == (kind if (layouts.sp > 1).any() else ALLGATHER))

    plan = paradag.plan(loaded, "throughput", top=200, law=Law(fits=fits))
    assert {d.strategies[0].sp_kind for d in plan.top} == {KIND_NAMES[kind]}
    return plan, list(plan.top)


def agree(loaded: LoadedSpec, deployments: list[Deployment]) -> None:
    """`compile` says of them what the planner says."""
    for deployment in deployments:
        spec = loaded.spec.model_copy(update={"strategies": deployment.strategies})
        compiled = paradag.compile(replace(loaded, spec=spec), fix=False)
        assert str(compiled.status) == "VALID", compiled.diagnostics
        numbers = deployment.numbers
        for phase, latency in (("prefill", numbers.ttft_s), ("decode", numbers.tpot_s)):
            analysis = compiled.phases[phase]
            assert analysis.latency == pytest.approx(latency, rel=CLOSE)
            assert analysis.memory.fullest.total == pytest.approx(numbers.memory_bytes[phase], rel=CLOSE)


@pytest.mark.parametrize("kind", [RING, ULYSSES], ids=["ring", "ulysses"])
@pytest.mark.parametrize(
    ("model", "gpus"),
    [(DENSE, "1 of 8"), (MOE, "2 of 4"), (MLA, "4 of 2"), (SLIDING, "2 of 5"), (MHA, "2 of 3"), (MQA, "2 of 4")],
    ids=["dense", "moe", "mla", "sliding", "mha", "mqa"],
)
def test_figures_are_those_of_compile(model: str, gpus: str, kind: int) -> None:
    loaded = condition(model, gpus=gpus, work="batch 12 input 600 tokens output 20 tokens")
    _, found = with_kind(loaded, kind)
    agree(loaded, list({d.strategies[0].degree("sp"): d for d in found}.values()))


@given(
    tp=st.integers(1, 4), sp=st.integers(2, 6), adp=st.integers(1, 4), kv=st.integers(1, 4), domain=st.integers(1, 20)
)
def test_rings_that_cross_domains(tp: int, sp: int, adp: int, kv: int, domain: int) -> None:
    ones = {"edp": adp * sp * tp, "ep": 1, "etp": 1}
    mesh = build_mesh(attention={"adp": adp, "sp": sp, "tp": tp}, experts=ones, kv_groups=kv if tp % kv == 0 else 1)
    found = ring_crosses(np.array([sp * tp]), np.array([adp]), domain)
    assert bool(found[0]) == network.ring_crosses(mesh, mesh.view("sp"), 1, domain)


def test_a_choice_is_written_with_its_kind() -> None:
    loaded = condition(DENSE, gpus="1 of 4", work="batch 4 input 600 tokens output 20 tokens")
    plan, found = with_kind(loaded, RING)
    spec = plan.spec.model_copy(update={"strategies": found[0].strategies})
    files = plan_files(replace(plan, chosen=found[0], top=(found[0],), spec=spec), loaded, sensitivity=False)
    degree = found[0].strategies[0].degree("sp")
    assert f"sp {degree} kind ring" in files["prefill.strat"].decode()
    assert f"sp {degree} kind ring" in files["parallel_strategy.md"].decode()
