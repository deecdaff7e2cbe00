"""Closed forms over strategies against the recurrence that they stand for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paradag.compiler.cost import pipeline_makespan
from paradag.compiler.cost.network import boundary_crosses
from paradag.compiler.ir.mesh import Axis, Mesh
from paradag.compiler.plan.frontier import skyband
from paradag.compiler.plan.phase import crossings
from paradag.compiler.plan.schedule import chunked_seconds, prefill_seconds

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, larger=st.integers(1, 4), smaller=st.integers(0, 4), servers=st.integers(1, 7))
def test_two_sizes_of_microbatches(seed: int, larger: int, smaller: int, servers: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.random((2, 3, servers))
    items = np.concatenate([np.repeat(first[:, None], larger, 1), np.repeat(second[:, None], smaller, 1)], axis=1)
    found = prefill_seconds(first, second, np.full(3, larger), np.full(3, smaller))
    np.testing.assert_allclose(found, pipeline_makespan(items), rtol=1e-12)


@given(seed=seeds, items=st.integers(1, 9), servers=st.integers(1, 7))
def test_items_of_any_size(seed: int, items: int, servers: int) -> None:
    rng = np.random.default_rng(seed)
    times = rng.random((4, items, servers))
    fewer = rng.integers(1, items + 1, 4)
    times[np.arange(items) >= fewer[:, None]] = 0.0
    expected = [pipeline_makespan(row[:count]) for row, count in zip(times, fewer, strict=True)]
    np.testing.assert_allclose(chunked_seconds(times), expected, rtol=1e-12)


@given(seed=seeds, count=st.integers(1, 40), criteria=st.integers(1, 3), layers=st.integers(1, 3))
def test_what_few_others_dominate_is_kept(seed: int, count: int, criteria: int, layers: int) -> None:
    columns = np.random.default_rng(seed).integers(0, 6, (criteria, count)).astype(float)
    kept = set(skyband(columns, layers).tolist())
    for entry in range(count):
        better = (columns <= columns[:, entry, None]).all(axis=0) & (columns < columns[:, entry, None]).any(axis=0)
        same = (columns == columns[:, entry, None]).all(axis=0) & (np.arange(count) < entry)
        if better.sum() + same.sum() < layers:
            assert entry in kept


@given(ranks=st.integers(1, 12), pp=st.integers(2, 6), first=st.integers(0, 20), domain=st.integers(1, 24))
def test_what_crosses_domains(ranks: int, pp: int, first: int, domain: int) -> None:
    mesh = Mesh((Axis("r", ranks, 1),), {}, pp, ranks, first_rank=first)
    pairs = [*((s, s + 1) for s in range(pp - 1)), (pp - 1, 0)]
    expected = [boundary_crosses(mesh, source, target, domain) for source, target in pairs]
    assert crossings(np.array([ranks]), pp, first, domain)[0].tolist() == expected
