"""The accuracy benchmark on a file of five rows: predictions, groups, and reasons for what it leaves out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from paradag.benchmarks.accuracy import main
from paradag.benchmarks.served import predict
from paradag.benchmarks.served_rows import OutOfScope, catalogue_name, read_rows

COLUMNS = (
    "id,backend,model_path,system,precision,isl,osl,batch_size,tp_size,moe_ep_size,"
    "silicon_ttft_ms,silicon_tpot_ms,possible_mtp\n"
)
ROWS = """a,vllm,meta-llama/Llama-3.1-8B-Instruct,h100_sxm,,1024,64,4,1,,40,8,
b,sglang,Qwen/Qwen3-8B,h200_sxm,fp8,512,64,8,1,,40,6,
c,trtllm,Qwen/Qwen3-30B-A3B,b200_sxm,nvfp4,512,64,8,2,2,40,6,True
d,vllm,bigscience/bloom,h100_sxm,,512,64,8,8,,100,30,
e,vllm,Qwen/Qwen3-8B,h100_sxm,int3,512,64,8,1,,100,30,
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(COLUMNS + ROWS)
    return path


def test_a_static_batch_is_a_measurement_of_one_metric(tmp_path: Path) -> None:
    path = tmp_path / "measured.csv"
    header = "id,model,gpu,n_gpus,tp,pp,ep,dp,dtype,engine,phase,batch,input_len,output_len,metric,value,source,note\n"
    row = "m1,Llama-2-7B,L40S,1,1,1,,,fp16,trtllm-0.5,e2e,8,128,128,{},1,somewhere,static batch\n"
    path.write_text(header + row.format("latency_s") + row.format("mfu_pct"))
    latency, share = predict(read_rows(path))
    assert 0.5 < latency.predicted["latency_s"] < 20
    assert share.reason == "metric mfu_pct: not predicted"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("meta-llama/Llama-3.1-70B", "llama-3.1-70b"),
        ("meta-llama/Meta-Llama-3.1-405B-Instruct-FP8", "llama-3.1-405b"),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "llama-3.3-70b"),
        ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "qwen3-235b-a22b"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1"),
        ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "deepseek-r1"),
        ("moonshotai/Kimi-K2-Instruct", "kimi-k2"),
        ("MiniMaxAI/MiniMax-M2", "minimax-m2"),
        ("openai/gpt-oss-20b", "gpt-oss-20b"),
        ("deepseek-ai/DeepSeek-V3.1-Terminus", "deepseek-v3"),
        ("zai-org/GLM-4.6-FP8", "glm-4.5"),
        ("moonshotai/Kimi-K2-Thinking", "kimi-k2"),
        ("LLAMA3.1_8B", "llama-3.1-8b"),
        ("QWEN3_235B", "qwen3-235b-a22b"),
        ("MOE_Mixtral8x7B", "mixtral-8x7b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
    ],
)
def test_model_paths_find_their_catalogue_entry(path: str, name: str) -> None:
    assert catalogue_name(path) == name


def test_unknown_models_are_named() -> None:
    with pytest.raises(OutOfScope, match="bigscience/bloom"):
        catalogue_name("bigscience/bloom")


def test_rows_are_predicted_or_left_out_with_a_reason(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["accuracy", "--data", str(data), "--json", str(out)])
    main()
    text = capsys.readouterr().out
    assert "| Llama-3.1-8B-Instruct | h100_sxm | vllm | tpot | 1 |" in text
    assert "| Qwen3-30B-A3B [possible_mtp] | b200_sxm | trtllm | ttft | 1 |" in text
    assert "| (all dense) | h100_sxm |" in text and "| (all MoE) |" not in text  # flagged rows count in no total
    assert "2 of 5 rows are outside the scope" in text
    rows = json.loads(out.read_text())
    keys = {"id", "ttft_ms", "tpot_ms", "predicted_ttft_ms", "predicted_tpot_ms", "reason_if_skipped"}
    assert [row["id"] for row in rows] == list("abcde") and all(set(row) == keys for row in rows)
    assert all(row["predicted_tpot_ms"] > 0 and row["predicted_ttft_ms"] > 0 for row in rows[:3])
    reasons = [None, None, None, "model bigscience/bloom: not in the catalogue", "precision int3: unknown"]
    assert [row["reason_if_skipped"] for row in rows] == reasons


def test_absent_columns_have_their_defaults(data: Path) -> None:
    row = read_rows(data)[0]
    assert row.point is not None and row.setup is not None and not row.flags
    assert row.point.load.clients == 4
    assert (row.setup.prefill.tp, row.setup.prefill.pp, row.setup.prefill.adp) == (1, 1, 1)


def test_prompts_and_decodes_may_have_workers_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "apart.csv"
    columns = {"mode": "disagg", "backend": "trtllm", "model_path": "Qwen/Qwen3-8B", "system": "h100_sxm"}
    columns |= {"isl": "512", "osl": "64", "concurrency": "32", "silicon_tpot_ms": "8", "silicon_ttft_ms": "90"}
    columns |= {"prefill_tp_size": "1", "prefill_num_workers": "2", "decode_tp_size": "2", "decode_num_workers": "1"}
    path.write_text(f"{','.join(columns)}\n{','.join(columns.values())}\n")
    (row,) = predict(read_rows(path))
    assert row.setup is not None and (row.setup.prefill.workers, row.setup.decode.tp) == (2, 2)
    assert 1 < row.predicted["tpot_ms"] < 20 and 5 < row.predicted["ttft_ms"] < 2000
