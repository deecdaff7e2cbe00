"""Fitting, reading measurements, and what ``paradag calibrate`` writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paradag.compiler.cost import load_calibration, resolve_hardware
from paradag.compiler.cost.measured import LAWS, Chip
from paradag.compiler.cost.measurements import read_measurements
from paradag.compiler.cost.records import render_fits
from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.driver import compile as compile_strategy
from paradag.compiler.spec import AcceleratorSpec, ClusterSpec
from paradag.compiler.spec.calibration import (
    CollectiveParameters,
    Fit,
    GemmParameters,
    Residual,
    StreamingParameters,
)
from paradag.compiler.spec.inheritance import parse_calibration, shipped
from paradag.tests.cli.invoke import invoke

CHIP = Chip(peak=989e12, bandwidth=3.35e12, units=132, link=450e9)
STRATEGY = """model "dense" { layers 4  hidden 4096  vocab 32000  ffn 14336  dtype bf16  kv_dtype bf16
    attention gqa { heads 32  kv_heads 8  head_dim 128 } }
cluster { accelerator h100_sxm  nodes 1 of 8 }
workload { batch 64  input 512 tokens  output 128 tokens }
strategy { dp 4 -> tp 2 }
"""


def products() -> dict[str, np.ndarray]:
    grid = [(m, n, k) for m in (1, 16, 128, 1024, 8192) for n in (1024, 4096, 16384) for k in (1024, 4096, 16384)]
    return {name: np.array([row[i] for row in grid], dtype=float) for i, name in enumerate(("m", "n", "k"))}


def test_a_synthetic_table_gives_its_parameters_back() -> None:
    truth = GemmParameters(4e-6, 0.65, 0.75, split_s=3e-6, issue_s=1e-7)
    columns, law = products(), LAWS["gemm"]
    found = law.fit(columns, law.predict(truth, columns, CHIP, "bf16"), CHIP, "bf16")
    assert isinstance(found, GemmParameters)
    assert found.latency_s == pytest.approx(truth.latency_s, rel=0.1)
    assert found.compute_efficiency == pytest.approx(truth.compute_efficiency, rel=0.03)
    assert found.bandwidth_efficiency == pytest.approx(truth.bandwidth_efficiency, rel=0.03)


def test_one_row_in_ten_that_is_wrong_does_not_rule() -> None:
    truth = CollectiveParameters(6e-6, 2e-6, 0.7, pipeline_s=1e-5, contention=1e-3)
    columns = {"bytes": np.tile(4.0 ** np.arange(5, 15), 3), "ranks": np.repeat([2.0, 4.0, 8.0], 10)}
    law = LAWS["all_gather"]
    seconds = law.predict(truth, columns, CHIP, "any").copy()
    seconds[::10] *= 8
    found = law.fit(columns, seconds, CHIP, "any")
    assert isinstance(found, CollectiveParameters)
    assert found.efficiency == pytest.approx(truth.efficiency, rel=0.05)


def test_a_fit_is_the_same_on_every_run() -> None:
    columns, law = products(), LAWS["gemm"]
    noise = np.exp(0.1 * np.sin(np.arange(len(columns["m"]))))
    seconds = law.predict(GemmParameters(4e-6, 0.65, 0.75), columns, CHIP, "bf16") * noise
    assert law.fit(columns, seconds, CHIP, "bf16") == law.fit(columns, seconds, CHIP, "bf16")


def test_what_is_written_reads_back() -> None:
    fit = Fit(StreamingParameters(2e-6, 0.8), Residual(12, 0.05, 0.06, -0.01), 'a "table" of mine\nand yours')
    text = render_fits({"my chip": {"measured": {("streaming", "any"): fit}}}, {"my chip": 64}, "a header")
    library = parse_calibration(text, "mine.toml")
    assert library.units == {"my chip": 64}
    assert library.fits["my chip"]["measured"]["streaming", "any"] == fit


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("gemm,bf16,16,4096,no,9", "k is 'no', not a number"),
        ("gemm,bf16,16,4096,,9", "k is missing"),
        ("gemm,bf16,16,4096,64,-1", "latency_us is -1, out of range"),
        ("gemm,bf16,16,4096,64,nan", "latency_us is nan, out of range"),
        ("gemm,bf17,16,4096,64,9", "dtype 'bf17' of gemm is none of bf16"),
        ("matmul,bf16,16,4096,64,9", "op 'matmul' is none of gemm"),
        ("gemm,bf16,16,4096,64", "not as many fields"),
        ("gemm,bf16,16,4096,64,9,9", "not as many fields"),
    ],
)
def test_bad_rows_are_told_with_their_line(row: str, told: str) -> None:
    good = "gemm,bfloat16,16,4096,64,9"
    measured, bad = read_measurements(f"op,dtype,m,n,k,latency_us\n{good}\n{row}\n{good}\n", "k.csv")
    assert measured.count == 2
    (found,) = bad
    assert found.code == "PD031" and told in found.message
    assert found.span is not None and found.span.line == 3


def test_a_hostile_table_ends() -> None:
    measured, bad = read_measurements("op,latency_us\n" + "x,1\n" * 5000, "k.csv")
    assert not measured.count and len(bad) == 101 and "4900 more rows" in bad[-1].message
    assert read_measurements("", "k.csv")[1][0].code == "PD031"
    assert read_measurements('op,latency_us\n"' + "a" * 200_000, "k.csv")[1]


def table(path: Path, factor: float) -> None:
    """Products of a chip that is slower than an H100 by ``factor``, and one row of attention."""
    columns, law = products(), LAWS["gemm"]
    seconds = law.predict(GemmParameters(4e-6, 0.7, 0.8), columns, CHIP, "bf16") * factor
    rows = [f"gemm,bf16,{m:g},{n:g},{k:g},,,,,{s * 1e6}" for m, n, k, s in zip(*columns.values(), seconds, strict=True)]
    rows.append("decode,bf16,,,,8,2048,32,8,20")
    path.write_text("op,dtype,m,n,k,batch,context,heads,kv_heads,latency_us\n" + "\n".join(rows) + "\n")


def test_calibrate_then_compile(tmp_path: Path) -> None:
    table(tmp_path / "kernels.csv", factor=3.0)
    target = tmp_path / "mine.toml"
    arguments = ["calibrate", str(tmp_path / "kernels.csv"), "--accelerator", "h100_sxm", "-o", str(target)]
    code, out, _ = invoke(*arguments, "--format", "json")
    assert code == 0
    document = json.loads(out)
    (fit,) = document["fits"]
    assert (fit["class"], fit["variant"], fit["residual"]["rows"]) == ("gemm", "bf16", fit["residual"]["rows"])
    assert fit["residual"]["median"] < 0.05
    # the attention row lacks head_dim: it is bad, and so its class has no rows
    assert [d["code"] for d in document["diagnostics"]] == ["PD031"]
    assert "decode" in document["inherited"]

    compiled = compile_strategy(STRATEGY, calibration=load_calibration(target))
    shipped_too = compile_strategy(STRATEGY)
    assert compiled.phases["prefill"].latency > 1.5 * shipped_too.phases["prefill"].latency
    assert any(a.value == "fitted on h100_sxm, measured" for a in compiled.assumptions)

    (tmp_path / "model.strat").write_text(STRATEGY)
    given = [str(tmp_path / "model.strat"), "-o", str(tmp_path), "--emit", "json", "--calibration", str(target)]
    code, out, _ = invoke("compile", *given)
    assert code == 0 and "fitted on h100_sxm, measured" in out


def test_calibrate_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "kernels.csv"
    path.write_text("op,dtype,m,n,k,latency_us\ngemm,bf16,1,64,64,3\n")
    target = tmp_path / "mine.toml"
    code, _, err = invoke("calibrate", str(path), "--accelerator", "h100_sxm", "-o", str(target))
    assert code == 1 and "PD032" in err and "PD033" in err and not target.exists()
    assert invoke("calibrate", str(tmp_path / "no.csv"), "--accelerator", "h100_sxm", "-o", str(target))[0] == 2
    assert invoke("calibrate", str(path), "-o", str(target))[0] == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = [", "no TOML"),
        ("a = 1", "`a` is no table of engines"),
        ("[a]\nunits = -3", "no count of multiprocessors"),
        ("[a.b]\ngemm = 1", "`a.b.gemm` is no operator class"),
        ("[a.b.matmul.bf16]\nx = 1", "no operator class"),
        ("[a.b.gemm.bf17]\nx = 1", "no variant"),
        ("[a.b.streaming.any]\nlatency_s = 1e-6\nbandwidth_efficiency = 0.8\ntypo = 1", "no parameter `typo`"),
        ("[a.b.streaming.any]\nlatency_s = 1e-6", "bandwidth_efficiency` is None"),
        ("[a.b.streaming.any]\nlatency_s = nan\nbandwidth_efficiency = 0.8", "latency_s` is nan"),
        ("[a.b.streaming.any]\nlatency_s = 1e-6\nbandwidth_efficiency = 0", "take forever"),
    ],
)
def test_malformed_calibrations(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(DiagnosticError) as caught:
        load_calibration(path)
    assert any(d.code == "PD030" and told in d.message for d in caught.value.diagnostics)


def cluster(name: str, **chip: object) -> ClusterSpec:
    return ClusterSpec(accelerator=AcceleratorSpec.model_validate({"name": name, **chip}), nodes=1, gpus_per_node=1)


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("a100_pcie_80gb", "a100_sxm_80gb (also Ampere)"),
        ("h20", "h100_sxm (also Hopper)"),
        ("b300_sxm", "b200_sxm (same generation)"),
        ("mi300x", "a100_sxm_80gb (nearest per multiprocessor)"),
    ],
)
def test_chips_inherit_from_the_nearest_family(name: str, origin: str) -> None:
    hardware, made = resolve_hardware(cluster(name, catalog=name))
    assert hardware.calibration.origins["gemm", "bf16"] == origin
    assert any(a.name == "inherited efficiencies" and a.value == origin for a in made)


def test_a_chip_of_ones_own_takes_the_median_and_its_stated_shares() -> None:
    own = {"compute": {"bf16": 400e12}, "compute_efficiency": 0.6, "memory": 64e9, "bandwidth": 1.8e12}
    hardware, made = resolve_hardware(cluster("npu", **own))
    chips = [shipped().fits[c] for c in ("a100_sxm_80gb", "b200_sxm", "h100_sxm", "h200_sxm", "l40s")]
    shares = [c["vllm"]["gemm", "bf16"].parameters.compute_efficiency for c in chips]  # type: ignore[attr-defined]
    assert hardware.calibration.gemm("bf16").compute_efficiency == sorted(shares)[2]
    assert hardware.compute_efficiency == 0.6 and hardware.bandwidth_efficiency is None
    assert any(a.name == "compute efficiency" and a.value == "60%" for a in made)


def test_an_engine_that_nobody_measured_is_said() -> None:
    hardware, made = resolve_hardware(cluster("l40s", catalog="l40s"), engine="mine")
    assert hardware.calibration.engine == "vllm"
    assert any(a.name == "engine" and "mine" in a.why for a in made)
    chosen, _ = resolve_hardware(cluster("h100_sxm", catalog="h100_sxm"), engine="trtllm")
    assert chosen.calibration.engine == "trtllm"
    assert chosen.calibration.gemm("fp8") is shipped().fits["h100_sxm"]["trtllm"]["gemm", "fp8"].parameters
