"""Latencies under the workload's load: the queue at a rate, and the steady continuous batch."""

from __future__ import annotations

import json
from math import isinf
from pathlib import Path

import pytest

from paradag import compile as compile_strategy
from paradag.compiler.emit.document import build_header
from paradag.passes.analysis import PhaseAnalysis
from paradag.passes.analysis.load import prompt_seconds
from paradag.tests.cli.invoke import invoke

TEXT = """
model "small" {{ layers 8 hidden 1024 vocab 32000 ffn 4096 attention gqa {{ heads 16 kv_heads 8 head_dim 64 }} }}
cluster {{ accelerator h100_sxm nodes 1 of 8 }}
workload {{ batch 32 input 512 tokens output 64 tokens {} }}
{}
"""
SHARED, SEPARATE = "strategy { dp 2 -> tp 2 }", "strategy prefill { tp 2 pools separate } strategy decode { tp 2 }"


def phases(workload: str = "", strategy: str = SHARED) -> dict[str, PhaseAnalysis]:
    return dict(compile_strategy(TEXT.format(workload, strategy)).phases)


def test_without_a_rate_nothing_queues() -> None:
    prefill = phases()["prefill"]
    assert prefill.queue is None and prefill.loaded_latency == prefill.latency


def test_requests_queue_as_their_load_grows() -> None:
    service = prompt_seconds(phases()["prefill"])
    half, most = (phases(f"rate {round(2 * share / service)} req/s")["prefill"] for share in (0.5, 0.9))
    assert half.queue == pytest.approx(0.5 * service / (2 * 0.5), rel=0.01)
    assert most.queue == pytest.approx(0.9 * service / (2 * 0.1), rel=0.05)
    assert half.loaded_latency == half.latency + half.queue


def test_a_queue_that_grows_without_end_has_no_mean() -> None:
    prefill = phases("rate 1000000 req/s")["prefill"]
    assert prefill.queue is not None and isinf(prefill.queue)
    assert prefill.loaded_latency == prefill.latency


def test_prompts_of_others_stall_decodes_on_the_same_gpus_only() -> None:
    shared, separate = phases(), phases(strategy=SEPARATE)
    stall = prompt_seconds(shared["prefill"]) * 16 / 64
    assert shared["decode"].steady == pytest.approx(shared["decode"].latency + stall)
    assert separate["decode"].steady == separate["decode"].latency


def test_documents_split_the_time_to_the_first_token() -> None:
    compiled = compile_strategy(TEXT.format("rate 20 req/s", SHARED))
    summary = build_header(compiled, "prefill").summary
    assert summary is not None and summary.ttft_s == summary.prefill_s + summary.queue_s
    decode = build_header(compiled, "decode").summary
    assert decode is not None and decode.steady_tpot_s > decode.tpot_s
    alone = build_header(compile_strategy(TEXT.format("", SHARED), phase="decode"), "decode").summary
    assert alone is not None and alone.steady_tpot_s is None


def test_the_command_tells_queue_and_steady_state(tmp_path: Path) -> None:
    file = tmp_path / "model.strat"
    file.write_text(TEXT.format("rate 20 req/s", SHARED))
    _, text, _ = invoke("compile", file, "-o", tmp_path, "--emit", "ir")
    assert "= queue " in text and "decode: steady TPOT " in text
    _, text, _ = invoke("compile", file, "-o", tmp_path, "--emit", "ir", "--format", "json")
    told = json.loads(text)["phases"]
    assert told["prefill"]["ttft_s"] == told["prefill"]["prefill_s"] + told["prefill"]["queue_s"]
    assert told["decode"]["steady_tpot_s"] > told["decode"]["tpot_s"]
