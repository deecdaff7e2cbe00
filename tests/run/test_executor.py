"""Stores, edges, positions and bytes of an execution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paradag.compiler.build import build_graph
from paradag.compiler.cost.network import wire_bytes
from paradag.compiler.driver import lowering_passes
from paradag.compiler.ir.graph import Graph, Phase
from paradag.compiler.ir.mesh import Axis, Mesh
from paradag.compiler.run import Checkpoint, ExecutionFault, Executor, Store
from paradag.compiler.run.collectives import volume
from paradag.compiler.run.handover import in_order, staying
from paradag.compiler.run.positions import Positions
from paradag.compiler.run.records import Inputs
from paradag.compiler.run.store import Ref
from paradag.compiler.spec import Spec
from paradag.compiler.verification import execute
from paradag.passes.analysis.unroll import unroll
from paradag.passes.manager import PassManager
from paradag.tests.run.builds import DENSE, LATENT, MOE, spec_of

HERE, THERE = Ref("layer", "x", 0, 0, 0), Ref("layer", "y", 0, 0, 0)


def lowered(spec: Spec, phase: Phase, steps: int = 2) -> Graph:
    return PassManager(lowering_passes(spec, phase)).run(build_graph(spec, phase, "small", steps)).graph


def test_a_rank_holds_only_what_it_was_given() -> None:
    store = Store(3)
    store.put(HERE, np.ones(2), "add")
    assert store.get(HERE, "norm").tolist() == [1, 1]
    with pytest.raises(ExecutionFault, match="rank 3 does not hold %y"):
        store.get(THERE, "norm")
    with pytest.raises(ExecutionFault, match="twice"):
        store.put(HERE, np.ones(2), "add")
    with pytest.raises(ValueError, match="read-only"):
        store.get(HERE, "norm")[0] = 2


def test_only_kv_operators_touch_the_cache() -> None:
    store = Store(0)
    store.put(HERE, np.ones(2), "kv_write")
    assert store.get(HERE, "kv_read").size == 2
    with pytest.raises(ExecutionFault, match="touches the KV cache"):
        store.get(HERE, "add")


def test_a_message_is_taken_once() -> None:
    store = Store(0)
    store.deliver(HERE, np.ones(2))
    assert store.unread == [HERE]
    store.receive(HERE)
    with pytest.raises(ExecutionFault, match="nobody sent"):
        store.receive(HERE)


def test_what_a_node_takes_must_be_an_edge_of_the_dag() -> None:
    spec = spec_of(DENSE, "strategy { tp 2 }")
    unrolled = unroll(lowered(spec, "prefill"))
    prompts = np.zeros((4, 6), dtype=int)
    add = next(c for c in range(len(unrolled)) if unrolled.node(c).op == "add")
    keep = unrolled.target != add
    broken = replace(
        unrolled, source=unrolled.source[keep], target=unrolled.target[keep], edge_kind=unrolled.edge_kind[keep]
    )
    inputs = Inputs(prompts=lambda item: prompts)
    assert Executor(unrolled, Checkpoint(spec.model, 0), {}, inputs).run().calls == len(unrolled)
    with pytest.raises(ExecutionFault, match="no edge"):
        Executor(broken, Checkpoint(spec.model, 0), {}, inputs).run()


def test_ranks_load_shards_and_nothing_else() -> None:
    spec = spec_of(DENSE, "strategy { pp 2 -> tp 4 }")
    checkpoint = Checkpoint(spec.model, 0)
    run = Executor(unroll(lowered(spec, "decode")), checkpoint, {}, Inputs())
    assert len(run.fleet) == 8
    first, last = run.stores[0][1].weights, run.stores[1][1].weights
    assert {layer for layer, _, _ in first} == {-1, 0} and {layer for layer, _, _ in last} == {-1, 1}
    assert (-1, "lm_head", "weight") in last and (-1, "lm_head", "weight") not in first
    assert np.array_equal(first[0, "qkv", "wq"], checkpoint[0, "wq"][:, 2:4])
    assert np.array_equal(first[0, "down", "w_down"], checkpoint[0, "ffn.w_down"][6:12])
    held = sum(w.size for store in run.fleet.values() for (_, node, p), w in store.weights.items() if p == "w_down")
    assert held == 2 * checkpoint[0, "ffn.w_down"].size


def test_positions_of_a_cut_cache_run_chunk_by_chunk() -> None:
    spec = spec_of(DENSE, "strategy prefill { sp 2  chunk 20 }", batch=4, prompt=8)
    graph = lowered(spec, "prefill")
    positions = Positions(graph)
    assert [i.new for i in graph.items] == [5, 3]
    axes = graph.mesh.view("sp")
    mine = [positions.cached(axes, {axes[0]: rank}, 1, 0).tolist() for rank in range(2)]
    assert sorted(mine[0] + mine[1]) == list(range(8))
    assert mine[0][:3] == positions.new(0, 0)[:3].tolist() and mine[0][3:] == positions.new(1, 0)[:2].tolist()


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_even_bytes_are_the_ring_formula(op: str) -> None:
    mesh = Mesh((Axis("a", 2, 3), Axis("b", 3, 1)), {})
    attrs = {"axes": ("b",), "of": ("x",) if op == "all_to_all" else "x", "to": "y"}
    found = volume(op, attrs, [np.ones((4, 6))] * 6, ("x", "y"), mesh)
    assert found.even and found.sent == pytest.approx(6 * wire_bytes(op, 24, 3))


def test_uneven_bytes_are_fewer_than_the_fullest_ranks() -> None:
    mesh = Mesh((Axis("a", 2, 1),), {})
    found = volume("all_gather", {"axes": ("a",), "of": "x"}, [np.ones((2, 5)), np.ones((1, 5))], ("x", "y"), mesh)
    assert not found.even and found.sent == 15 < 2 * wire_bytes("all_gather", 10, 2)


def test_routed_bytes_are_those_of_filled_rows() -> None:
    mesh = Mesh((Axis("a", 2, 1),), {})
    rows = np.zeros((1, 2, 3, 4))
    rows[0, 0, 0] = rows[0, 1, 2] = 1
    attrs = {"axes": ("a",), "of": ("group.a",), "to": "slot"}
    found = volume("dispatch", attrs, [rows, rows], ("group.a", "slot", "rows", "hidden"), mesh)
    assert (found.payload, found.sent) == (16, 8)


def test_sequences_stay_with_the_group_that_prefilled_them() -> None:
    spec = spec_of(MOE, "strategy prefill { ep 4 -> tp 2  microbatches 2 } strategy decode { ep 4 -> tp 2 }", batch=8)
    prefill, decode = lowered(spec, "prefill"), lowered(spec, "decode")
    assert prefill.mesh.degree("adp") == 2
    assert [in_order(prefill)[i].tolist() for i in (0, 1)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert staying(prefill, decode)[0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


@pytest.mark.parametrize("batch, moves", [(8, False), (3, True)])
def test_cache_that_moves_without_a_node_is_told(batch: int, moves: bool) -> None:
    strategies = f"strategy prefill {{ ep 4 -> tp 2  microbatches {min(batch, 4)} }} strategy decode {{ ep 4 -> tp 2 }}"
    found = execute(spec_of(MOE, strategies, batch=batch), steps=2)
    assert found.equal
    assert any("changed their GPU" in n for n in found.phases["decode"].notes) == moves


@pytest.mark.parametrize(
    "strategies",
    [
        "strategy prefill { sp 2 -> tp 2 } strategy decode { tp 4 }",
        "strategy prefill { tp 4 } strategy decode { pp 2 -> tp 2  microbatches 2 }",
        "strategy prefill { pp 2 -> tp 2  pools separate } strategy decode { tp 2  pools separate }",
        "strategy prefill { sp tp -> tp 4  microbatches 3  chunk 4 } strategy decode { tp 8  pools separate }",
    ],
)
def test_the_cache_moves_as_planned_between_layouts(strategies: str) -> None:
    found = execute(spec_of(DENSE, strategies), steps=2)
    assert found.equal
    (row,) = [t for t in found.phases["decode"].traffic if t.op == "KVTransfer"]
    assert row.sent == row.charged > 0


@pytest.mark.parametrize(
    "model",
    [
        LATENT.replace("layers 2", "layers 2 { pattern sliding full  window 3 }"),
        MOE.replace("top_k 2", "top_k 2  scale 2.5  router topk_softmax"),
        MOE.replace("top_k 2", "top_k 2  shared 2  scale 2.5  router sigmoid  groups 4  top_groups 2"),
        DENSE.replace("head_dim 4", "head_dim 4  qk_norm true"),
        DENSE.replace("kv_heads 4", "kv_heads 2") + "  tied true",
    ],
)
@pytest.mark.parametrize("strategies", ["strategy { tp 4 }", "strategy prefill { sp tp -> tp 2 } strategy decode { }"])
def test_models_of_many_kinds(model: str, strategies: str) -> None:
    found = execute(spec_of(model, strategies), steps=2)
    assert found.equal, found


@pytest.mark.parametrize("mode, phase", [("prefill", "prefill"), ("decode", "decode")])
def test_the_mode_says_which_phases_run(mode: str, phase: str) -> None:
    spec = spec_of(DENSE, "strategy prefill { sp 2 -> tp 2 } strategy decode { tp 4 }")
    only = spec.model_copy(update={"workload": spec.workload.model_copy(update={"mode": mode})})
    found = execute(only, steps=2)
    assert set(found.phases) == {phase} and found.equal, found


def test_phases_alone() -> None:
    prefill = execute(spec_of(DENSE, "strategy prefill { tp 4 }"))
    decode = execute(spec_of(DENSE, "strategy decode { tp 4 }"))
    assert set(prefill.phases) == {"prefill"} and prefill.equal
    assert set(decode.phases) == {"decode"} and decode.equal
    assert "comes from the reference" in decode.phases["decode"].notes[0]
