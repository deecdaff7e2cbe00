"""Damaged files: always diagnostics with places inside the text, never another exception, never a hang."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paradag.compiler.diagnostics import DiagnosticError
from paradag.grammar import load_text
from paradag.grammar._findings import MAX_ERRORS

WHOLE = """
model "m" {
    layers 6 { dense 2  dense_at 3  pattern sliding full  window 16 }
    hidden 64  vocab 100  ffn 128
    attention gqa { heads 4  kv_heads 2  head_dim 16  qk_norm true }
    moe { experts 8  top_k 2  ffn 32  scale 2.5 }
    dtype fp8  weights 1 B
}
cluster {
    accelerator "npu" { compute 400 TFLOPS fp8 at 60%  memory 64 GB  bandwidth 1.8 TB/s at 80% }
    nodes any of 8
    link scale_up { bandwidth 200 GB/s  latency 3 us }
}
workload { batch 8  input 16 tokens  sequence 1..9 tokens  require ttft <= 3 s }
strategy prefill { pp 2 { layers 3 3 } -> sp tp -> ep 2 { etp 1 } -> tp 2  placement tp sp adp pp }
strategy decode { tp 4  microbatches 2 }
"""
TOKENS = WHOLE.split(" ")
SIGNS = ["{", "}", "->", '"', "..", "<=", "%", "=", "strategy", "model", "\n", "é", "at", "-3"]
pieces = st.sampled_from([*TOKENS, *SIGNS])
edits = st.lists(st.tuples(st.sampled_from("dir"), st.integers(0, len(TOKENS) - 1), pieces), min_size=1, max_size=6)


def check(text: str) -> None:
    try:
        load_text(text)
    except DiagnosticError as error:
        lines = text.splitlines() or [""]
        assert 1 <= len(error.diagnostics) <= MAX_ERRORS + 1
        for diagnostic in error.diagnostics:
            span = diagnostic.span
            assert span is not None
            assert 1 <= span.line <= len(lines) + 1
            assert 1 <= span.column <= len(lines[min(span.line, len(lines)) - 1]) + 1
            assert diagnostic.expected or diagnostic.help


def test_the_whole_file_is_sound() -> None:
    assert load_text(WHOLE).spec.model.layers.count == 6


@given(edits)
def test_edited_files(changes: list[tuple[str, int, str]]) -> None:
    tokens = list(TOKENS)
    for kind, index, piece in changes:
        index = min(index, len(tokens) - 1)
        if kind == "d":
            del tokens[index]
        elif kind == "i":
            tokens.insert(index, piece)
        else:
            tokens[index] = piece
    check(" ".join(tokens))


@given(st.text())
def test_any_text(text: str) -> None:
    check(text)


@given(st.lists(pieces, max_size=30))
def test_any_words(words: list[str]) -> None:
    check(" ".join(words))


@pytest.mark.parametrize("end", range(0, len(WHOLE), 7))
def test_cut_files(end: int) -> None:
    check(WHOLE[:end])


@pytest.mark.parametrize("broken", range(len(TOKENS)))
def test_one_missing_word_is_few_errors(broken: int) -> None:
    """An error does not drag others behind it."""
    try:
        load_text(" ".join(TOKENS[:broken] + TOKENS[broken + 1 :]))
    except DiagnosticError as error:
        assert len([d for d in error.diagnostics if d.is_error]) <= 3
