"""The kinds of sequence parallelism: what they lower to, what they send, and what they may cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from paradag.compiler.build import build_graph
from paradag.compiler.cost import node_costs, resolve_hardware
from paradag.compiler.cost.network import transfer_time
from paradag.compiler.driver import compile as compile_strategy
from paradag.compiler.driver import load, lowering_passes
from paradag.compiler.ir.graph import Block, Graph, Node
from paradag.compiler.ir.ops import operator
from paradag.compiler.ir.parse import parse_graph
from paradag.compiler.ir.text import print_graph
from paradag.compiler.spec import Spec
from paradag.passes.lowering import LowerSp
from paradag.passes.manager import PassManager
from paradag.passes.validation import check_spec, verify

GQA = "attention gqa { heads 64  kv_heads 8  head_dim 128 }"
MLA = "attention mla { heads 64  q_lora 1536  kv_lora 512  nope_dim 128  rope_dim 64  v_dim 128 }"
BYTES = 2
"""Of a bf16 element."""


def spec_of(strategy: str, attention: str = GQA, *, batch: int = 2, tokens: int = 4096) -> Spec:
    text = f"""
    model "m" {{ layers 4  hidden 4096  vocab 32000  ffn 8192  dtype bf16  kv_dtype bf16  {attention} }}
    cluster {{ accelerator h100_sxm  nodes any of 8 }}
    workload {{ mode prefill  batch {batch}  input {tokens} tokens }}
    strategy prefill {{ {strategy} }}
    """
    checked, found = check_spec(load(text))
    assert not [d for d in found if d.is_error]
    return checked.spec


def lowered(strategy: str, attention: str = GQA, **work: int) -> Graph:
    spec = spec_of(strategy, attention, **work)
    return PassManager(lowering_passes(spec, "prefill")).run(build_graph(spec, "prefill", "m")).graph


def layer(graph: Graph) -> Block:
    (block,) = graph.with_role("layer")
    return block


def of(block: Block, op: str) -> list[Node]:
    return [n for n in block.nodes if n.op == op]


def sent(graph: Graph, op: str, spec: Spec) -> list[float]:
    """Bytes that a rank sends for each collective of a layer over sp."""
    hardware, _ = resolve_hardware(spec.cluster, "bf16")
    costs = node_costs(graph, hardware)
    block = layer(graph)
    return [float(np.max(costs[block.name, n.name].wire_bytes)) for n in of(block, op) if n.attrs["axes"] == ("sp",)]


# --- ring -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_ring_has_a_hop_less_than_ranks(ranks: int) -> None:
    graph = lowered(f"sp {ranks} kind ring -> tp 2")
    block = layer(graph)
    count = Counter(n.op for n in block.nodes)
    assert (count["attention_partial"], count["ring_shift"], count["attention_merge"]) == (ranks, ranks - 1, ranks - 1)
    assert count["attention"] == count["all_gather"] == 0
    for hop, node in enumerate(of(block, "attention_partial")):
        assert block.types[node.inputs[1]].shift_of("context") == hop, "a block visits every rank once"
    assert {n.attrs["hops"] for n in of(block, "ring_shift")} == {1}, "to the next rank each time"
    assert [operator(n).public for n in of(block, "ring_shift")] == ["RingShift"] * (ranks - 1)


@pytest.mark.parametrize(
    ("strategy", "attention", "row"),
    [
        # a KV head of keys and values per rank; TP replicates heads it has too few of
        ("sp 4 kind ring -> tp 2", GQA, 2 * 4 * 128),
        ("sp 4 kind ring -> tp 8", GQA, 2 * 1 * 128),
        ("sp 4 kind ring -> tp 16", GQA, 2 * 1 * 128),
        ("sp 4 kind ring -> tp 2", MLA, 512 + 64),
    ],
)
def test_a_hop_sends_one_block_of_the_cache(strategy: str, attention: str, row: int) -> None:
    """n = 2 b (B C / c) Hk d, of MLA b (B C / c) (r + dr), c - 1 times."""
    spec = spec_of(strategy, attention)
    assert sent(lowered(strategy, attention), "ring_shift", spec) == [BYTES * 2 * 4096 // 4 * row] * 3


def test_a_ring_sends_what_gathering_sends() -> None:
    spec = spec_of("sp 8 kind ring -> tp 2")
    ring = sum(sent(lowered("sp 8 kind ring -> tp 2"), "ring_shift", spec))
    assert ring == sum(sent(lowered("sp 8 -> tp 2"), "all_gather", spec))


@pytest.mark.parametrize("attention", [GQA, GQA.replace("}", " window 512 }")])
@pytest.mark.parametrize("strategy", ["sp 4 kind ring -> tp 2", "sp 4 kind ring -> tp 2  chunk 2048"])
def test_the_hops_share_the_work_of_attention(strategy: str, attention: str) -> None:
    def work(kind: str) -> np.ndarray:
        text = strategy.replace("ring", kind)
        hardware, _ = resolve_hardware(spec_of(text, attention).cluster, "bf16")
        graph = lowered(text, attention)
        costs = node_costs(graph, hardware)
        block = layer(graph)
        nodes = [n for n in block.nodes if n.op in ("attention", "attention_partial")]
        return np.asarray(sum(costs[block.name, n.name].flops for n in nodes))

    np.testing.assert_allclose(work("ring"), work("allgather"), rtol=1e-12)


def test_a_latent_travels_and_its_weights_are_held_once() -> None:
    ring, gathered = (compile_strategy(spec_of(f"sp 4 {kind} -> tp 2", MLA)) for kind in ("kind ring", ""))
    graph = ring.phases["prefill"].graph
    travelling = [layer(graph).types[n.inputs[0]].names for n in of(layer(graph), "ring_shift")]
    assert travelling == [("batch", "context", "latent")] * 3
    assert ring.phases["prefill"].memory.fullest.weights == gathered.phases["prefill"].memory.fullest.weights
    assert len(of(layer(graph), "latent_expand")) == 4


def test_sinks_are_counted_at_one_hop() -> None:
    graph = lowered("sp 4 kind ring -> tp 2", "attention gqa { heads 64  kv_heads 8  head_dim 64  sinks true }")
    counted = [n.name for n in layer(graph).nodes if any(p.name == "sinks" for p in n.params)]
    assert counted == ["attention_hop0"]


@pytest.mark.parametrize(("placement", "slow"), [("pp adp sp tp", True), ("pp adp tp sp", False)])
def test_a_hop_takes_the_link_between_neighbours(placement: str, slow: bool) -> None:
    """Eight ranks of a ring inside one node, or one in each of eight."""
    spec = spec_of(f"sp 8 kind ring -> tp 8  placement {placement}")
    hardware, _ = resolve_hardware(spec.cluster, "bf16")
    graph = PassManager(lowering_passes(spec, "prefill")).run(build_graph(spec, "prefill", "m")).graph
    block = layer(graph)
    hop = node_costs(graph, hardware)[block.name, of(block, "ring_shift")[0].name]
    expected = transfer_time(np.max(hop.wire_bytes), slow, hardware).time
    assert float(np.max(hop.time)) == pytest.approx(float(expected), rel=1e-12)
    other = transfer_time(np.max(hop.wire_bytes), not slow, hardware).time
    assert bool(expected > other) is slow


def test_the_ring_states_its_assumptions() -> None:
    names = {kind: {a.name for a in compile_strategy(spec_of(f"sp 2 kind {kind}")).assumptions} for kind in KINDS}
    assert names["ring"] - names["allgather"] == {"ring hops"}
    assert names["allgather"] - names["ulysses"] == {"token order"}


KINDS = ("allgather", "ring", "ulysses")

# --- Ulysses ----------------------------------------------------------------------------------------------------------


def test_ulysses_exchanges_heads_for_tokens_and_back() -> None:
    """n = b (T / c) d (Hq + 2 Hk) there and b (T / c) Hq d back, of which (c - 1) / c leave the rank."""
    spec = spec_of("sp 4 kind ulysses -> tp 2")
    graph = lowered("sp 4 kind ulysses -> tp 2")
    tokens, heads, kv_heads, d = 2 * 4096 // 4, 64 // 2, 8 // 2, 128
    there = sorted(sent(graph, "all_to_all", spec))
    assert there == sorted(BYTES * tokens * d * h * 3 / 4 for h in (heads, kv_heads, kv_heads, heads))
    block = layer(graph)
    assert block.types["kv_after"].axes_of("kv_heads") == ("tp", "sp")
    assert block.types["kv_after"].axes_of("context") == ()
    assert not of(block, "all_gather")


def test_kv_heads_that_do_not_go_round_are_replicated_over_the_inner_part_of_sp() -> None:
    graph = lowered("sp 8 kind ulysses -> tp 2")
    assert [(a.name, a.size) for a in graph.mesh.axes] == [("sp0", 4), ("sp1", 2), ("tp", 2)]
    block = layer(graph)
    assert block.types["kv_after"].axes_of("kv_heads") == ("tp", "sp0")
    (attention,) = of(block, "attention")
    assert block.types[attention.inputs[0]].axes_of("heads") == ("tp", "sp0", "sp1")
    assert [n.attrs["axes"] for n in of(block, "all_gather")] == [("sp1",), ("sp1",)], "keys and values, once each"


def test_a_latent_cache_is_gathered_and_expanded_for_the_heads_of_each_rank() -> None:
    graph = lowered("sp 4 kind ulysses -> tp 2", MLA)
    block = layer(graph)
    assert block.types["kv_after"].placement.used == frozenset()
    (expand,) = of(block, "latent_expand")
    assert expand.param("uk").type.axes_of("kv_heads") == ("tp", "sp")


@pytest.mark.parametrize(
    ("strategy", "attention", "said"),
    [
        ("sp 8 kind ulysses -> tp 16", GQA, "the 4 attention heads that `tp 16` leaves to a rank"),
        ("sp 3 kind ulysses", GQA, "the 64 attention heads do not divide"),
        ("sp 4 kind ulysses", "attention gqa { heads 24  kv_heads 6  head_dim 64 }", "the 6 KV heads do not divide"),
        ("sp 16 kind ulysses -> tp 8", MLA, "the 8 attention heads that `tp 8` leaves to a rank"),
    ],
)
def test_heads_that_do_not_divide_are_refused(strategy: str, attention: str, said: str) -> None:
    text = f"""
    model "m" {{ layers 4  hidden 4096  vocab 32000  ffn 8192  {attention} }}
    cluster {{ accelerator h100_sxm  nodes any of 8 }}
    workload {{ mode prefill  batch 2  input 4096 tokens }}
    strategy prefill {{ {strategy} }}
    """
    found = [d for d in check_spec(load(text))[1] if d.is_error]
    assert [d.code for d in found] == ["PD224"] and said in found[0].message
    fixed = compile_strategy(text)
    assert str(fixed.status) == "FIXED" and [f.rule for f in fixed.fixes] == ["PD224"]


# --- all kinds --------------------------------------------------------------------------------------------------------

SHAPES: Mapping[str, str] = {
    "gqa": "attention gqa { heads 8  kv_heads 4  head_dim 8 }",
    "mqa": "attention mqa { heads 8  head_dim 8  sinks true }",
    "mla": "attention mla { heads 8  q_lora 6  kv_lora 8  nope_dim 4  rope_dim 2  v_dim 4 }",
}


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_is_legal_and_reads_back(kind: str, shape: str) -> None:
    spec = spec_of(f"pp 2 -> sp 4 kind {kind} -> tp 2  chunk 50", SHAPES[shape], tokens=37)
    graph = logical = build_graph(spec, "prefill", "m")
    for lowering in lowering_passes(spec, "prefill"):
        graph = lowering.run(graph)
        assert verify(graph, logical) == []
        assert lowering.run(graph) == graph, "again changes nothing"
        assert parse_graph(print_graph(graph)) == graph


def test_sp_leaves_the_tokens_where_they_are_for_all_kinds() -> None:
    """Outside attention the kinds do not differ."""
    streams = set()
    for kind in KINDS:
        spec = spec_of(f"sp 4 kind {kind} -> tp 2")
        graph = LowerSp().run(build_graph(spec, "prefill", "m"))
        streams.add(graph.stream)
    assert len(streams) == 1
