"""The accelerator and model catalogues."""

from __future__ import annotations

import csv
import math
import pickle
from pathlib import Path

import pytest

from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.spec import DTYPES, ModelSpec
from paradag.compiler.spec.catalog import DEFAULTS, accelerator, accelerator_names, model, model_names
from paradag.grammar import read_hf_config

TABLE = Path(__file__).parents[2] / ".." / "shared" / "facts" / "accelerators.csv"
SAME_RATE_FP8 = {"tpu_v5p", "gaudi3"}
"""Chips that multiply fp8 at the bf16 rate."""


def test_names_are_as_users_write_them() -> None:
    names = accelerator_names()
    assert {"a100_sxm_80gb", "h100_sxm", "h200_sxm", "l40s", "gb200_nvl72", "mi300x", "tpu_v5p", "gaudi3"} <= set(names)
    assert len(set(names)) == len(names) == 24
    assert all(name == name.lower() and "-" not in name for name in names)


@pytest.mark.parametrize("name", accelerator_names())
def test_figures_are_dense_and_plausible(name: str) -> None:
    chip = accelerator(name)
    bf16 = chip.peaks["bf16"]
    assert 50e12 < bf16 < 5e15
    if "fp8" in chip.peaks:
        # a sparse figure taken for a dense one would show as a factor of 4
        assert chip.peaks["fp8"] / bf16 == pytest.approx(1 if name in SAME_RATE_FP8 else 2, rel=0.02)
    if "nvfp4" in chip.peaks:
        assert chip.peaks["nvfp4"] == chip.peaks["mxfp4"]
        assert 1.99 < chip.peaks["nvfp4"] / chip.peaks["fp8"] <= 3
    assert chip.peaks.get("fp16", bf16) == bf16
    assert 10e9 < chip.memory < 500e9
    assert 0.3e12 < chip.bandwidth < 10e12
    assert chip.scale_up.bandwidth is not None
    assert 20e9 < chip.scale_up.bandwidth < 1e12
    assert chip.scale_up.bandwidth < chip.bandwidth
    assert chip.scale_out.bandwidth is None or 1e9 < chip.scale_out.bandwidth <= chip.scale_up.bandwidth
    assert chip.scale_up.domain is not None
    assert 1 <= chip.gpus_per_node <= chip.scale_up.domain
    assert chip.confidence in {"high", "medium", "low"}
    assert chip.sources
    assert set(chip.peaks) <= set(DTYPES)
    assert 0 < chip.network_efficiency <= 1
    assert chip.units is None or 50 <= chip.units <= 400


@pytest.mark.skipif(not TABLE.exists(), reason="the table of vendor figures is not in the repository")
def test_catalogue_equals_the_table_of_vendor_figures() -> None:
    rows = list(csv.DictReader(TABLE.open(encoding="utf-8")))
    assert tuple(row["name"].lower().replace("-", "_") for row in rows) == accelerator_names()

    def same(text: str, value: float | None, unit: float) -> bool:
        return value is None if not text else value is not None and math.isclose(float(text) * unit, value)

    for row, name in zip(rows, accelerator_names(), strict=True):
        chip = accelerator(name)
        columns = {"bf16": "bf16_tflops", "fp16": "fp16_tflops", "fp8": "fp8_tflops", "int8": "int8_tops"}
        columns |= {"nvfp4": "fp4_tflops", "mxfp4": "fp4_tflops"}
        for dtype, column in columns.items():
            assert same(row[column], chip.peaks.get(dtype), 1e12), (name, dtype)
        assert same(row["mem_gb"], chip.memory, 1e9), name
        assert same(row["mem_gbps"], chip.bandwidth, 1e9), name
        assert same(row["scaleup_gbps_per_dir"], chip.scale_up.bandwidth, 1e9), name
        assert same(row["scaleout_nic_gbps_per_gpu"], chip.scale_out.bandwidth, 1e9), name
        assert same(row["host_link_gbps_per_dir"], chip.host.bandwidth, 1e9), name
        assert (chip.scale_up.domain, chip.gpus_per_node) == (int(row["scaleup_domain_max"]), int(row["gpus_per_node"]))
        assert (chip.vendor, chip.confidence) == (row["vendor"], row["confidence"])


def test_units() -> None:
    h200 = accelerator("h200_sxm")
    assert (h200.peaks["bf16"], h200.memory, h200.bandwidth) == (989e12, 141e9, 4.8e12)
    assert (h200.scale_up.name, h200.scale_up.bandwidth, h200.scale_up.domain) == ("NVLink4", 450e9, 8)
    assert h200.scale_up.latency == DEFAULTS.scale_up_latency_s


def test_missing_figures_stay_missing() -> None:
    assert accelerator("tpu_v6e").scale_out.bandwidth is None
    assert accelerator("tpu_v6e").host.bandwidth is None


@pytest.mark.parametrize(
    ("chip", "dtype", "used"),
    [
        ("h100_sxm", "fp8", "fp8"),
        ("a100_sxm_80gb", "fp8", "bf16"),
        ("a100_sxm_80gb", "int8", "int8"),
        ("b200_sxm", "mxfp4", "mxfp4"),
        ("h100_sxm", "mxfp4", "bf16"),
        ("b200_sxm", "int4", "bf16"),
        ("b300_sxm", "int8", "bf16"),
        ("tpu_v5e", "fp16", "bf16"),
        ("h100_sxm", "fp32", "bf16"),
    ],
)
def test_peak_of_a_format_or_of_the_one_it_is_widened_to(chip: str, dtype: str, used: str) -> None:
    entry = accelerator(chip)
    peak = entry.peak_flops(dtype)
    assert (peak.dtype, peak.flops) == (used, entry.peaks[used])
    assert (peak.note is None) == (used == dtype)
    if peak.note:
        assert dtype in peak.note


def test_entries_are_immutable_and_travel() -> None:
    entry = accelerator("h100_sxm")
    with pytest.raises(TypeError):
        entry.peaks["bf16"] = 1.0  # type: ignore[index]
    assert pickle.loads(pickle.dumps(entry)) == entry


@pytest.mark.parametrize(
    ("look_up", "name", "nearest"),
    [
        (accelerator, "H100-SXM", "h100_sxm"),
        (accelerator, "a100_sxm", "a100_sxm_80gb"),
        (model, "qwen3-32", "qwen3-32b"),
    ],
)
def test_unknown_names_get_the_nearest(look_up: object, name: str, nearest: str) -> None:
    assert callable(look_up)
    with pytest.raises(DiagnosticError) as caught:
        look_up(name)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "PD016"
    assert nearest in (diagnostic.help or "")


def test_unknown_format() -> None:
    with pytest.raises(DiagnosticError, match=r"PD016.*'fp9'"):
        accelerator("h100_sxm").peak_flops("fp9")


@pytest.mark.parametrize("name", model_names())
def test_models_are_consistent(name: str) -> None:
    spec = model(name)
    assert spec.name.lower() == name
    attention = spec.attention
    assert attention.heads % attention.kv_heads == 0
    if attention.kind == "mla":
        assert attention.nope_dim is not None
        assert attention.rope_dim is not None
        assert attention.head_dim == attention.nope_dim + attention.rope_dim
    if spec.moe:
        assert spec.moe.top_k < spec.moe.experts
        assert spec.moe.experts % spec.moe.groups == 0
    dense = any(not spec.is_moe_layer(layer) for layer in range(spec.layers.count))
    assert dense == (spec.ffn is not None)
    assert (spec.layers.window is not None) == ("sliding" in spec.layers.pattern)


PUBLISHED = Path(__file__).parents[3] / "shared" / "reference" / "hf"


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"{PUBLISHED} is absent")
def test_models_are_as_published() -> None:
    compared = 0
    for name in model_names():
        for path in (PUBLISHED / f"{name}.json", PUBLISHED / f"{name}-v0.1.json"):
            if path.exists():
                published = ModelSpec.model_validate(read_hf_config(path, model(name).name))
                # where only some parts are quantized, a config leads to formats named part by part
                assert _without_formats(model(name)) == _without_formats(published)
                compared += 1
    assert compared >= 10


def _without_formats(spec: ModelSpec) -> dict[str, object]:
    fields = spec.model_dump(exclude={"dtype": True, "attention": {"dtype"}, "moe": {"dtype"}})
    return {key: value for key, value in fields.items() if value is not None}


def test_models_differ_only_where_published_models_do() -> None:
    assert model("deepseek-r1") == model("deepseek-v3").model_copy(update={"name": "DeepSeek-R1"})
