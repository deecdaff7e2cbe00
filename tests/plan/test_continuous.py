"""Where requests come and go one by one: what the plan says of a continuous batch is what `compile` says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import paradag
from paradag.compiler.plan import Bounds, pools
from paradag.compiler.plan.frontier import grouped_band, joined, skyband
from paradag.compiler.spec import ChainTerm, LoadedSpec, Spec, StrategySpec

from .conditions import DENSE, MLA, MOE, condition, every_strategy
from .test_exact import CLOSE, agrees_with_compile

SMALL = Bounds(microbatches=4, trips=2, least_chunk=64)
WHOLE = Bounds(microbatches=1, trips=1)
"""Prompts in one piece."""


@pytest.mark.parametrize(
    ("model", "gpus", "work"),
    [
        pytest.param(DENSE, "2 of 2", "input 100 tokens output 200 tokens require tpot <= 1 ms", id="dense"),
        pytest.param(MOE, "1 of 4", "input 100 tokens output 20 tokens rate 50 req/s", id="moe-rate"),
        pytest.param(MLA, "2 of 2", "batch 12 mode mixed input 60 tokens output 40 tokens", id="mla-given-batch"),
    ],
)
def test_figures_are_those_of_compile(model: str, gpus: str, work: str) -> None:
    loaded = condition(model, gpus=gpus, work=work)
    plan = paradag.plan(loaded, "throughput", top=4, bounds=SMALL)
    assert plan.spec.workload.mode == "mixed"
    assert plan.top
    agrees_with_compile(loaded, plan, deployments=4)


def test_pools_and_shared_gpus_are_both_searched() -> None:
    loaded = condition(DENSE, gpus="1 of 3", work="input 100 tokens output 20 tokens")
    plan = paradag.plan(loaded, "throughput", top=200, bounds=SMALL)
    assert {d.separate for d in plan.top} == {False, True}
    apart = next(d for d in plan.top if d.separate)
    agrees_with_compile(loaded, replace(plan, top=(apart,)))


def test_throughput_is_that_of_the_slower_pool() -> None:
    loaded = condition(DENSE, gpus="1 of 3", work="input 100 tokens output 20 tokens")
    plan = paradag.plan(loaded, "throughput", top=200, bounds=SMALL)
    apart = next(d for d in plan.top if d.separate)
    spec = loaded.spec.model_copy(
        update={
            "strategies": apart.strategies,
            "workload": plan.spec.workload.model_copy(update={"batch": apart.numbers.batch}),
        }
    )
    phases = paradag.compile(replace(loaded, spec=spec), fix=False).phases
    prefill, decode = phases["prefill"], phases["decode"]
    assert prefill.per_prompt is not None
    prompts = prefill.graph.mesh.dp / prefill.per_prompt
    answers = apart.numbers.batch / (spec.workload.output * decode.loaded_latency)
    # what can be sent may bind before what can be computed
    assert apart.numbers.requests_per_s <= min(prompts, answers) * (1 + CLOSE)
    assert decode.loaded_latency == decode.latency


@pytest.mark.slow
def test_the_choice_is_the_best_of_all_on_shared_gpus() -> None:
    """Every prefill and decode strategy of one GPU or two whose weights lie alike, with batches of powers of two."""
    loaded = condition(DENSE, gpus="1 of 2", work="input 80 tokens output 16 tokens require tpot <= 6 ms")
    plan = paradag.plan(loaded, "throughput", bounds=WHOLE, top=400)
    assert plan.feasible
    best = next(d for d in plan.top if not d.separate)
    most = max(_served(loaded, batch) for batch in (1, 4, 8, 16))
    assert best.numbers.tokens_per_s >= most * (1 - CLOSE)
    own = _served(loaded, best.numbers.batch)
    assert best.numbers.tokens_per_s == pytest.approx(own, rel=CLOSE)


def _served(loaded: LoadedSpec, batch: int) -> float:
    """Most tokens/s of any legal pair of strategies with so many sequences, by `compile`; 0 where none meets TPOT."""
    work = loaded.spec.workload.model_copy(update={"batch": batch, "mode": "mixed"})
    spec = loaded.spec.model_copy(update={"workload": work})
    found = 0.0
    for prefill in _whole_prompts(spec, batch):
        for decode in every_strategy(spec, "decode", 2, Bounds(microbatches=4, trips=1)):
            if prefill.degree("dp") != decode.degree("dp") or prefill.degree("tp") != decode.degree("tp"):
                continue
            if prefill.degree("pp") != decode.degree("pp"):
                continue
            both = spec.model_copy(update={"strategies": (prefill, decode)})
            compiled = paradag.compile(replace(loaded, spec=both), fix=False)
            if str(compiled.status) != "VALID" or any(d.code == "PD303" for d in compiled.diagnostics):
                continue
            found = max(found, compiled.phases["decode"].tokens_per_s)
    return found


def _whole_prompts(spec: Spec, batch: int) -> Iterator[StrategySpec]:
    """Prefill strategies without chunks that take a power of two of prompts at a time."""
    for strategy in every_strategy(spec, "prefill", 2, WHOLE):
        share = batch // strategy.degree("dp")
        if strategy.degree("sp") > 1 or share * strategy.degree("dp") != batch:
            continue
        for count in {share // size for size in (1 << n for n in range(12)) if size <= share and share % size == 0}:
            yield strategy.model_copy(update={"microbatches": count})


@pytest.mark.slow
def test_the_choice_is_the_best_of_all_in_pools() -> None:
    """Every prefill and decode strategy in pools of three GPUs together, with six sequences in flight."""
    loaded = condition(DENSE, gpus="1 of 3", work="batch 6 mode mixed input 80 tokens output 16 tokens")
    plan = paradag.plan(loaded, "throughput", bounds=WHOLE, top=400)
    best = max(d.numbers.requests_per_s for d in plan.top if d.separate)
    assert best == pytest.approx(max(_served_by_pools(loaded, 6)), rel=CLOSE)


def _served_by_pools(loaded: LoadedSpec, batch: int) -> Iterator[float]:
    """Requests/s of the slower pool of every legal pair, by `compile`; what is sent is little here."""
    spec = loaded.spec
    for prefill in every_strategy(spec, "prefill", 2, WHOLE):
        share = -(-batch // prefill.degree("dp"))
        for size in (1, 2, 4):
            count = -(-share // size)
            if -(-share // count) != size:
                continue
            first = prefill.model_copy(update={"microbatches": count, "pools": "separate"})
            for decode in every_strategy(spec, "decode", 2, Bounds(microbatches=4, trips=1)):
                here = batch // decode.degree("dp")
                if decode.microbatches not in {min(here, decode.degree("pp")), min(here, 2 * decode.degree("pp"))}:
                    continue
                both = (first, decode.model_copy(update={"pools": "separate"}))
                asked = replace(loaded, spec=spec.model_copy(update={"strategies": both}))
                compiled = paradag.compile(asked, fix=False)
                if str(compiled.status) == "VALID":
                    one, other = compiled.phases["prefill"], compiled.phases["decode"]
                    assert one.per_prompt is not None
                    yield min(one.graph.mesh.dp / one.per_prompt, batch / (spec.workload.output * other.loaded_latency))


def test_pools_are_the_same_however_many_are_paired_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = condition(DENSE, gpus="2 of 4", work="input 100 tokens output 20 tokens require ttft <= 50 ms")
    whole = paradag.plan(loaded, "throughput", bounds=SMALL)
    monkeypatch.setattr(pools, "AT_ONCE", 1)
    parts = paradag.plan(loaded, "throughput", bounds=SMALL)
    assert whole.chosen == parts.chosen
    assert [any(a.name == "pools" for a in plan.assumptions) for plan in (whole, parts)] == [False, True]
    figures = [{(n.tpot_s, n.ttft_s, n.gpus, n.requests_per_s) for n in (d.numbers for d in plan.pareto)}
               for plan in (whole, parts)]  # fmt: skip
    assert figures[0] == figures[1]


def test_a_rate_makes_fewest_gpus_the_aim() -> None:
    """More than what arrives is not served, so that of those who serve it the smallest is the best."""
    work = "input 100 tokens output 20 tokens rate {} req/s"
    gpus = []
    for rate in (1, 100_000):
        loaded = condition(DENSE, gpus="any of 4", work=work.format(rate))
        plan = paradag.plan(loaded, "throughput", bounds=SMALL, max_gpus=4)
        gpus.append(plan.top[0].numbers.gpus if plan.feasible else 99)
    assert gpus[0] == 1 < gpus[1]


def test_when_nothing_fits_the_shortfall_is_told() -> None:
    loaded = condition(DENSE.replace("hidden 256", "hidden 8192"), work="input 100 tokens output 20 tokens")
    plan = paradag.plan(loaded)
    assert not plan.feasible
    assert plan.top[0].misses[0].constraint == "memory"


def test_sp_shares_weights_with_attention_dp() -> None:
    """A prefill that cuts sequences over ranks and a decode that deals requests to them hold the same weights."""
    loaded = condition(MOE, gpus="1 of 4", work="batch 8 mode mixed input 96 tokens output 16 tokens")
    prefill = StrategySpec(phase="prefill", chain=(ChainTerm(name="sp", degree=2), ChainTerm(name="ep", degree=4),
                                                   ChainTerm(name="tp", degree=2)), microbatches=8)  # fmt: skip
    decode = StrategySpec(phase="decode", chain=(ChainTerm(name="ep", degree=4), ChainTerm(name="tp", degree=2)))
    both = loaded.spec.model_copy(update={"strategies": (prefill, decode)})
    phases = paradag.compile(replace(loaded, spec=both), fix=False).phases
    assert phases["prefill"].memory.fullest.weights == phases["decode"].memory.fullest.weights


def test_groups_are_banded_apart() -> None:
    rng = np.random.default_rng(3)
    group, first, second = rng.integers(0, 5, 300), rng.integers(0, 9, 300) / 1.0, rng.integers(0, 9, 300) / 1.0
    found = grouped_band(group, first, second, 2)
    expected = []
    for number in range(5):
        mine = np.flatnonzero(group == number)
        expected.append(mine[skyband(np.stack([first[mine], second[mine]]), 2)])
    rows = {(g, a, b) for g, a, b in zip(group[found], first[found], second[found], strict=True)}
    best = np.concatenate(expected)
    assert rows == {(g, a, b) for g, a, b in zip(group[best], first[best], second[best], strict=True)}


def test_joined_pairs_equal_places() -> None:
    first, second = np.array([3, 1, 3]), np.array([1, 3, 3, 7])
    assert set(zip(*(a.tolist() for a in joined(first, second)), strict=True)) == {
        (0, 1), (0, 2), (1, 0), (2, 1), (2, 2)
    }  # fmt: skip
