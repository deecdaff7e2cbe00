"""Ring and Ulysses SP compute what their models compute, and move the bytes that they are charged for."""

from __future__ import annotations

import pytest

from paradag.compiler.driver import load
from paradag.compiler.run.report import Verification
from paradag.compiler.verification import execute
from paradag.passes.validation import check_spec

SHAPES = {
    "grouped": "attention gqa { heads 8  kv_heads 4  head_dim 4 }",
    "few KV heads and sinks": "attention gqa { heads 8  kv_heads 2  head_dim 4  sinks true }",
    "window": "attention gqa { heads 8  kv_heads 4  head_dim 4  window 3 }",
    "latent": "attention mla { heads 8  q_lora 6  kv_lora 8  nope_dim 4  rope_dim 4  v_dim 4 }",
}
WAYS = (
    # 13 tokens: uneven shards; chunks of 5 tokens leave a rank without any
    ("sp 4 kind {} -> tp 2  chunk 15", SHAPES.keys()),
    ("pp 2 -> sp 2 kind {} -> tp 4  microbatches 2", ("grouped", "latent")),
    ("sp 8 kind {}", ("grouped",)),
)
CASES = [(way.format(kind), shape) for kind in ("ring", "ulysses") for way, shapes in WAYS for shape in shapes]


def run(strategy: str, shape: str) -> Verification:
    text = f"""
    model "m" {{ layers 2  hidden 8  vocab 24  ffn 24  dtype bf16  kv_dtype bf16  {SHAPES[shape]} }}
    cluster {{ accelerator h100_sxm  nodes any of 8 }}
    workload {{ batch 3  input 13 tokens  output 2 tokens }}
    strategy prefill {{ {strategy} }}
    strategy decode {{ tp 2 }}
    """
    checked, found = check_spec(load(text))
    assert not [d for d in found if d.is_error], found
    return execute(checked.spec, steps=2)


@pytest.mark.parametrize(("strategy", "shape"), CASES)
def test_both_phases_equal_the_model(strategy: str, shape: str) -> None:
    found = run(strategy, shape)
    assert found.equal, found.to_json()
    assert all(row.agrees for phase in found.phases.values() for row in phase.traffic)
    kind = "RingShift" if "ring" in strategy else "AllGather" if shape == "latent" else "AllToAll"
    assert kind in {row.op for row in found.phases["prefill"].traffic}
    assert "KVTransfer" in {row.op for row in found.phases["decode"].traffic}, "decode lies otherwise"
