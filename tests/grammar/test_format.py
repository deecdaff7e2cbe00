"""The canonical layout: read by people, idempotent, without loss of a comment or a word."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.diagnostics import DiagnosticError
from paradag.grammar import format_text, load_text, print_spec
from paradag.grammar._scan import comments, scan
from paradag.tests.grammar.test_roundtrip import specs

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "ir_examples").glob("*.strat"))

BEFORE = """\
# A model
#   of mine
model   "x"   {  # head
 layers 2 { dense 1 }   hidden 64   # trailing

 # own line
 vocab 100 attention gqa { heads 4 # four
   kv_heads 2 head_dim 16 } dtype bf16
 ffn 128  # last
 # end of block
}


workload { batch 128 sequence 128 .. 1024 tokens input 2048 tokens
 require ttft <= 30s }
# about prefill
strategy prefill { pp 2 { layers 1 1 } -> sp 2 kind ring -> ep 16{etp 2} -> tp 8   microbatches 8 } # tail
strategy decode  { # why
 ep 32 -> # inner
 tp 4 }
# the end"""

AFTER = """\
# A model
#   of mine
model "x" {  # head
    layers 2 { dense 1 }
    hidden 64  # trailing

    # own line
    vocab 100
    attention gqa {
        heads 4  # four
        kv_heads 2
        head_dim 16
    }
    dtype bf16
    ffn 128  # last
    # end of block
}

workload {
    batch 128
    sequence 128..1024 tokens
    input 2048 tokens
    require ttft <= 30 s
}

# about prefill
strategy prefill { pp 2 { layers 1 1 } -> sp 2 kind ring -> ep 16 { etp 2 } -> tp 8  microbatches 8 }  # tail

strategy decode {  # why
    ep 32 -> tp 4  # inner
}

# the end
"""


def test_the_layout() -> None:
    assert format_text(BEFORE) == AFTER
    assert format_text(AFTER) == AFTER


def test_a_long_strategy_stands_on_several_lines() -> None:
    chain = "pp 4 { layers 24 24 23 23 } -> ep 32 { etp 2  redundant 32 } -> tp 4"
    text = f"strategy decode {{ {chain} ranks 64 microbatches 8 }}"
    assert format_text(text) == (
        "strategy decode {\n"
        "    pp 4 { layers 24 24 23 23 } -> ep 32 { etp 2  redundant 32 } -> tp 4\n"
        "    ranks 64\n"
        "    microbatches 8\n"
        "}\n"
    )


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_a_file_without_statements(text: str) -> None:
    assert format_text(text) == text.lstrip()


def test_an_error_is_told_and_nothing_is_formatted() -> None:
    with pytest.raises(DiagnosticError) as caught:
        format_text("model { layers = 2 }", "x.strat")
    assert caught.value.diagnostics[0].code == "PD010"


@settings(max_examples=10, deadline=None)
@given(specs())
def test_what_the_printer_prints_is_canonical(spec: object) -> None:
    text = print_spec(spec)  # type: ignore[arg-type]
    assert format_text(text) == text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_are_canonical(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert format_text(text) == text


_PIECES = ("\n", "  ", " # remark\n", " # one # two\n", "\n\n\n", "\t")


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(EXAMPLES), st.randoms(use_true_random=False))
def test_blanks_and_comments_anywhere_change_nothing_but_the_layout(path: Path, rng: random.Random) -> None:
    text = path.read_text(encoding="utf-8")
    for gap in sorted({m.start() for m in re.finditer(r"(?<=\S)[ \n]+(?=\S)", _without_comments(text))}, reverse=True):
        if rng.random() < 0.1:
            text = f"{text[:gap]}{rng.choice(_PIECES)}{text[gap:]}"
    formatted = format_text(text)
    assert format_text(formatted) == formatted
    assert load_text(formatted).spec == load_text(text).spec
    assert _words(formatted) == _words(text)
    assert [x.text for x in scan(formatted)] == [x.text for x in scan(text)]


def _without_comments(text: str) -> str:
    """The text with comments blanked out, so that no gap inside one is taken."""
    return re.sub(r"#[^\n]*", lambda m: "." * len(m.group()), text)


def _words(text: str) -> list[str]:
    """Words of all comments, in order; two comments on one line may have become one."""
    return [word for comment in comments(text) for word in comment.text.split()]
