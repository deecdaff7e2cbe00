"""Dominance against its definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paradag.compiler.plan.frontier import grouped_band, ranks, skyband

TABLES = st.integers(1, 4).flatmap(
    lambda criteria: st.lists(st.lists(st.integers(0, 5), min_size=criteria, max_size=criteria), max_size=30)
)


def peeled(rows: list[list[int]], layers: int) -> list[int]:
    """The same by comparing every entry with every other; of equal ones the first is better."""
    left, kept = list(range(len(rows))), []
    for _ in range(layers):
        front = [
            i for i in left
            if not any(all(a <= b for a, b in zip(rows[j], rows[i], strict=True)) and (rows[j] != rows[i] or j < i)
                       for j in left if j != i)
        ]  # fmt: skip
        kept += front
        left = [i for i in left if i not in front]
    return sorted(kept)


@given(rows=TABLES, layers=st.integers(1, 3), scale=st.sampled_from([1.0, 1e-9, 1e12]))
def test_entries_that_few_dominate_are_kept(rows: list[list[int]], layers: int, scale: float) -> None:
    columns = np.array(rows, dtype=float).T * scale if rows else np.zeros((2, 0))
    assert skyband(columns, layers).tolist() == peeled(rows, layers)


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5)), max_size=40),
    layers=st.integers(1, 3),
    scale=st.sampled_from([1.0, 1e-9]),
)
def test_every_group_has_a_band_of_its_own(rows: list[tuple[int, int, int]], layers: int, scale: float) -> None:
    group, first, second = (np.array([row[i] for row in rows], dtype=np.int64) for i in range(3))
    found = grouped_band(group * 1_000_003, first * scale, second * scale, layers)
    expected = []
    for number in range(4):
        mine = [i for i, row in enumerate(rows) if row[0] == number]
        expected += [mine[i] for i in peeled([list(rows[i][1:]) for i in mine], layers)]
    assert found.tolist() == sorted(expected)
    assert grouped_band(group, ranks(first * scale), ranks(second * scale), layers).tolist() == found.tolist()
