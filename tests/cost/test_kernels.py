"""What the structure of single kernels does to their time: tiles, pieces of a cache, heads, cache residency."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.cost import (
    decode_attention_time,
    experts_time,
    gemm_time,
    prefill_attention_time,
    uniform_load,
)
from paradag.compiler.cost.fit import fit
from paradag.compiler.spec.calibration import DecodeParameters, ExpertParameters, GemmParameters, PrefillParameters

CHIP: dict[str, Any] = {"peak": 989e12, "bandwidth": 3.35e12, "units": 132}
GEMM = GemmParameters(3e-6, 0.8, 0.8)
PREFILL = PrefillParameters(1e-5, 0.6, 0.6)
DECODE = DecodeParameters(8e-6, 0.8, 0.4)
EXPERTS = ExpertParameters(2e-5, 0.6, 0.8)


def gemm(m: float, n: float, k: float, p: GemmParameters, **more: Any) -> Any:
    return gemm_time(m, n, k, 2 * (m * n + n * k + m * k), parameters=p, **CHIP, **more).time


def prefill(new: float, p: PrefillParameters, *, heads: float = 32, kv_heads: float = 8, dim: float = 128) -> float:
    moved = new * (heads + kv_heads) * 2 * dim * 2
    cache = new * kv_heads * 2 * dim * 2
    terms = prefill_attention_time(
        1, new, 0, heads, dim, dim, moved, cache, kv_heads=kv_heads, parameters=p, **CHIP
    )  # fmt: skip
    return float(terms.time)


def decode(batch: float, context: Any, p: DecodeParameters, kv_heads: float = 8, **more: Any) -> Any:
    moved = batch * np.asarray(context, dtype=float) * kv_heads * 2 * 128 * 2
    return decode_attention_time(batch, context, 32, kv_heads, 128, 128, moved, parameters=p, **CHIP, **more).time


def test_a_tile_costs_its_start_besides_its_depth() -> None:
    extra = gemm(8192, 8192, 64, replace(GEMM, fill=256.0)) / gemm(8192, 8192, 64, GEMM)
    deep = gemm(8192, 8192, 16384, replace(GEMM, fill=256.0)) / gemm(8192, 8192, 16384, GEMM)
    assert extra > 1.2 and 1 < deep < 1.05


def test_persistent_kernels_lose_less_of_the_last_wave() -> None:
    # 133 tiles of 128 x 256 and more on 132 units: nearly half of the second wave is idle
    hard, soft = (gemm(128 * 133, 256, 4096, replace(GEMM, lost=lost)) for lost in (1.0, 0.1))
    assert soft < hard


def test_few_tiles_cut_k_unless_the_kernels_do_not() -> None:
    whole, cut = (gemm(64, 64, 65536, replace(GEMM, splits=s)) for s in (1.0, 32.0))
    assert cut < whole / 2


def test_kernels_chosen_by_rows_jump_at_their_threshold() -> None:
    chosen = replace(GEMM, small_rows=128.0, splits=1.0)
    below, above = (gemm(m, 256, 8192, chosen) for m in (128, 129))
    free = gemm(129, 256, 8192, replace(GEMM, splits=1.0))
    assert above > below and above > free
    assert gemm(128, 256, 8192, replace(GEMM, splits=1.0)) == below


def test_long_products_run_at_the_sustained_rate() -> None:
    limited = replace(GEMM, sustained=0.5)
    short, long = (gemm(m, 8192, 8192, limited) / gemm(m, 8192, 8192, GEMM) for m in (16, 262144))
    assert short < 1.05 and 1.9 < long < 2.0


@settings(max_examples=60)
@given(
    st.sampled_from(["m", "n", "k"]),
    st.lists(st.integers(1, 50_000), min_size=2, max_size=8),
    st.sampled_from([1.0, 8.0, 32.0]),
    st.sampled_from([0.05, 0.5, 1.0]),
    st.sampled_from([64.0, 256.0, 1e8]),
)
def test_products_grow_with_their_shape(
    side: str, sizes: list[int], splits: float, lost: float, small_rows: float
) -> None:
    p = replace(GEMM, splits=splits, lost=lost, small_rows=small_rows, fill=100.0, sustained=0.7)
    shape: dict[str, Any] = {"m": 96.0, "n": 2048.0, "k": 4096.0, side: np.array(sorted(sizes), dtype=float)}
    times = gemm(shape["m"], shape["n"], shape["k"], p)
    assert (np.diff(times) >= -1e-12 * times[1:]).all()


def test_queries_of_a_group_share_a_tile_where_kernels_pack_them() -> None:
    plain, packed = (replace(PREFILL, packed=x) for x in (0.0, 1.0))
    assert prefill(16, packed) < prefill(16, plain)
    assert prefill(16, packed, heads=8) == prefill(16, plain, heads=8)
    assert prefill(4096, packed) == pytest.approx(prefill(4096, plain), rel=0.05)


def test_heads_are_padded_to_powers_of_two() -> None:
    padding = replace(PREFILL, head_tile=128.0)
    wide, full = (prefill(8192, padding, dim=dim) for dim in (192, 256))
    assert wide == pytest.approx(full, rel=0.02)
    assert prefill(8192, PREFILL, dim=192) < 0.9 * wide
    assert prefill(8192, padding, dim=64) > prefill(8192, replace(padding, head_tile=1.0), dim=64)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 200_000), min_size=2, max_size=8),
    st.sampled_from([1.0, 2.0, 4.0, 8.0]),
    st.sampled_from([0.05, 0.5, 1.0]),
    st.sampled_from([1, 7, 40, 400]),
)
def test_decode_grows_with_its_context_and_batch(sizes: list[int], occupancy: float, lost: float, fixed: int) -> None:
    p = replace(DECODE, occupancy=occupancy, lost=lost, unit_gain=1.0)
    longer = decode(fixed, np.array(sorted(sizes), dtype=float), p)
    more = np.array([float(decode(size, fixed, p)) for size in sorted(sizes)])
    for times in (longer, more):
        assert (np.diff(times) >= -1e-12 * times[1:]).all()


def test_more_pieces_per_unit_stream_a_long_cache_faster() -> None:
    alone, together = (decode(4, 32768, replace(DECODE, occupancy=o, unit_gain=0.7)) for o in (1.0, 8.0))
    assert together <= alone
    crowded = decode(64, 32768, replace(DECODE, occupancy=8.0, unit_gain=2.0))
    assert crowded == pytest.approx(decode(64, 32768, replace(DECODE, occupancy=1.0, unit_gain=2.0)), rel=0.2)


def test_rows_of_other_ranks_cost_a_kernel_that_is_handed_them() -> None:
    load = uniform_load(4096.0, 8.0, 128.0, 16.0)
    figures = {**CHIP, "parameters": replace(EXPERTS, others=0.5)}
    alone, handed = (experts_time(load, 4096, 1536, 2, handed=h, **figures).time for h in (None, 4096.0 * 8))
    assert handed > 1.2 * alone


def test_what_the_cache_holds_streams_faster() -> None:
    load = uniform_load(8.0, 8.0, 128.0, 128.0)
    cold, warm = (
        np.array(
            [
                gemm(1, 4096, 4096, GEMM, resident=r),
                decode(8, 4096, DECODE, resident=r),
                experts_time(load, 2048, 768, 2, resident=r, parameters=EXPERTS, **CHIP).time,
            ]
        )
        for r in (0.0, 1.0)
    )
    assert (warm < 0.8 * cold).all()


def test_rows_that_ran_another_kernel_do_not_move_the_fit() -> None:
    truth, bounds = 2e-6, {"latency_s": (1e-7, 1e-3)}
    measured = np.full(50, truth)
    measured[:20] *= 8
    starts = [GemmParameters(x, 0.8, 0.8) for x in (1e-5, 1e-6)]
    found = fit(lambda p: np.full(50, p.latency_s), measured, starts, bounds)
    assert found.latency_s == pytest.approx(truth, rel=0.05)
