"""What rows of measurements say: names, defaults, launches, and cells that make no sense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paradag.benchmarks.launches import launch_of
from paradag.benchmarks.served import predict, serving_model
from paradag.benchmarks.served_rows import Row, chip_name, engine_name, read_rows
from paradag.passes.analysis.memory import weight_bytes

ROW = {
    "backend": "vllm", "model_path": "Qwen/Qwen3-8B", "system": "h200_sxm", "isl": "512", "osl": "64",
    "concurrency": "8", "tp_size": "1",
}  # fmt: skip


def rows(tmp_path: Path, *changes: dict[str, str]) -> list[Row]:
    columns = sorted({key for change in changes for key in change} | set(ROW))
    path = tmp_path / "rows.csv"
    lines = [",".join({**ROW, **change}.get(key, "") for key in columns) for change in changes]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    return read_rows(path)


@pytest.mark.parametrize(
    ("system", "name"),
    [("h200_sxm", "h200_sxm"), ("H100", "h100_sxm"), ("b200", "b200_sxm"), ("GB200", "gb200_nvl72"), ("x1", "x1")],
)
def test_chips_by_any_name(system: str, name: str) -> None:
    assert chip_name(system) == name


@pytest.mark.parametrize(
    ("backend", "name"),
    [("vLLM 0.14", "vllm"), ("sglang", "sglang"), ("TensorRT-LLM", "trtllm"), ("dynamo-trt", "trtllm"), ("tgi", "tgi")],
)
def test_engines_by_any_name(backend: str, name: str) -> None:
    assert engine_name(backend) == name


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"concurrency": "many"}, "not stated as a number"),
        ({"isl": "inf"}, "not stated as a number"),
        ({"isl": "-3"}, "not stated as a number"),
        ({"concurrency": "1e12"}, "more clients"),
        ({"osl": "1e12"}, "more clients"),
        ({"system": "abacus"}, "chip abacus"),
        ({"backend": "tgi"}, "engine tgi"),
        ({"model_path": ""}, "not in the catalogue"),
    ],
)
def test_a_bad_cell_stops_no_other_row(change: dict[str, str], reason: str, tmp_path: Path) -> None:
    bad, good = predict(rows(tmp_path, change, {}))
    assert reason in bad.reason and not bad.predicted
    assert good.predicted["tpot_ms"] > 0


def test_an_error_in_one_row_is_that_rows_reason(tmp_path: Path) -> None:
    good, broken = rows(tmp_path, {}, {})
    assert broken.point is not None
    broken = replace(broken, point=replace(broken.point, load=replace(broken.point.load, prompt=0)))
    found, reported = predict([good, broken])
    assert found.predicted["ttft_ms"] > 0
    assert reported.reason.startswith("cannot be predicted")


def test_rows_without_measurements_are_predicted(tmp_path: Path) -> None:
    (row,) = predict(rows(tmp_path, {"silicon_ttft_ms": ""}))
    assert not row.measured and row.predicted["ttft_ms"] > 0


def test_a_table_of_measurements_may_lack_columns(tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_text(
        "model,gpu,engine,batch,input_len,metric,value\nLlama-2-7B,L40S,trtllm,8,128,ttft_ms,50\nx,,,,,oom,1\n"
    )
    found, other = predict(read_rows(path))
    assert found.predicted["ttft_ms"] > 0 and other.reason == "metric oom: not predicted"


def test_ranks_of_attention_dp_are_counted_once(tmp_path: Path) -> None:
    moe = {"model_path": "deepseek-ai/DeepSeek-V3", "attention_dp_size": "8", "moe_ep_size": "8"}
    among, beside = rows(tmp_path, moe | {"tp_size": "8", "n_gpus": "8"}, moe | {"n_gpus": "8"})
    assert among.setup is not None and among.setup == beside.setup
    assert (among.setup.prefill.tp, among.setup.prefill.adp) == (1, 8)


def test_pools_without_a_concurrency_have_that_of_their_decodes(tmp_path: Path) -> None:
    pools = {"concurrency": "", "mode": "disagg", "decode_batch_size": "16", "decode_num_workers": "3"}
    (row,) = rows(tmp_path, pools)
    assert row.point is not None and row.point.load.clients == 48


def test_launch_scripts_say_what_rows_do_not() -> None:
    hopper = launch_of("InferenceX dump", "vllm", "h200_sxm", "gpt-oss-120b")
    assert (hopper.expert_kernels, hopper.kv_dtype, hopper.shortest) == ("marlin", "", 0.8)
    blackwell = launch_of("InferenceX dump", "vllm", "gb200_nvl72", "gpt-oss-120b")
    assert (blackwell.expert_kernels, blackwell.kv_dtype) == ("", "fp8")
    generated = launch_of("", "trtllm", "h100_sxm", "qwen3-32b").point(64, 1000, 100, 4, "trtllm")
    assert generated.budget == 16 + 1000 + 1500
    assert launch_of("", "sglang", "h100_sxm", "qwen3-32b").point(64, 1000, 100, 1, "sglang").budget is None
    longest = launch_of("InferenceX dump", "trtllm", "b200_sxm", "llama-3.3-70b").point(4, 1024, 8192, 1, "trtllm")
    assert longest.budget == 1024 + 8192


def test_marlin_computes_experts_in_bf16_and_pads_them(tmp_path: Path) -> None:
    oss = {"model_path": "openai/gpt-oss-20b", "system": "h100_sxm", "backend_version": "0.18"}
    plain, marlin = rows(tmp_path, oss, oss | {"origin": "InferenceX dump"})
    assert plain.setup is not None and marlin.setup is not None
    own, chosen = (serving_model(r.setup, r.setup.prefill) for r in (plain, marlin) if r.setup)
    fits = chosen.prefill.hardware.calibration
    assert fits.experts("mxfp4") != own.prefill.hardware.calibration.experts("mxfp4")
    assert fits.gemm("bf16") == own.prefill.hardware.calibration.gemm("bf16")
    padded, stored = (max(weight_bytes(served.decode.graph)) for served in (chosen, own))
    # 2880 is padded to 2944 inside, and a stream of 2880 to 3072: 9 % more of the experts, the bulk of the weights
    assert 1.05 < padded / stored < 2944 * 3072 / 2880**2


@pytest.mark.parametrize("engine", ["vllm", "trtllm", "sglang"])
def test_a_chip_without_figures_of_its_own_takes_those_of_the_same_engine(engine: str, tmp_path: Path) -> None:
    found = (serving_model(r.setup, r.setup.prefill) for r in rows(
        tmp_path, {"system": "gb200", "backend": engine}, {"system": "b200", "backend": engine}
    ) if r.setup)  # fmt: skip
    heir, measured = (served.prefill.hardware.calibration.fits for served in found)
    assert {k: f.parameters for k, f in heir.items()} == {k: f.parameters for k, f in measured.items()}


@pytest.mark.parametrize("engine", ["vllm", "trtllm", "sglang"])
def test_newer_chips_narrower_weights_and_fewer_clients_are_no_slower(engine: str, tmp_path: Path) -> None:
    big = {"model_path": "deepseek-ai/DeepSeek-R1", "backend": engine, "tp_size": "8", "isl": "1024", "osl": "256"}
    changes = [
        {"system": "h200_sxm", "precision": "fp8"}, {"system": "b200_sxm", "precision": "fp8"},
        {"system": "b200_sxm", "precision": "nvfp4"}, {"system": "b200_sxm", "precision": "nvfp4", "concurrency": "64"},
    ]  # fmt: skip
    hopper, blackwell, narrow, crowded = (r.predicted for r in predict(rows(tmp_path, *(big | c for c in changes))))
    assert hopper["tpot_ms"] > blackwell["tpot_ms"] > narrow["tpot_ms"] < crowded["tpot_ms"]
    assert hopper["ttft_ms"] > blackwell["ttft_ms"] and narrow["ttft_ms"] < crowded["ttft_ms"]
