"""Lowered graphs against the arithmetic of the domain, one strategy per case."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from paradag import compile as compile_strategy
from paradag.compiler.ir.graph import Graph, Phase
from paradag.compiler.ir.ops import operator
from paradag.compiler.ir.types import chunk_bounds

DENSE = """
model "dense" {
    layers 6  hidden 1024  vocab 32000  ffn 4096
    attention gqa { heads 32  kv_heads 8  head_dim 64 }
}
"""
MOE = """
model "moe" {
    layers 4  hidden 1024  vocab 32000
    attention gqa { heads 32  kv_heads 8  head_dim 64 }
    moe { experts 16  top_k 2  ffn 512  SHARED }
}
"""
AROUND = """
cluster { accelerator h100_sxm  nodes any of 8 }
workload { batch BATCH  input 64 tokens  output 32 tokens }
"""
BF16 = 2


def lower(model: str, strategy: str, phase: Phase = "decode", batch: int = 32, steps: int = 1) -> Graph:
    text = model.replace("SHARED", "") + AROUND.replace("BATCH", str(batch)) + f"strategy {phase} {{ {strategy} }}"
    compiled = compile_strategy(text, steps=steps)
    assert compiled.phases, compiled.diagnostics
    return compiled.phases[phase].graph


def communication(graph: Graph, block: str) -> list[tuple[str, str, int]]:
    """(operator, axes, bytes of the local input buffer) of each resharding node of a block, in program order."""
    extents = {name: values[0, 0] for name, values in graph.extents().items()}
    found = []
    for node in graph.block(block).nodes:
        if "axes" in node.attrs:
            payload = graph.block(block).types[node.inputs[0]].local_bytes(extents, graph.mesh)
            found.append((operator(node).public, graph.mesh.describe(node.attrs["axes"]), round(float(payload))))
    return found


def test_tp_has_two_all_reduces_of_the_stream_per_layer() -> None:
    graph = lower(DENSE, "tp 8")
    stream = 32 * 1024 * BF16
    assert communication(graph, "dense_layer") == [("AllReduce", "tp", stream), ("AllReduce", "tp", stream)]
    assert communication(graph, "prologue") == [("AllReduce", "tp", stream)]
    assert communication(graph, "epilogue") == [("AllGather", "tp", 32 * 32000 // 8 * BF16)]


def test_no_strategy_means_no_communication() -> None:
    graph = lower(DENSE, "")
    assert graph.mesh.gpus == 1
    assert not any("axes" in n.attrs or n.op in ("send", "recv") for _, n in graph.nodes())


def test_attention_dp_with_ep_on_the_same_ranks() -> None:
    """ep 8: eight GPUs, not 64; each takes 4 of the 32 sequences to attention and 2 of the 16 experts."""
    graph = lower(MOE, "ep 8")
    assert (graph.mesh.gpus, graph.mesh.degree("adp"), graph.mesh.degree("ep")) == (8, 8, 8)
    routed = 4 * 2 * 1024 * BF16
    assert communication(graph, "moe_layer") == [("Dispatch", "adp", routed), ("Combine", "adp", routed)]


def test_tokens_replicated_over_tp_are_sliced_before_dispatch_and_gathered_after() -> None:
    """ep 4 -> tp 2: R = 4, adp 2; a rank sends 32 / 4 tokens to 2 experts each."""
    graph = lower(MOE, "ep 4 -> tp 2")
    assert (graph.mesh.gpus, graph.mesh.degree("adp")) == (4, 2)
    routed, mine = 8 * 2 * 1024 * BF16, 8 * 1024 * BF16
    assert communication(graph, "moe_layer") == [
        ("AllReduce", "tp", 2 * mine),
        ("Split", "tp", 2 * mine),
        ("Dispatch", "adp+tp", routed),
        ("Combine", "adp+tp", routed),
        ("AllGather", "tp", mine),
    ]


def test_expert_replicas() -> None:
    """ep 2 -> tp 8: R = 8, so four replicas of every expert, each for a quarter of the tokens."""
    graph = lower(MOE, "ep 2 -> tp 8")
    assert (graph.mesh.gpus, graph.mesh.degree("edp"), graph.mesh.degree("ep")) == (8, 4, 2)
    moves = communication(graph, "moe_layer")
    assert moves[1] == ("Split", "tp", 32 * 1024 * BF16)
    dispatch = next(n for n in graph.block("moe_layer").nodes if n.op == "dispatch")
    assert graph.mesh.size(dispatch.attrs["axes"]) == 2, "tokens stay inside their replica"
    experts = graph.block("moe_layer").node("experts")
    assert experts.param("gate").type.local_dims({}, graph.mesh)["slot"] == 8


def test_tp_alone_cuts_every_expert() -> None:
    graph = lower(MOE, "tp 8")
    assert (graph.mesh.degree("etp"), graph.mesh.degree("ep"), graph.mesh.gpus) == (8, 1, 8)
    experts = graph.block("moe_layer").node("experts")
    assert experts.param("gate").type.local_dims({}, graph.mesh) == {"slot": 16, "hidden": 1024, "expert_ffn": 64}
    assert [op for op, _, _ in communication(graph, "moe_layer")] == ["AllReduce", "AllReduce"]


def test_shared_expert_merges_partial_sums_before_reducing() -> None:
    """Under expert TP the routed and the shared sum are both partial over tp: one all-reduce for the two."""
    graph = lower(MOE.replace("SHARED", "shared 1"), "tp 8")
    assert [op for op, _, _ in communication(graph, "moe_layer")] == ["AllReduce", "AllReduce"]
    graph = lower(MOE.replace("SHARED", "shared 1"), "ep 8 -> tp 8")
    ops = [op for op, _, _ in communication(graph, "moe_layer")]
    assert ops == ["AllReduce", "Split", "Dispatch", "Combine", "ReduceScatter", "AllGather"]


def test_kv_heads_are_replicated_where_tp_exceeds_them() -> None:
    """tp 16 on 8 KV heads: two ranks hold the same head, and no collective is needed for it."""
    graph = lower(DENSE, "tp 16")
    write = graph.block("dense_layer").node("kv_write")
    assert write.outputs[0].type.local_dims({"batch": 32, "new": 1, "context": 80}, graph.mesh)["kv_heads"] == 1
    assert graph.mesh.size(graph.mesh.view("kv")) == 8
    assert [op for op, _, _ in communication(graph, "dense_layer")] == ["AllReduce", "AllReduce"]


def test_megatron_sp_turns_all_reduce_into_reduce_scatter_and_all_gather() -> None:
    graph = lower(DENSE, "sp tp -> tp 8", "prefill", batch=4)
    stream = 4 * 64 * 1024 * BF16
    assert communication(graph, "dense_layer") == [
        ("AllGather", "tp", stream // 8),
        ("ReduceScatter", "tp", stream),
        ("AllGather", "tp", stream // 8),
        ("ReduceScatter", "tp", stream),
    ]
    assert graph.mesh.gpus == 8, "no ranks of its own"


def test_sp_gathers_keys_and_values_only() -> None:
    graph = lower(DENSE, "sp 2 -> tp 4", "prefill", batch=4)
    assert (graph.mesh.gpus, graph.mesh.degree("sp")) == (8, 2)
    kv = 4 * 32 * (8 // 4) * 2 * 64 * BF16
    moves = communication(graph, "dense_layer")
    assert moves[0] == ("AllGather", "sp", kv)
    assert [op for op, _, _ in moves] == ["AllGather", "AllReduce", "AllReduce"]
    assert graph.block("dense_layer").node("kv_write").outputs[0].type.axes_of("context") == graph.mesh.view("sp")


def test_uneven_token_chunks_cover_every_token_once() -> None:
    """63 tokens over sp 4: chunks of 16, 16, 16 and 15; costs take the 16."""
    text = DENSE + AROUND.replace("BATCH", "4").replace("input 64", "input 63") + "strategy prefill { sp 4 }"
    graph = compile_strategy(text).phases["prefill"].graph
    assert graph.stream.local_dims({"batch": 4, "new": 63, "context": 63}, graph.mesh)["seq"] == 16
    bounds = [chunk_bounds(63, [(4, rank)]) for rank in range(4)]
    assert bounds == [(0, 16), (16, 32), (32, 48), (48, 63)]


def test_uneven_stages_and_their_boundary() -> None:
    graph = lower(DENSE, "pp 4", batch=8)
    assert sum(graph.stages) == 6 and max(graph.stages) - min(graph.stages) <= 1
    boundary = graph.with_role("boundary")[0]
    assert boundary.layers == graph.stage_starts[1:]
    assert [n.op for n in boundary.nodes] == ["send", "recv"]
    explicit = lower(DENSE, "pp 3 { layers 1 3 2 }", batch=8)
    assert explicit.stages == (1, 3, 2) and explicit.with_role("boundary")[0].layers == (1, 4)


def test_microbatches_are_as_even_as_the_batch_allows() -> None:
    graph = lower(DENSE, "pp 2 microbatches 3", batch=8)
    assert [i.batch for i in graph.items] == [3, 3, 2]


def test_a_large_microbatch_runs_in_chunks_of_tokens() -> None:
    graph = lower(DENSE, "tp 2 chunk 100", "prefill", batch=4)
    assert [(i.new, i.past, i.first, i.last) for i in graph.items] == [
        (25, 0, True, False),
        (25, 25, False, False),
        (14, 50, False, True),
    ]
    assert all(i.batch * i.new <= 100 for i in graph.items)


def test_alternating_layers_are_lowered_once_each() -> None:
    model = DENSE.replace("layers 6", "layers 6 { pattern sliding full  window 16 }")
    graph = lower(model, "tp 2")
    blocks = {b.name: b.layers for b in graph.with_role("layer")}
    assert blocks == {"dense_sliding_layer": (0, 2, 4), "dense_full_layer": (1, 3, 5)}
    extents = {"batch": 1, "new": 1, "context": 80}
    reads = {name: graph.block(name).node("kv_read").outputs[0].type.local_dims(extents, graph.mesh) for name in blocks}
    assert reads["dense_sliding_layer"]["context"] == 16 and reads["dense_full_layer"]["context"] == 80


def test_decode_steps_chain_through_ids_and_kv_versions() -> None:
    compiled = compile_strategy(DENSE + AROUND.replace("BATCH", "8") + "strategy decode { pp 2 -> tp 2 }", steps=3)
    flat = compiled.phases["decode"].flat
    step, ops = flat.column("step"), [operator(n).public for _, n in flat.unrolled.templates]
    template = flat.column("template")
    sources, targets = flat.edges()
    across = step[sources] != step[targets]
    order = flat.kinds[across] == 5
    pairs = Counter(
        (ops[template[a]], ops[template[b]])
        for a, b in zip(sources[across][~order], targets[across][~order], strict=True)
    )
    assert pairs == {("Send", "Recv"): 2, ("KVWrite", "KVWrite"): 2 * 6}
    context = compiled.phases["decode"].graph.extents()["context"][:, 0]
    assert context.tolist() == [64 + 16, 64 + 17, 64 + 18]


def test_redundant_experts_are_slots() -> None:
    graph = lower(MOE, "ep 8 { redundant 8 }")
    experts = graph.block("moe_layer").node("experts")
    assert experts.param("gate").type.local_dims({}, graph.mesh)["slot"] == 3
    assert graph.meta["slots"] == 24


@pytest.mark.parametrize(
    "strategy", ["tp 8", "ep 8", "ep 4 -> tp 2", "pp 2 -> tp 4", "ep 2 -> tp 8", "ep 2 { etp 4 } -> tp 8"]
)
def test_work_is_conserved(strategy: str) -> None:
    """FLOPs of all ranks add up to the undistributed model's, whatever the strategy (sizes divide evenly here)."""

    def total(chain: str) -> float:
        text = MOE.replace("SHARED", "shared 1") + AROUND.replace("BATCH", "32") + f"strategy decode {{ {chain} }}"
        analysis = compile_strategy(text).phases["decode"]
        work = 0.0
        for block, node in analysis.graph.nodes():
            if node.op in ("linear", "expert", "attention", "lm_head"):
                ranks = analysis.graph.mesh.stage_ranks
                flops = np.max(analysis.costs[block.name, node.name].flops)
                work += float(flops) * max(1, len(block.layers)) * ranks
        return work

    assert total(strategy) == pytest.approx(total(""), rel=1e-12)
