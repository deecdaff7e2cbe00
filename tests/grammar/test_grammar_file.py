"""``strat.lark`` is the language: it stands alone, and the documentation and the parser agree with it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from lark import Lark, Tree
from lark import logger as lark_logger

from paradag.compiler.diagnostics import DiagnosticError
from paradag.grammar import load_text
from paradag.grammar._findings import Findings
from paradag.grammar._parse import _Parser
from paradag.grammar._tables import grammar
from paradag.grammar._units import ALL_UNITS
from paradag.grammar._words import USAGE

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```strat\n(.*?)```", DOCUMENT, re.DOTALL)
REST = {
    "model": 'model "m" { layers 4  hidden 64  vocab 100  ffn 128  attention mha { heads 4 } }',
    "cluster": "cluster { accelerator h200_sxm  nodes 1 of 8 }",
    "workload": "workload { input 16 }",
}


def shape(tree: Tree[str]) -> object:
    return (str(tree.data), [shape(c) if isinstance(c, Tree) else (c.type, str(c)) for c in tree.children])


def completed(block: str) -> str:
    """The block with what a whole file needs besides."""
    return "\n".join([block, *(text for name, text in REST.items() if not re.search(rf"^{name}\b", block, re.M))])


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_examples_of_the_reference_load(block: str) -> None:
    load_text(completed(block))


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_grammar_alone_parses_the_same_tree(block: str) -> None:
    findings = Findings()
    recovering = _Parser(block, "x", findings)._tree()
    assert not findings
    assert shape(grammar().lark.parse(block)) == shape(recovering)


def test_the_grammar_has_no_conflicts(caplog: pytest.LogCaptureFixture) -> None:
    text = (ROOT / "grammar" / "strat.lark").read_text(encoding="utf-8")
    with caplog.at_level(logging.DEBUG, logger=lark_logger.name):
        Lark(text, parser="lalr", debug=True)
        assert "onflict" not in caplog.text
        Lark('start: sum\nsum: sum "+" sum | "1"', parser="lalr", debug=True)
        assert "onflict" in caplog.text


def test_every_keyword_and_unit_is_documented() -> None:
    words = set(re.findall(r"[\w%/]+", DOCUMENT))
    assert set(grammar().keywords) <= words
    assert ALL_UNITS - words <= {f"{p}{u}" for p in "KMTP" for u in ("iB", "iB/s")} | {"PB", "PB/s", "Pb/s", "EFLOPS"}


def test_every_key_has_an_example_that_parses() -> None:
    keys = {key for block in grammar().keys.values() for key in block}
    assert keys <= set(USAGE)


@pytest.mark.parametrize("text", ["hidden", "model hf", "strategy { tp 2 kind }", "cluster { nodes any }"])
def test_incomplete_texts_are_refused(text: str) -> None:
    with pytest.raises(DiagnosticError):
        load_text(text)
