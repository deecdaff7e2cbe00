"""Repair: what it says, what it leaves alone, and several faults at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paradag.compiler.diagnostics import Fix
from paradag.compiler.ir.graph import Block, Graph
from paradag.passes.validation import repair, verify
from paradag.tests.passes.validation import damage as d
from paradag.tests.passes.validation.cases import DENSE, MOE, load, lowered

L = "moe_layer"
WHOLE = lowered(load("pp 2 -> sp 2 -> ep 8 -> tp 4 microbatches 2 chunk 4096", model=MOE), "prefill")
DECODE = lowered(load("strategy decode { pp 2 -> ep 8 -> tp 4 }", model=MOE), "decode")
DENSE_TP = lowered(load("strategy decode { tp 4 }", model=DENSE), "decode")


def test_a_legal_graph_is_left_alone_at_every_level() -> None:
    for graph in (*WHOLE, *DECODE, *DENSE_TP):
        same, fixes = repair(graph, None)
        assert same is graph
        assert fixes == []


def test_a_fix_says_what_a_person_would_write() -> None:
    harmed = d.bypass(WHOLE[-1], L, "o_out.all_reduce")
    mended, fixes = repair(harmed, WHOLE[0])
    assert mended == WHOLE[-1]
    assert fixes == [Fix("PD405", "", "+ all_reduce over tp after o_out in moe_layer")]


def test_a_rewired_operand_is_told_alone() -> None:
    harmed = d.rewire(DECODE[-1], L, "kv_read", "kv_after", "kv_before")
    mended, fixes = repair(harmed, DECODE[0])
    assert mended == DECODE[-1]
    assert fixes == [Fix("PD411", "kv_read: takes kv_before in moe_layer", "kv_read: takes kv_after")]


def test_distribution_comes_back_without_the_logical_graph() -> None:
    harmed = d.bypass(d.bypass(DECODE[-1], L, "rows.dispatch"), "boundary", "recv")
    assert repair(harmed)[0] == DECODE[-1]


def test_a_graph_that_stopped_earlier_is_repaired_at_its_level() -> None:
    for graph in WHOLE[2:]:
        name = next(n.name for n in graph.block(L).nodes if n.op == "all_gather")
        harmed = d.bypass(graph, L, name)
        assert verify(harmed, WHOLE[0])
        assert repair(harmed, WHOLE[0])[0] == graph


def _several(graph: Graph) -> Graph:
    graph = d.bypass(graph, L, "o_out.all_reduce")
    graph = d.recut(graph, L, "qkv", "wq", heads=())
    graph = d.rewire(graph, L, "kv_read", "kv_after", "kv_before")
    return d.bypass(graph, "boundary", "send")


def test_several_faults_are_repaired_together() -> None:
    mended, fixes = repair(_several(DECODE[-1]), DECODE[0])
    assert mended == DECODE[-1]
    assert {f.rule for f in fixes} == {"PD405", "PD421", "PD411", "PD409"}


def test_one_fault_of_meaning_rejects_the_whole() -> None:
    write = DECODE[-1].block(L).node("kv_write")
    before, keys, values = write.inputs
    harmed = d.node(_several(DECODE[-1]), L, "kv_write", inputs=(before, values, keys))
    assert repair(harmed, DECODE[0]) == (harmed, [])


def test_a_cycle_is_never_repaired() -> None:
    harmed = d.rewire(DENSE_TP[-1], "dense_layer", "attn_norm", "x", "ffn_residual")
    assert repair(harmed, DENSE_TP[0]) == (harmed, [])
    assert repair(harmed) == (harmed, [])


@pytest.mark.parametrize("graphs", [WHOLE, DECODE, DENSE_TP], ids=["prefill", "decode", "decode on one stage"])
@pytest.mark.parametrize(("role", "name"), [("prologue", "begin"), ("epilogue", "end")])
def test_a_lost_phase_node_comes_back(graphs: list[Graph], role: str, name: str) -> None:
    logical, graph = graphs[0], graphs[-1]

    def without(block: Block) -> Block:
        if block.role != role:
            return block
        node = block.node(name)
        stands_in = {v.name: node.inputs[0] for v in node.outputs if node.inputs}
        kept = [n for n in block.nodes if n is not node]
        users = [replace(n, inputs=tuple(stands_in.get(i, i) for i in n.inputs)) for n in kept]
        return replace(block, nodes=tuple(users))

    harmed = graph.map_blocks(without)
    assert "PD427" in {f.code for f in verify(harmed, logical)}
    mended, fixes = repair(harmed, logical)
    assert mended == graph
    assert fixes[0].rule == "PD427" and fixes[0].after.startswith(f"+ {name}")
