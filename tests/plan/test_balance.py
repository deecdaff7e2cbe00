"""Experts on ranks: never worse than necessary on small cases, close to the bound on large ones, all of them there."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paradag.compiler.plan.balance import Dealt, balance, contiguous

Floats = NDArray[np.float64]


def lightest(loads: list[float], ranks: int, room: int) -> float:
    """The heaviest rank of the best way to deal slots, by trying all."""
    if ranks == 1:
        return sum(loads)
    best = np.inf
    for rest in combinations(range(1, len(loads)), room - 1):
        mine = {0, *rest}
        here = sum(loads[i] for i in mine)
        if here < best:
            left = [load for i, load in enumerate(loads) if i not in mine]
            best = min(best, max(here, lightest(left, ranks - 1, room)))
    return float(best)


def skewed(seed: int, layers: int, experts: int) -> Floats:
    weights = np.random.default_rng(seed).lognormal(0.0, 1.0, (layers, experts))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def replicas(dealt: Dealt, layer: int, experts: int) -> NDArray[np.int64]:
    return np.bincount(dealt.experts[layer].reshape(-1), minlength=experts)


@pytest.mark.parametrize(("experts", "ranks", "redundant"), [(6, 2, 0), (6, 3, 0), (4, 2, 2), (8, 4, 0), (6, 2, 2)])
def test_small_cases_are_close_to_the_best_of_all(experts: int, ranks: int, redundant: int) -> None:
    shares = skewed(experts * ranks, 20, experts)
    dealt = balance(shares, ranks, redundant)
    for layer in range(len(shares)):
        each = dealt.loads[layer].reshape(-1).tolist()
        best = lightest(each, ranks, len(each) // ranks)
        assert dealt.rank_loads[layer].max() <= best * 1.05 + 1e-12


@pytest.mark.parametrize("redundant", [0, 32, 64])
def test_large_cases_are_close_to_the_bound(redundant: int) -> None:
    """The heaviest rank has the mean at least, and the heaviest slot beside the lightest ones."""
    shares = skewed(7, 58, 256)
    dealt = balance(shares, 32, redundant)
    slots = np.sort(dealt.loads.reshape(len(shares), -1), axis=1)
    room = dealt.loads.shape[2]
    bound = np.maximum(1 / 32, slots[:, -1] + slots[:, : room - 1].sum(axis=1))
    assert (dealt.rank_loads.max(axis=1) <= 1.02 * bound).all()
    assert dealt.imbalance.mean() < contiguous(shares, 32).imbalance.mean()


@given(
    st.integers(1, 3), st.sampled_from([(4, 2), (6, 3), (8, 8), (5, 1), (12, 4)]), st.integers(0, 3), st.integers(0, 99)
)
def test_every_expert_is_there_with_its_whole_load(layers: int, sizes: tuple[int, int], more: int, seed: int) -> None:
    experts, ranks = sizes
    redundant = more * ranks if ranks > 1 else 0
    shares = skewed(seed, layers, experts)
    dealt = balance(shares, ranks, redundant)
    assert dealt.experts.shape == (layers, ranks, (experts + redundant) // ranks)
    for layer in range(layers):
        count = replicas(dealt, layer, experts)
        assert (count.min() >= 1 and count.max() <= ranks) or redundant > experts * (ranks - 1)
        total = np.bincount(dealt.experts[layer].reshape(-1), weights=dealt.loads[layer].reshape(-1))
        np.testing.assert_allclose(total, shares[layer], rtol=1e-12)
    assert (dealt.imbalance >= 1 - 1e-12).all()


def test_the_hottest_expert_is_replicated_first_and_on_different_ranks() -> None:
    shares = np.array([[0.7, 0.1, 0.1, 0.1]])
    dealt = balance(shares, 2, 2)
    assert replicas(dealt, 0, 4).tolist() == [2, 2, 1, 1]
    assert all(0 in rank for rank in dealt.experts[0].tolist())
    assert dealt.imbalance[0] == pytest.approx(1.0)


def test_without_a_load_experts_stay_in_order() -> None:
    dealt = contiguous(np.full((1, 6), 1 / 6), 3)
    assert dealt.experts.tolist() == [[[0, 1], [2, 3], [4, 5]]]
    assert dealt.imbalance[0] == pytest.approx(1.0)
