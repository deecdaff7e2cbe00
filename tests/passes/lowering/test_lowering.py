"""Each lowering pass on small graphs: ``<pass>/<case>.before.ir`` and what becomes of it, ``<case>.after.ir``.

The first line of a before file names the pass and its parameters. ``PARADAG_UPDATE_GOLDENS=1`` rewrites the after files
and puts the before files into canonical form; comments at the head of a file stay. Read the difference before
committing it.
"""

from __future__ import annotations

import ast
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.ir.graph import Graph
from paradag.compiler.ir.ops import Resharding, operator
from paradag.compiler.ir.parse import parse_graph
from paradag.compiler.ir.text import print_graph
from paradag.passes.lowering import LowerEp, LowerPp, LowerSp, LowerTp
from paradag.tests.strategies import lowered_levels, small_specs

FOLDER = Path(__file__).parent
CASES = sorted(str(p.relative_to(FOLDER)).removesuffix(".before.ir") for p in FOLDER.glob("*/*.before.ir"))
PASSES = {p.name: p for p in (LowerPp, LowerSp, LowerEp, LowerTp)}
DIRECTIVE = re.compile(r"# pass: (\w+)((?: \w+=\S+)*)$")


def split(path: Path) -> tuple[str, str]:
    """Comments at the head of a file, and the rest."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:count]), "".join(lines[count:])


def load(case: str) -> tuple[Any, Graph]:
    """The pass that a case names, and its graph."""
    path = FOLDER / f"{case}.before.ir"
    comments, body = split(path)
    directive = DIRECTIVE.match(comments.splitlines()[0])
    assert directive, f"{path} must begin with `# pass: NAME key=value ...`"
    options = dict(option.split("=") for option in directive[2].split())
    assert directive[1] == path.parent.name
    return PASSES[directive[1]](**{k: ast.literal_eval(v) for k, v in options.items()}), parse_graph(body, path.name)


def golden(path: Path, text: str) -> None:
    comments, body = split(path)
    if os.environ.get("PARADAG_UPDATE_GOLDENS"):
        path.write_text(comments + text, encoding="utf-8")
    else:
        assert text == body


@pytest.mark.parametrize("case", CASES)
def test_after(case):
    lowering, graph = load(case)
    golden(FOLDER / f"{case}.before.ir", print_graph(graph))
    golden(FOLDER / f"{case}.after.ir", print_graph(lowering.run(graph)))


@pytest.mark.parametrize("case", CASES)
def test_running_twice_changes_nothing(case):
    lowering, graph = load(case)
    once = lowering.run(graph)
    assert lowering.run(once) == once


@settings(max_examples=8)
@given(small_specs(), st.sampled_from(("prefill", "decode")))
def test_running_twice_changes_no_small_graph(spec, phase):
    _, *levels = lowered_levels(spec, phase)
    for graph, lowering in zip(levels, (LowerPp(levels[0].stages), LowerSp(), LowerEp(), LowerTp()), strict=True):
        assert lowering.run(graph) == graph


@pytest.mark.parametrize("case", [c for c in CASES if c.endswith("/absent")])
def test_without_its_axis_a_pass_changes_only_the_level(case):
    lowering, graph = load(case)
    assert lowering.run(graph) == replace(graph, level=lowering.name)


@pytest.mark.parametrize("case", CASES)
def test_nodes_that_were_there_stay(case):
    """Erasing the resharding nodes leaves the operators of the graph before, in their order."""
    lowering, graph = load(case)

    def kept(g: Graph) -> list[str]:
        return [n.name for _, n in g.nodes() if not (isinstance(operator(n), Resharding) or n.op in {"send", "recv"})]

    assert kept(lowering.run(graph)) == kept(graph)


def test_every_pass_has_cases():
    assert {c.split("/")[0] for c in CASES} == set(PASSES)
    assert {str(p.relative_to(FOLDER)).removesuffix(".after.ir") for p in FOLDER.glob("*/*.after.ir")} == set(CASES)
