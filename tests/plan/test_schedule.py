"""Closed forms over strategies against the recurrence that they stand for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paradag.compiler.cost import decode_interval, pipeline_makespan
from paradag.compiler.cost.network import boundary_crosses
from paradag.compiler.ir.mesh import Axis, Mesh
from paradag.compiler.plan.frontier import skyband
from paradag.compiler.plan.schedule import (
    chunked_seconds,
    decode_seconds,
    mixed_decode_seconds,
    mixed_prefill_seconds,
    prefill_seconds,
)
from paradag.compiler.plan.stages import crossings, stages_of

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, count=st.integers(1, 4), servers=st.integers(1, 7))
def test_equal_microbatches(seed: int, count: int, servers: int) -> None:
    times = np.random.default_rng(seed).random((servers, 3))
    items = np.repeat(times.T[:, None], count, 1)
    counts = np.full(3, count)
    found = prefill_seconds(times.sum(axis=0), times, counts)
    np.testing.assert_allclose(found, pipeline_makespan(items), rtol=1e-12)
    found = decode_seconds(times.sum(axis=0), times, counts)
    np.testing.assert_allclose(found, decode_interval(times.T, count), rtol=1e-12)


@given(seed=seeds, larger=st.integers(1, 4), smaller=st.integers(1, 4), servers=st.integers(1, 7))
def test_two_sizes_of_microbatches(seed: int, larger: int, smaller: int, servers: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.random((2, servers, 3))
    items = np.concatenate([np.repeat(first.T[:, None], larger, 1), np.repeat(second.T[:, None], smaller, 1)], axis=1)
    counts = np.full(3, larger), np.full(3, smaller)
    found = mixed_prefill_seconds(first, second, *counts)
    np.testing.assert_allclose(found, pipeline_makespan(items), rtol=1e-12)
    found = mixed_decode_seconds((first.sum(axis=0), second.sum(axis=0)), (first, second), *counts)
    trips = np.maximum(items.sum(axis=2).max(axis=1), items.sum(axis=1).max(axis=1))
    np.testing.assert_allclose(found, trips, rtol=1e-12)


@given(seed=seeds, items=st.integers(1, 9), servers=st.integers(1, 7))
def test_items_of_any_size(seed: int, items: int, servers: int) -> None:
    rng = np.random.default_rng(seed)
    times = rng.random((servers, 12))
    order = rng.integers(0, servers, servers)
    rows = rng.integers(0, 12, (items, 4))
    fewer = np.sort(rng.integers(1, items + 1, 4))
    every = times[order][:, rows].transpose(2, 1, 0)
    expected = [pipeline_makespan(row[:count]) for row, count in zip(every, fewer, strict=True)]
    np.testing.assert_allclose(chunked_seconds(times, order.tolist(), rows, fewer), expected, rtol=1e-12)


@given(seed=seeds, stages=st.integers(1, 9))
def test_kinds_of_stages(seed: int, stages: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, stages).tolist()
    members = rng.integers(0, 2, (2, sum(sizes)))
    found = stages_of(members, sizes)
    ends = np.cumsum(sizes)
    expected = [members[:, end - size : end].sum(axis=1) for size, end in zip(sizes, ends, strict=True)]
    np.testing.assert_array_equal(found.counts[:, found.kind].T, expected)
    assert found.kind[0] == 0 and found.kind[-1] == found.counts.shape[1] - 1
    assert stages == 1 or 0 < found.kind[-1] > max(found.kind[:-1])


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
    assert crossings(np.array([ranks]), np.array([first]), pp, domain)[0].tolist() == expected
