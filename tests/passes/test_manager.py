"""The pass manager and users' passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paradag import DiagnosticError, Pass
from paradag import compile as compile_strategy
from paradag.compiler.ir.graph import Block, Graph, Node
from paradag.passes.manager import RewritePattern, Scheduled
from paradag.passes.plugins import load_pass

SPEC = """
model "tiny" {
    layers 2  hidden 64  vocab 100  ffn 128
    attention gqa { heads 8  kv_heads 4  head_dim 8 }
}
cluster { accelerator h100_sxm  nodes 1 of 4 }
workload { batch 8  input 16 tokens  output 4 tokens }
strategy decode { tp 4 }
"""


class DropCollectives(Pass):
    """Breaks the graph: results of o and down stay partial."""

    name = "drop-collectives"

    def run(self, graph: Graph) -> Graph:
        def without(block: Block) -> Block:
            gone = {n.outputs[0].name: n.inputs[0] for n in block.nodes if n.op == "all_reduce"}
            kept = [
                replace(n, inputs=tuple(gone.get(i, i) for i in n.inputs)) for n in block.nodes if n.op != "all_reduce"
            ]
            return replace(block, nodes=tuple(kept), result=gone.get(block.result, block.result))

        return graph.map_blocks(without)


class Raises(Pass):
    name = "raises"

    def run(self, graph: Graph) -> Graph:
        raise ZeroDivisionError("no layers")


class ReturnsNothing(Pass):
    name = "returns-nothing"

    def run(self, graph: Graph) -> Graph:
        return None  # type: ignore[return-value]


class Fp8Embedding(RewritePattern):
    name = "fp8-embedding"
    keeps_meaning = False

    def match(self, node: Node, block: Block) -> bool:
        return node.op == "embedding" and node.param("table").type.dtype != "fp8"

    def rewrite(self, node: Node, block: Block) -> list[Node]:
        return [replace(node, params=tuple(replace(p, type=replace(p.type, dtype="fp8")) for p in node.params))]


def test_passes_run_in_order_and_are_recorded() -> None:
    compiled = compile_strategy(SPEC)
    assert [r.name for r in compiled.passes] == ["pp", "sp", "ep", "tp"]
    assert all(r.seconds >= 0 for r in compiled.passes)


def test_the_ir_is_printed_after_the_passes_asked_for() -> None:
    compiled = compile_strategy(SPEC, print_after=["build", "ep", "tp"])
    assert list(compiled.dumps) == [("decode", "build"), ("decode", "ep"), ("decode", "tp")]


def test_a_users_pass_sits_where_it_is_put() -> None:
    compiled = compile_strategy(SPEC, passes=[Scheduled(Fp8Embedding(), after="pp")])
    assert [r.name for r in compiled.passes] == ["pp", "fp8-embedding", "sp", "ep", "tp"]
    embed = compiled.phases["decode"].graph.block("prologue").node("embed")
    assert embed.param("table").type.dtype == "fp8"


def test_a_pattern_that_matches_nothing_gives_the_graph_back() -> None:
    graph = compile_strategy(SPEC, passes=[Fp8Embedding()]).phases["decode"].graph
    assert Fp8Embedding().run(graph) is graph


@pytest.mark.parametrize(
    ("graph_pass", "says"),
    [(DropCollectives(), "PD405"), (Raises(), "ZeroDivisionError: no layers"), (ReturnsNothing(), "returned NoneType")],
)
def test_a_broken_pass_is_named(graph_pass: Pass, says: str) -> None:
    with pytest.raises(DiagnosticError) as caught:
        compile_strategy(SPEC, passes=[graph_pass], fix=False)
    first = caught.value.diagnostics[0]
    assert first.code == "PD502" and graph_pass.name in first.message
    assert says in str(caught.value)


def test_collectives_that_a_pass_drops_come_back_from_placements() -> None:
    compiled = compile_strategy(SPEC, passes=[DropCollectives()])
    assert str(compiled.status) == "FIXED" and {f.rule for f in compiled.fixes} <= {"PD405", "PD407"}
    assert any(d.code == "PD502" and "drop-collectives" in d.message for d in compiled.diagnostics)
    assert compiled.phases["decode"].graph == compile_strategy(SPEC).phases["decode"].graph


def test_a_pass_is_loaded_from_a_file_with_options(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Mine:\n"
        "    level: int = 1\n"
        "    fuse: bool = True\n"
        "    name = 'mine'\n"
        "    def run(self, graph):\n"
        "        return graph\n"
    )
    scheduled = load_pass("./mine.py:Mine{level=3, fuse=false}@after=ep", tmp_path)
    assert scheduled.after == "ep"
    assert (scheduled.graph_pass.level, scheduled.graph_pass.fuse) == (3, False)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("./none.py:X", "PD501"),
        ("./bad.py:X", "PD502"),
        ("./good.py:Missing", "PD501"),
        ("./good.py:NotAPass", "PD503"),
        ("./good.py:Fine{oops}", "PD503"),
        ("./good.py:Fine{unknown=1}", "PD502"),
        ("no.such.module:X", "PD501"),
        ("nothing-installed", "PD501"),
        ("", "PD503"),
    ],
)
def test_bad_specifications(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "bad.py").write_text("raise RuntimeError('at import')\n")
    (tmp_path / "good.py").write_text(
        "class NotAPass:\n    pass\nclass Fine:\n    name = 'fine'\n    def run(self, graph):\n        return graph\n"
    )
    with pytest.raises(DiagnosticError) as caught:
        load_pass(text, tmp_path)
    assert caught.value.diagnostics[0].code == code


def test_an_unknown_place_lists_the_passes() -> None:
    with pytest.raises(DiagnosticError) as caught:
        compile_strategy(SPEC, passes=[Scheduled(Fp8Embedding(), after="cp")])
    assert "build | pp | sp | ep | tp" in str(caught.value.diagnostics[0].expected)
