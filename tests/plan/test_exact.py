"""The plan is the optimum: against compiling every strategy, and against `compile` on what it chose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paradag
from paradag.compiler.plan import Bounds, Objective, Plan
from paradag.compiler.plan.layouts import KIND_NAMES
from paradag.compiler.spec import ChainTerm, LoadedSpec, Spec, StrategySpec
from paradag.compiler.spec.stage_law import degrees_of

from .conditions import DENSE, MLA, MOE, SLIDING, condition, every_strategy

CLOSE = 1e-9
SAMPLED = 6
"""Strategies of each table that are compiled."""
SMALL = Bounds(microbatches=1, trips=2, least_chunk=64)
WHOLE = Bounds(microbatches=1, trips=1, least_chunk=64)
"""Prompts in one piece."""


@dataclass(frozen=True)
class Measured:
    """A deployment as its DAGs tell it."""

    ttft: float
    tpot: float
    tokens_per_s: float
    gpus: int


def measured(loaded: LoadedSpec, spec: Spec) -> Measured | None:
    """What `compile` says; None where it rejects."""
    compiled = paradag.compile(replace(loaded, spec=spec), fix=False)
    if set(compiled.phases) != {"prefill", "decode"}:
        return None
    prefill, decode = compiled.phases["prefill"], compiled.phases["decode"]
    work = spec.workload
    tokens = (work.batch or 1) * work.output / (prefill.latency + work.output * decode.latency)
    gpus = max(prefill.graph.mesh.gpus, decode.graph.mesh.gpus)
    return Measured(prefill.latency, decode.latency, tokens, gpus)


def brute_force(loaded: LoadedSpec, gpus: int, bounds: Bounds) -> list[Measured]:
    """Every legal deployment on shared GPUs, compiled to its DAGs."""
    spec = loaded.spec

    def alone(strategy: StrategySpec) -> bool:
        with_it = spec.model_copy(update={"strategies": (strategy,)})
        return bool(paradag.compile(replace(loaded, spec=with_it), phase=strategy.phase, fix=False).phases)

    each = [[s for s in every_strategy(spec, p, gpus, bounds) if alone(s)] for p in ("prefill", "decode")]
    assert all(each)
    pairs = [spec.model_copy(update={"strategies": (p, d)}) for p in each[0] for d in each[1]]
    return [found for s in pairs if (found := measured(loaded, s)) is not None]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize(
    ("model", "batch", "bounds"),
    [
        pytest.param(DENSE, 1, WHOLE, id="dense"),
        pytest.param(DENSE, 1, SMALL, id="dense-chunked", marks=pytest.mark.slow),
        pytest.param(DENSE, 2, SMALL, id="dense-two", marks=pytest.mark.slow),
        pytest.param(MOE, 1, SMALL, id="moe", marks=pytest.mark.slow),
    ],
)
def test_the_choice_is_the_best_of_all(model: str, batch: int, bounds: Bounds, objective: Objective) -> None:
    loaded = condition(model, work=f"batch {batch} input 80 tokens output 8 tokens")
    plan = paradag.plan(loaded, objective, bounds=bounds, top=400)
    shared = [d for d in plan.top if not d.separate]
    every = _known((model, batch, bounds), loaded)
    if objective == "latency":
        best = min(every, key=lambda m: (m.tpot, -m.tokens_per_s, m.gpus))
    else:
        most = max(m.tokens_per_s for m in every)
        best = min((m for m in every if m.tokens_per_s >= 0.99 * most), key=lambda m: (m.gpus, -m.tokens_per_s))
    numbers = shared[0].numbers
    assert (numbers.tpot_s, numbers.ttft_s) == pytest.approx((best.tpot, best.ttft), rel=CLOSE)
    assert numbers.tokens_per_s == pytest.approx(best.tokens_per_s, rel=CLOSE)
    assert numbers.gpus == best.gpus


_CACHE: dict[tuple[str, int, Bounds], list[Measured]] = {}


def _known(case: tuple[str, int, Bounds], loaded: LoadedSpec) -> list[Measured]:
    if case not in _CACHE:
        _CACHE[case] = brute_force(loaded, 2, case[2])
    return _CACHE[case]


def agrees_with_compile(loaded: LoadedSpec, plan: Plan, deployments: int = 1) -> None:
    """The figures of the plan's best deployments are those of `compile`, which finds nothing wrong."""
    for deployment in plan.top[:deployments]:
        work = plan.spec.workload.model_copy(update={"batch": deployment.numbers.batch})
        spec = loaded.spec.model_copy(update={"strategies": deployment.strategies, "workload": work})
        compiled = paradag.compile(replace(loaded, spec=spec), fix=False)
        assert str(compiled.status) == "VALID", compiled.diagnostics
        numbers = deployment.numbers
        for phase, latency in (("prefill", numbers.ttft_s), ("decode", numbers.tpot_s)):
            analysis = compiled.phases[phase]
            assert analysis.loaded_latency == pytest.approx(latency, rel=CLOSE)
            assert analysis.memory.fullest.total == pytest.approx(numbers.memory_bytes[phase], rel=CLOSE)
            assert analysis.graph.mesh.gpus == numbers.gpus_by_phase[phase]


@pytest.mark.parametrize(
    ("model", "gpus"), [(DENSE, "2 of 4"), (MOE, "1 of 8"), (MLA, "2 of 4"), (SLIDING, "2 of 3")],
    ids=["dense", "moe", "mla", "sliding"],
)  # fmt: skip
def test_figures_are_those_of_compile(model: str, gpus: str) -> None:
    loaded = condition(model, gpus=gpus, work="batch 12 input 100 tokens output 20 tokens")
    for objective in ("latency", "throughput"):
        agrees_with_compile(loaded, paradag.plan(loaded, objective), deployments=2)


@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_figures_of_random_conditions(data: st.DataObject) -> None:
    model = data.draw(st.sampled_from([DENSE, MOE, MLA, SLIDING]))
    nodes, of = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    batch, tokens = data.draw(st.integers(1, 24)), data.draw(st.integers(4, 200))
    loaded = condition(model, gpus=f"{nodes} of {of}", work=f"batch {batch} input {tokens} tokens output 9 tokens")
    agrees_with_compile(loaded, paradag.plan(loaded, data.draw(st.sampled_from(["latency", "throughput"]))))


def test_every_evaluated_strategy_is_counted() -> None:
    plan = paradag.plan(condition(MOE, gpus="1 of 4"))
    for phase, counts in plan.counts.items():
        assert counts.considered == counts.evaluated + counts.memory + sum(counts.pruned.values())
        assert len(plan.tables[phase]["seconds"]) == counts.evaluated


def test_degrees_are_written_so_that_they_read_back() -> None:
    plan = paradag.plan(condition(MOE, gpus="1 of 4"))
    table = plan.tables["decode"]
    assert plan.chosen is not None
    strategy = plan.chosen.strategy("decode")
    assert strategy is not None
    degrees = degrees_of(strategy, is_moe=True)
    columns = [table[name] for name in ("pp", "ranks", "tp", "ep", "etp")]
    assert (degrees.pp, degrees.ranks, degrees.tp, degrees.ep, degrees.etp) in set(zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("model", "gpus"), [(DENSE, "3 of 2"), (MOE, "2 of 4"), (MLA, "4 of 2"), (SLIDING, "1 of 6")],
    ids=["dense", "moe", "mla", "sliding"],
)  # fmt: skip
def test_any_strategy_of_the_tables_costs_what_compile_says(model: str, gpus: str) -> None:
    loaded = condition(model, gpus=gpus, work="batch 12 input 600 tokens output 20 tokens")
    plan = paradag.plan(loaded)
    for phase, table in plan.tables.items():
        for row in np.random.default_rng(11).permutation(len(table["seconds"]))[:SAMPLED].tolist():
            one = {name: int(column[row]) for name, column in table.items() if name != "seconds"}
            kind = KIND_NAMES[one["sp_kind"]]
            sp = ChainTerm(name="sp", kind=kind, degree=None if kind == "tp" else one["sp"])
            chain = [ChainTerm(name="pp", degree=one["pp"]), *([sp] if phase == "prefill" else [])]
            if loaded.spec.model.moe is not None:
                chain.append(ChainTerm(name="ep", degree=one["ep"], etp=one["etp"]))
            chain.append(ChainTerm(name="tp", degree=one["tp"]))
            strategy = StrategySpec(phase=phase, chain=tuple(chain), ranks=one["ranks"],
                                    microbatches=one["microbatches"], chunk=one["chunk"] or None)  # fmt: skip
            work = loaded.spec.workload.model_copy(update={"batch": one["replica_batch"]})
            spec = loaded.spec.model_copy(update={"strategies": (strategy,), "workload": work})
            analysis = paradag.compile(replace(loaded, spec=spec), phase=phase, fix=False).phases[phase]
            assert analysis.latency == pytest.approx(table["seconds"][row], rel=CLOSE), one
            if phase == "decode":
                assert analysis.memory.fullest.total == pytest.approx(table["memory_bytes"][row], rel=CLOSE), one
