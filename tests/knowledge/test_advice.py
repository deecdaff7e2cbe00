"""Advice on results: what shipped examples get, and that each rule is silent where there is nothing to say."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from paradag import compile as compile_strategy
from paradag.compiler.diagnostics import Severity

EXAMPLES = Path(__file__).resolve().parents[2] / "ir_examples"

# Warnings of the shipped examples. Wide expert parallelism leaves the scale-up domain, and in prefill the all-to-all
# takes most of the time unless a pass overlaps it; the TP-16 example is the law's, not a good idea.
WARNINGS = {
    "deepseek-v3-decode-ep144": ["PD305"],
    "deepseek-v3-decode-ep320": ["PD305"],
    "deepseek-v3-disaggregated": ["PD305", "PD310", "PD312"],
    "deepseek-v3-prefill-ep32": ["PD305", "PD310"],
    "qwen3-235b-a22b-ep32": ["PD305", "PD310"],
    "qwen3-235b-a22b-pp4-ep32-tp16": ["PD310"],
}

MODEL = (
    'model "m" { layers 32  hidden 4096  vocab 32000  ffn 14336  dtype bf16  kv_dtype bf16\n'
    "        attention gqa { heads 32  kv_heads 8  head_dim 128 } }\n"
)


CLUSTER = "cluster { accelerator h100_sxm  nodes any of 8 }\n"


@cache
def said(strategy: str, workload: str = "batch 64  input 512 tokens  output 128 tokens") -> set[str]:
    compiled = compile_strategy(f"{MODEL}{CLUSTER}workload {{ {workload} }}\n{strategy}\n")
    assert not [d for d in compiled.diagnostics if d.is_error and d.code != "PD313"], compiled.diagnostics
    return {d.code for d in compiled.diagnostics}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.strat")), ids=lambda p: p.stem)
def test_examples_have_no_errors_and_these_warnings(path: Path) -> None:
    found = compile_strategy(path).diagnostics
    assert not [d for d in found if d.is_error]
    warnings = sorted({d.code for d in found if d.severity is Severity.WARNING})
    assert warnings == WARNINGS.get(path.stem, [])


# code, strategy and workload that it speaks of, and close ones that it does not
PAIRS = [
    (
        "PD307",
        ("strategy decode { tp 16 }", "batch 1  input 16 tokens  output 16 tokens"),
        ("strategy decode { tp 2 }",),
    ),
    (
        "PD308",
        ("strategy { dp 2 -> pp 2 -> tp 2  microbatches 2 }",),
        ("strategy { dp 4 -> tp 2 }",),
    ),
    ("PD309", ("strategy { pp 2 }",), ("strategy { pp 2  microbatches 8 }",)),
    ("PD311", ("strategy { tp 8 }", "batch 1  input 128 tokens  output 128 tokens"), ("strategy { tp 2 }",)),
    (
        "PD312",
        (
            "strategy prefill { tp 4  pools separate } strategy decode { tp 4 }",
            "batch 64  input 64 tokens  output 1024 tokens",
        ),
        (
            "strategy prefill { tp 4  pools separate } strategy decode { tp 4 }",
            "batch 64  input 512 tokens  output 64 tokens",
        ),
    ),
    (
        "PD313",
        ("strategy { }", "batch 4  input 512 tokens  output 128 tokens  sequence 128..1000000 tokens"),
        ("strategy { }", "batch 4  input 512 tokens  output 128 tokens  sequence 128..100000 tokens"),
    ),
    (
        "PD316",
        ("strategy { tp 2 }", "batch 64  input 512 tokens  output 128 tokens  rate 1000 req/s"),
        ("strategy { tp 2 }", "batch 64  input 512 tokens  output 128 tokens  rate 1 req/s"),
    ),
]


@pytest.mark.parametrize(("code", "bad", "good"), PAIRS)
def test_advice_is_given_where_it_is_due(code: str, bad: tuple[str, ...], good: tuple[str, ...]) -> None:
    assert code in said(*bad)
    assert code not in said(*good)


def test_nothing_is_advised_on_what_does_not_fit() -> None:
    big = MODEL.replace("layers 32", "layers 900")
    text = f"{big}{CLUSTER}workload {{ batch 4 input 512 output 128 }}\nstrategy {{ pp 2 }}\n"
    codes = {d.code for d in compile_strategy(text, fix=False).diagnostics}
    assert "PD301" in codes and "PD309" not in codes


def test_over_parallelised_names_a_strategy_that_is_no_slower() -> None:
    work = "batch 1  input 16 tokens  output 16 tokens"

    def tpot(tp: int) -> float:
        text = f"{MODEL}{CLUSTER}workload {{ {work} }}\nstrategy decode {{ tp {tp} }}\n"
        return compile_strategy(text).phases["decode"].latency

    assert "PD307" in said("strategy decode { tp 16 }", work) and tpot(8) <= tpot(16)
    assert "PD307" not in said("strategy decode { tp 8 }", work) and tpot(4) > tpot(8)
