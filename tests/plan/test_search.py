"""Objectives, requirements, bounds and interruption of the search."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest

import paradag
from paradag.compiler.plan import Deployment, Law, Plan, question, tabulate
from paradag.compiler.plan.joint import Pairs, ranking
from paradag.compiler.plan.layouts import Layouts
from paradag.compiler.spec import StrategySpec
from paradag.compiler.spec.stage_law import degrees_of

from .conditions import DENSE, MOE, condition

WORK = "batch 8 input 100 tokens output 20 tokens"


def chosen(plan: Plan) -> tuple[float, float, int]:
    assert plan.chosen is not None
    numbers = plan.chosen.numbers
    assert numbers.tpot_s is not None
    return numbers.tpot_s, numbers.tokens_per_s, numbers.gpus


def test_objectives_trade_latency_for_throughput() -> None:
    loaded = condition(DENSE, gpus="2 of 4", work=WORK)
    latency, throughput = (chosen(paradag.plan(loaded, o)) for o in ("latency", "throughput"))
    assert latency[0] <= throughput[0]
    assert latency[1] <= throughput[1]


def test_a_required_ttft_makes_throughput_the_objective() -> None:
    assert paradag.plan(condition(DENSE, work=WORK)).objective == "latency"
    plan = paradag.plan(condition(DENSE, work=f"{WORK} require ttft <= 1 s"))
    assert plan.objective == "throughput"
    assert plan.feasible and plan.chosen is not None and not plan.chosen.misses


def test_requirements_are_kept() -> None:
    free = paradag.plan(condition(MOE, gpus="2 of 4", work=WORK), "throughput")
    limit = chosen(free)[0] * 0.8
    bound = paradag.plan(
        condition(MOE, gpus="2 of 4", work=f"{WORK} require tpot <= {limit * 1e6:.3f} us"), "throughput"
    )
    assert bound.feasible == any(numbers.tpot_s <= limit for numbers in (d.numbers for d in free.pareto))
    if bound.feasible:
        assert chosen(bound)[0] <= limit


def test_when_nothing_meets_the_requirements_the_closest_are_told() -> None:
    plan = paradag.plan(condition(DENSE, work=f"{WORK} require ttft <= 1 us"))
    assert not plan.feasible and not plan.spec.strategies
    miss = plan.top[0].misses[0]
    assert miss.constraint == "ttft" and miss.factor == pytest.approx(miss.value / 1e-6)
    # nothing comes closer
    fastest = min(float(plan.tables["prefill"]["seconds"].min()), miss.value)
    assert miss.value == pytest.approx(fastest)


def test_when_nothing_fits_the_shortfall_is_told() -> None:
    plan = paradag.plan(condition(DENSE.replace("hidden 256", "hidden 8192"), work=WORK))
    assert not plan.feasible
    assert plan.top[0].misses[0].constraint == "memory"
    assert plan.evaluated == 0 and all(c.memory for c in plan.counts.values())


def test_fewest_gpus_among_the_best() -> None:
    plan = paradag.plan(condition(DENSE, gpus="1 of 8", work="batch 1 input 16 tokens output 64 tokens"), "throughput")
    best = max(d.numbers.tokens_per_s for d in plan.top)
    for deployment in plan.top:
        if deployment.numbers.tokens_per_s >= 0.99 * best:
            assert chosen(plan)[2] <= deployment.numbers.gpus


def test_batch_and_gpus_are_searched_where_the_file_leaves_them_open() -> None:
    work = "input 100 tokens output 20 tokens require tpot <= 5 ms"
    plan = paradag.plan(condition(DENSE, gpus="any of 2", work=work), "throughput", max_gpus=4)
    assert plan.feasible and plan.spec.workload.batch == (plan.chosen.numbers.batch if plan.chosen else None)
    assert {a.name for a in plan.assumptions} >= {"batch"}
    assert chosen(plan)[2] <= 4


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_one_phase_alone(mode: str) -> None:
    plan = paradag.plan(condition(MOE, work=f"{WORK} mode {mode}"))
    assert [s.phase for s in plan.spec.strategies] == [mode]
    assert set(plan.tables) == {mode}


def test_another_law_changes_the_plan() -> None:
    def one_expert_each(layouts: Layouts) -> np.ndarray:
        return np.asarray(layouts.ep == 4)

    plan = paradag.plan(condition(MOE, gpus="1 of 4", work=WORK), law=Law(fits=one_expert_each))
    assert plan.counts["decode"].pruned["law"] > 0
    assert set(plan.tables["decode"]["ep"].tolist()) == {4}


def test_an_interruption_gives_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabulate, "AT_ONCE", 0)

    def interrupt(what: str) -> None:
        if "chunks" in what:
            raise KeyboardInterrupt

    plan = paradag.plan(
        condition(DENSE, gpus="1 of 2", work="batch 8 input 2000 tokens output 20 tokens"), progress=interrupt
    )
    assert plan.feasible and not plan.complete
    assert not plan.tables["prefill"]["chunk"].any()


@pytest.mark.parametrize("when", ["deployments in pools", "placement", "deployments of batch 12"])
def test_an_interruption_while_deployments_are_made_gives_the_best_so_far(when: str) -> None:
    def interrupt(what: str) -> None:
        if what == when:
            raise KeyboardInterrupt

    mode = " mode decode" if "batch" in when else ""
    loaded = condition(DENSE, gpus="1 of 4", work=f"input 100 tokens output 20 tokens{mode}")
    plan, whole = paradag.plan(loaded, progress=interrupt), paradag.plan(loaded)
    assert plan.feasible and not plan.complete and whole.complete
    assert plan.pairs <= whole.pairs
    if "pools" in when:
        assert not any(d.separate for d in plan.top)
    if "batch" in when:
        assert max(d.numbers.batch for d in plan.top) < 12


def test_an_interruption_before_any_deployment_ends_the_search() -> None:
    def interrupt(what: str) -> None:
        if "shared" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paradag.plan(condition(DENSE, work="input 100 tokens output 20 tokens"), progress=interrupt)


def test_stages_of_many_ranks_are_bounded_and_the_bound_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question, "MOST_RANKS", 2)
    plan = paradag.plan(condition(DENSE, gpus="1 of 8", work=WORK))
    assert all(table["ranks"].max() == 2 for table in plan.tables.values())
    assert chosen(plan)[2] > 2
    assert [a.value for a in plan.assumptions if a.name == "ranks of a stage"] == ["up to 2"]


def test_pools_are_sized_independently() -> None:
    plan = paradag.plan(condition(DENSE, gpus="1 of 3", work=WORK), "throughput", top=50)
    sizes = {tuple(d.numbers.gpus_by_phase.values()) for d in plan.top if d.separate}
    assert all(sum(pair) <= 3 for pair in sizes)
    for deployment in plan.top:
        numbers = deployment.numbers
        expected = sum(numbers.gpus_by_phase.values()) if deployment.separate else max(numbers.gpus_by_phase.values())
        assert numbers.gpus == expected


def test_the_same_split_said_in_two_ways_is_told_once() -> None:
    """`dp 2` and a stage of `ranks 2` whose halves share nothing are the same deployment."""
    plan = paradag.plan(condition(MOE, gpus="1 of 4", work=WORK), top=60)
    table = plan.tables["decode"]
    apart = (np.gcd(table["adp"], table["edp"]) > 1) & (table["pp"] == 1)
    assert apart.any()
    told = [(d.separate, *(f"{x:.9e}" for x in figures(d)), *(shape(s) for s in d.strategies)) for d in plan.top]
    assert len(set(told)) == len(told)


def figures(deployment: Deployment) -> tuple[float, ...]:
    numbers = deployment.numbers
    assert numbers.ttft_s is not None and numbers.tpot_s is not None
    return numbers.ttft_s, numbers.tpot_s, numbers.requests_per_s, *numbers.memory_bytes.values()


def shape(strategy: StrategySpec) -> tuple[object, ...]:
    """What is left of a strategy when independent parts of a stage count as replicas."""
    d = degrees_of(strategy, is_moe=True)
    apart = math.gcd(d.adp, d.edp)
    return (d.dp * apart, d.ranks // apart, d.pp, d.sp, d.tp, d.ep, d.etp, d.sp_on_tp, strategy.microbatches,
            (strategy.chunk or 0) * d.dp)  # fmt: skip


def pairs(**columns: list[float]) -> Pairs:
    """Deployments with the given columns; the others are alike."""
    count = len(next(iter(columns.values())))
    zeros = {f.name: np.zeros(count, dtype=np.int64) for f in fields(Pairs)}
    given = {name: np.asarray(values) for name, values in columns.items()}
    return Pairs(**{**zeros, "ttft": np.ones(count), **given})


@pytest.mark.parametrize("per_gpu", [False, True])
def test_equal_throughput_is_decided_by_tpot_then_gpus_then_simplicity(per_gpu: bool) -> None:
    columns = {"tpot": [3.0, 2.0, 2.0, 2.0], "gpus": [4] * 4, "complexity": [0, 3, 1, 2]}
    tied = pairs(requests=[1.0, 1 + 1e-15, 1.0, 1.0], **columns)
    assert ranking(tied, "throughput", per_gpu, 10).tolist() == [2, 3, 1, 0]


def test_equal_latency_is_decided_by_throughput_then_gpus_then_simplicity() -> None:
    tied = pairs(requests=[1.0, 2.0, 2.0, 2.0], tpot=[0.1] * 4, gpus=[1, 4, 2, 2], complexity=[0, 0, 2, 1])
    assert ranking(tied, "latency", False, 10).tolist() == [3, 2, 1, 0]


def test_the_closest_are_told_by_the_objective_where_they_miss_alike() -> None:
    impossible = f"{WORK} require throughput >= 1000000000 tokens/s"
    plan = paradag.plan(condition(DENSE, work=impossible), "latency")
    assert not plan.feasible
    keys = [(max(m.factor for m in d.misses), d.numbers.tpot_s) for d in plan.top]
    assert keys == sorted(keys)
