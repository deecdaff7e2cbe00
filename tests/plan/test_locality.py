"""Where the KV cache moves: bytes between replicas, what stays inside domains, and the best assignment of requests."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

import paradag
from paradag.compiler.plan.locality import Locality, _assigned, analyse_locality
from paradag.compiler.plan.lowered import lowered
from paradag.compiler.plan.report import Sensitivity, gather
from paradag.compiler.plan.report._mapping import mapping
from paradag.compiler.spec import ChainTerm, StrategySpec
from paradag.passes.analysis import plan_transfer

from .conditions import DENSE, condition


def pools(prefill: int, decode: int, *, domain: int, batch: int) -> tuple[Locality, float]:
    """Replicas of one GPU in pools of their own, and all bytes that move."""
    loaded = condition(DENSE, gpus=f"4 of {domain}", work=f"batch {batch} input 32 tokens output 8 tokens")
    strategies = (
        StrategySpec(phase="prefill", chain=(ChainTerm(name="dp", degree=prefill),), pools="separate"),
        StrategySpec(phase="decode", chain=(ChainTerm(name="dp", degree=decode),), pools="separate"),
    )
    spec = loaded.spec.model_copy(update={"strategies": strategies})
    graphs = [lowered(spec, p) for p in ("prefill", "decode")]  # type: ignore[arg-type]
    transfer = plan_transfer(*graphs, batch)
    return analyse_locality(transfer, graphs[0].mesh, graphs[1].mesh, domain), transfer.total_bytes


def test_requests_are_assigned_to_the_replicas_in_their_domain() -> None:
    """Prefill on GPUs 0-5, decode on 6-11, domains of four: requests of 4 and 5 are best served on 6 and 7."""
    found, total = pools(6, 6, domain=4, batch=6)
    assert found.bytes == pytest.approx(total) and found.inside == 0
    assert sorted((f.source, f.target) for f in found.flows) == [(i, i) for i in range(6)]
    assert found.assignment[4:] in ((0, 1), (1, 0))
    assert sorted(found.assignment) == list(range(6))
    assert found.assigned_inside == pytest.approx(total / 3)


def test_inside_one_domain_nothing_is_assigned_anew() -> None:
    found, total = pools(2, 2, domain=4, batch=4)
    assert found.inside == pytest.approx(total) == pytest.approx(found.assigned_inside)
    assert found.assignment == (0, 1)
    assert found.swapped_inside == pytest.approx(total)


def test_the_order_of_pools_is_compared() -> None:
    """Prefill on 0-4 and decode on 5: they meet in the second domain. Decode first, it would be with 1-3."""
    found, total = pools(5, 1, domain=4, batch=5)
    assert found.inside == pytest.approx(total / 5)
    assert found.swapped_inside == pytest.approx(total * 3 / 5)


def test_assignments_are_as_good_as_the_best_of_all() -> None:
    random = np.random.default_rng(5)
    for count in (2, 3, 5):
        for _ in range(20):
            gain = random.integers(0, 9, (count, count)).astype(float)
            best = max(sum(gain[i, p] for i, p in enumerate(order)) for order in permutations(range(count)))
            mine = sum(gain[i, p] for i, p in enumerate(_assigned(gain)))
            assert mine >= 0.9 * best


def test_the_report_tells_gpus_bytes_and_link() -> None:
    loaded = condition(DENSE, gpus="2 of 4", work="batch 8 input 400 tokens output 4 tokens  require ttft <= 1 s")
    plan = paradag.plan(loaded, top=40)
    separate = next(d for d in (*plan.top, *plan.pareto) if d.separate)
    found = gather(plan.__class__(**{**plan.__dict__, "chosen": separate}), loaded, Sensitivity())
    text = "\n".join(mapping(found))
    assert "| prefill replica | decode replica | bytes | link | inside a domain |" in text
    assert "stay inside a scale-up domain of 4 GPUs" in text
    assert "Host link: nothing in these figures uses it" in text and "NUMA: the cluster description has no" in text
    assert "Axes to links" in text and "Order of" in text
