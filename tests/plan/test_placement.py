"""Within the chosen degrees: order of axes and split of layers are the best, and written only where they gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import paradag
from paradag.compiler.cost import node_costs, resolve_hardware
from paradag.compiler.ir.mesh import build_mesh
from paradag.compiler.plan import Law, Plan
from paradag.compiler.plan.lowered import lowered
from paradag.compiler.plan.orders import USUAL, PhaseOrders, aligned, orders
from paradag.compiler.plan.splits import SplitTimes, admitted, neighbours
from paradag.compiler.spec import LoadedSpec
from paradag.grammar import print_spec

from .conditions import DENSE, MLA, condition
from .test_exact import CLOSE, agrees_with_compile

DENSE_FIRST = """model "dense first" { layers 9 { dense 3 } hidden 256 vocab 4096 ffn 256
    attention gqa { heads 4 kv_heads 2 head_dim 64 }
    moe { experts 8 top_k 2 ffn 384 } }"""


def pipeline(stages: int) -> Law:
    """Pipelines of so many stages of one GPU each, and nothing else."""
    return Law(lambda table: table.ranks == 1, lambda dp, pp, _: np.where((pp == stages) & (dp == 1), pp, 10**6))


@pytest.fixture(scope="module")
def exchanging() -> tuple[LoadedSpec, Plan]:
    """Layouts that exchange more over the experts' axis than over tp, on two domains of four GPUs."""
    loaded = condition(MLA, gpus="2 of 4", work="batch 16 input 200 tokens output 8 tokens")
    one = Law(lambda table: (table.tp == 2) & (table.ep == 4) & (table.etp == 2))
    return loaded, paradag.plan(loaded, law=one)


@pytest.fixture(scope="module")
def staged() -> tuple[LoadedSpec, Plan]:
    """Three stages, the first layers dense."""
    loaded = condition(DENSE_FIRST, gpus="1 of 3", work="batch 12 input 200 tokens output 8 tokens")
    return loaded, paradag.plan(loaded, "throughput", law=pipeline(3))


def test_an_order_that_gains_is_written_and_compile_agrees(exchanging: tuple[LoadedSpec, Plan]) -> None:
    loaded, plan = exchanging
    assert plan.chosen is not None
    assert {s.placement for s in plan.chosen.strategies} == {("pp", "tp", "sp", "adp")}
    assert "placement pp tp sp adp" in print_spec(plan.spec)
    assert any(
        a.name == "placement" and f"better in {len(plan.top)} of {len(plan.top)}" in a.value for a in plan.assumptions
    )
    agrees_with_compile(loaded, plan, deployments=5)


def test_no_order_is_better_than_the_one_written(exchanging: tuple[LoadedSpec, Plan]) -> None:
    loaded, plan = exchanging
    assert plan.chosen is not None
    hardware, _ = resolve_hardware(loaded.spec.cluster)
    for strategy in plan.chosen.strategies:
        found = PhaseOrders(plan.spec, lowered(plan.spec, strategy.phase), hardware).compare(whole=True)
        assert found is not None and len(found.latency) == 2
        for order, latency in found.latency.items():
            placed = tuple(s.model_copy(update={"placement": order}) for s in plan.chosen.strategies)
            compiled = paradag.compile(plan.spec.model_copy(update={"strategies": placed}), fix=False)
            assert compiled.phases[strategy.phase].latency == pytest.approx(latency, rel=CLOSE)
        assert found.best == strategy.placement


def test_the_next_best_is_ranked_by_the_new_figures(exchanging: tuple[LoadedSpec, Plan]) -> None:
    _, plan = exchanging
    rates = [d.numbers.tpot_s for d in plan.top]
    assert rates == sorted(rates, key=lambda r: r or 0.0)
    assert plan.chosen is plan.top[0] and plan.runner_up is not None
    assert plan.chosen in plan.pareto


@pytest.mark.parametrize("work", ["", "rate 5 req/s"])
def test_a_continuous_batch_has_the_figures_of_compile_too(work: str) -> None:
    loaded = condition(MLA, gpus="2 of 4", work=f"batch 16 mode mixed input 200 tokens output 8 tokens {work}")
    one = Law(lambda table: (table.tp == 2) & (table.ep == 4) & (table.etp == 2))
    plan = paradag.plan(loaded, law=one, top=5)
    assert any(s.placement for d in plan.top for s in d.strategies)
    for deployment in plan.top:
        n = deployment.numbers
        batch = plan.spec.workload.model_copy(update={"batch": n.batch})
        spec = plan.spec.model_copy(update={"strategies": deployment.strategies, "workload": batch})
        phases = paradag.compile(spec, fix=False).phases
        assert phases["prefill"].loaded_latency == pytest.approx(n.ttft_s, rel=CLOSE)
        assert phases["decode"].loaded_latency == pytest.approx(n.tpot_s, rel=CLOSE)
        for phase, needed in n.memory_bytes.items():
            assert phases[phase].memory.fullest.total == pytest.approx(needed, rel=CLOSE)


def test_a_split_that_gains_is_written_and_compile_agrees(staged: tuple[LoadedSpec, Plan]) -> None:
    loaded, plan = staged
    assert plan.chosen is not None
    # on the same GPUs both phases keep the same layers, or the cache would move
    assert {s.term("pp").layers for s in plan.chosen.strategies if s.term("pp")} == {(4, 3, 2)}  # type: ignore[union-attr]
    assert "layers 4 3 2" in print_spec(plan.spec)
    agrees_with_compile(loaded, plan, deployments=3)


def test_a_split_takes_its_layers_seconds_along(staged: tuple[LoadedSpec, Plan]) -> None:
    loaded, plan = staged
    hardware, _ = resolve_hardware(loaded.spec.cluster)
    for strategy in plan.spec.strategies:
        graph = lowered(plan.spec, strategy.phase)
        times = SplitTimes(graph, node_costs(graph, hardware))
        for split in ((4, 3, 2), (3, 3, 3), (1, 7, 1)):
            chain = tuple(t.model_copy(update={"layers": split}) for t in strategy.chain)
            alone = strategy.model_copy(update={"chain": chain})
            compiled = paradag.compile(plan.spec.model_copy(update={"strategies": (alone,)}), fix=False)
            assert compiled.phases[strategy.phase].latency == pytest.approx(times.latency(split), rel=CLOSE)


def test_where_nothing_leaves_a_domain_there_is_nothing_to_compare() -> None:
    plan = paradag.plan(condition(DENSE, gpus="1 of 4"), max_gpus=1)
    assert all(a.name != "placement" for a in plan.assumptions)
    mesh = build_mesh(attention={"adp": 2, "sp": 1, "tp": 4}, experts={"edp": 1, "ep": 8, "etp": 1})
    assert orders(mesh, 8) == [USUAL]
    assert orders(mesh, 4) == [USUAL, ("pp", "tp", "sp", "adp")]
    assert orders(replace(mesh, first_rank=4), 8) != [USUAL]


def test_groups_that_straddle_domains_are_not_trusted() -> None:
    """Pairs three GPUs apart: in domains of 8 the cost model has them inside, but 6 and 9 are not."""
    sizes = {"adp": 2, "sp": 1, "tp": 3}
    experts = {"edp": 1, "ep": 6, "etp": 1}
    mesh = build_mesh(attention=sizes, experts=experts, dp=2)
    assert aligned(replace(mesh, dp=1), ["adp"], 8) and not aligned(mesh, ["adp"], 8)
    assert aligned(mesh, ["adp"], 6) and aligned(mesh, ["tp"], 3)


def test_neighbours_move_one_layer_of_an_end_or_the_slowest_stage() -> None:
    found = set(neighbours((2, 2, 1, 2), 1))
    assert (1, 3, 1, 2) in found and (2, 2, 2, 1) in found and (2, 1, 2, 2) in found
    assert all(sum(split) == 7 and min(split) > 0 for split in found)


def test_splits_that_the_rules_advise_against_are_left_out() -> None:
    model = condition(DENSE.replace("layers 3", "layers 8")).spec.model
    assert admitted(model, (3, 3, 2)) and not admitted(model, (4, 2, 2))
