"""What every cost function obeys: monotone in size, equal over arrays and numbers, right units, never free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.cost import Hardware, collective_time, exchange_time, resolve_hardware, transfer_time
from paradag.compiler.cost.measured import LAWS, Chip
from paradag.compiler.spec import AcceleratorSpec, ClusterSpec
from paradag.compiler.spec.calibration import CLASSES
from paradag.compiler.spec.inheritance import VARIANTS, shipped

CHIP = Chip(peak=989e12, bandwidth=3.35e12, units=132, link=450e9, network=50e9)
CHIPS = ("a100_sxm_80gb", "b200_sxm", "h100_sxm", "h200_sxm", "l40s")

SIZES: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "prefill": ("batch", "new", "past", "heads"),
    "mla_prefill": ("batch", "new", "heads"),
    "decode": ("batch", "context"),
    "decode_mha": ("batch", "context"),
    "mla_decode": ("batch", "context", "heads"),
    "experts": ("tokens", "hidden", "inter"),
    "streaming": ("bytes",),
    "all_reduce": ("bytes",),
    "all_gather": ("bytes",),
    "reduce_scatter": ("bytes",),
    "all_to_all": ("bytes",),
    "p2p": ("bytes",),
    "dispatch": ("bytes",),
    "combine": ("bytes",),
}
"""Columns in which time may not fall."""

TYPICAL: Mapping[str, int] = {
    "m": 64, "n": 4096, "k": 4096, "batch": 8, "new": 512, "past": 0, "heads": 32, "kv_heads": 8, "head_dim": 128,
    "v_dim": 128, "window": 0, "context": 2048, "kv_lora": 512, "rope_dim": 64, "tokens": 64, "hidden": 4096,
    "inter": 1536, "top_k": 8, "experts": 128, "moe_tp": 1, "moe_ep": 4, "skew": 0, "bytes": 1 << 20, "ranks": 8,
}  # fmt: skip


def hardware(name: str = "h100_sxm", **changes: Any) -> Hardware:
    chip = AcceleratorSpec(name=name, catalog=name)
    found, _ = resolve_hardware(ClusterSpec(accelerator=chip, nodes=2, gpus_per_node=8))
    return replace(found, **changes)


def seconds(kind: str, variant: str, parameters: Any, **changes: float | list[float]) -> np.ndarray[Any, Any]:
    law = LAWS[kind]
    columns = {c: np.asarray(changes.get(c, TYPICAL[c]), dtype=float) for c in law.columns}
    shape = np.broadcast_shapes(*(v.shape for v in columns.values()))
    return law.predict(parameters, {c: np.broadcast_to(v, shape) for c, v in columns.items()}, CHIP, variant)


def fitted() -> list[tuple[str, str, str, str]]:
    """One engine's parameter sets of every chip, by (chip, engine, class, variant)."""
    library = shipped()
    return [
        (chip, engine, kind, variant)
        for chip in CHIPS
        for engine in library.engines(chip)
        for kind, variant in library.fits[chip][engine]
        if kind in LAWS
    ]


def test_every_class_has_a_law_and_its_sizes() -> None:
    assert set(LAWS) == set(SIZES) == set(CLASSES) - {"launch"}
    assert all(set(law.columns) <= TYPICAL.keys() for law in LAWS.values())


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(fitted()), st.data())
def test_time_never_falls_with_size(which: tuple[str, str, str, str], data: st.DataObject) -> None:
    chip, engine, kind, variant = which
    parameters = shipped().fits[chip][engine][kind, variant].parameters
    column = data.draw(st.sampled_from(SIZES[kind]))
    sizes = sorted(data.draw(st.lists(st.integers(1, 40_000), min_size=2, max_size=6)))
    times = seconds(kind, variant, parameters, **{column: [float(s) for s in sizes]})
    assert (times > 0).all()
    assert (np.diff(times) >= -1e-12 * times[1:]).all(), (column, sizes, times)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(fitted()), st.data())
def test_arrays_and_numbers_agree(which: tuple[str, str, str, str], data: st.DataObject) -> None:
    chip, engine, kind, variant = which
    parameters = shipped().fits[chip][engine][kind, variant].parameters
    rows = data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=5))
    column = SIZES[kind][0]
    together = seconds(kind, variant, parameters, **{column: [float(r) for r in rows]})
    alone = [float(seconds(kind, variant, parameters, **{column: float(r)})) for r in rows]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_collectives_over_arrays_of_degrees(op: str) -> None:
    chip = hardware()
    ranks = np.array([1, 2, 4, 8, 16])
    inside = np.minimum(ranks, 8)
    together = collective_time(op, 1e6, ranks, inside, chip)
    alone = [float(collective_time(op, 1e6, int(t), int(m), chip).time) for t, m in zip(ranks, inside, strict=True)]
    assert np.asarray(together.time).tolist() == pytest.approx(alone, rel=1e-12)
    assert alone[0] == 0 and alone[-1] > alone[1]


@pytest.mark.parametrize(
    "cost",
    [
        lambda n, h: collective_time("all_reduce", n, 8, 8, h),
        lambda n, h: collective_time("all_reduce", n, 16, 8, h),
        lambda n, h: exchange_time("dispatch", n, 16, 8, h, top_k=8),
        lambda n, h: transfer_time(n, True, h),
    ],
)
def test_a_huge_message_runs_at_the_links_bandwidth(cost: Callable[[float, Hardware], Any]) -> None:
    """Twice the message, twice the time; twice the links, half of it."""
    chip = hardware()
    fast = replace(
        chip,
        scale_up=replace(chip.scale_up, bandwidth=2 * chip.scale_up.bandwidth, peak=2 * chip.scale_up.peak),
        scale_out=replace(chip.scale_out, bandwidth=2 * chip.scale_out.bandwidth, peak=2 * chip.scale_out.peak),
    )
    once, twice, quick = (float(cost(n, h).time) for n, h in ((1e12, chip), (2e12, chip), (1e12, fast)))
    assert twice == pytest.approx(2 * once, rel=0.01)
    assert quick == pytest.approx(once / 2, rel=0.01)


def test_a_stated_latency_replaces_fitted_ones() -> None:
    chip = hardware()
    slow = replace(chip, scale_up=replace(chip.scale_up, latency=1e-3, stated_latency=True))
    found = float(collective_time("all_gather", 8, 8, 8, slow).time)
    assert found == pytest.approx(3e-3, rel=0.01)


def test_the_host_is_a_floor_without_captured_graphs() -> None:
    chip = hardware(graphs=False)
    assert chip.issue == shipped().fits["h100_sxm"]["vllm"]["launch", "any"].parameters.issue_s  # type: ignore[attr-defined]
    assert float(collective_time("all_reduce", 8, 8, 8, chip).time) == chip.issue
    assert float(collective_time("all_reduce", 1e9, 8, 8, chip).time) == float(
        collective_time("all_reduce", 1e9, 8, 8, hardware()).time
    )


@pytest.mark.parametrize(("kind", "variants"), VARIANTS.items())
def test_variants_belong_to_classes(kind: str, variants: tuple[str, ...]) -> None:
    assert kind in CLASSES and len(set(variants)) == len(variants)
