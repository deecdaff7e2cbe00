"""The verifier: legal graphs are clean at every level, and each kind of damage is found, at its place, by its code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.ir.graph import LEVELS, Graph, Node, Value
from paradag.compiler.spec import LoadedSpec
from paradag.passes.validation import check_spec, erase, verify
from paradag.tests.passes.validation import damage as d
from paradag.tests.passes.validation.cases import DENSE, MOE, load, lowered
from paradag.tests.strategies import lowered_levels, small_specs

SLIDING = DENSE.replace("layers 8", "layers 8 { pattern sliding full window 64 }")
L, S, F = "moe_layer", "dense_sliding_layer", "dense_full_layer"


def _graphs(strategy: str, model: str, phase: str) -> list[Graph]:
    return lowered(load(f"strategy {phase} {{ {strategy} }}", model=model), phase)  # type: ignore[arg-type]


# prefill with every dimension; decode with attention DP; EP alone; a dense model with two kinds of layers
WHOLE = _graphs("pp 2 -> sp 2 -> ep 8 -> tp 4 microbatches 2 chunk 4096", MOE, "prefill")
DECODE = _graphs("pp 2 -> ep 8 -> tp 4", MOE, "decode")
EXPERTS = _graphs("ep 8", MOE, "decode")
WINDOWS = _graphs("tp 4", SLIDING, "decode")
MEGATRON = _graphs("sp tp -> tp 4", SLIDING, "prefill")
BASES = {"whole": WHOLE, "decode": DECODE, "experts": EXPERTS, "windows": WINDOWS, "megatron": MEGATRON}


@pytest.mark.parametrize("name", BASES)
def test_legal_graphs_are_clean_at_every_level(name: str) -> None:
    for graph in BASES[name]:
        assert verify(graph, BASES[name][0]) == [], graph.level
    assert [g.level for g in BASES[name]] == list(LEVELS)


@settings(max_examples=6)
@given(small_specs(), st.integers(1, 3))
def test_random_legal_graphs_are_clean_at_every_level(spec: object, steps: int) -> None:
    for strategy in spec.strategies:  # type: ignore[attr-defined]
        graphs = lowered_levels(spec, strategy.phase, steps)  # type: ignore[arg-type]
        for graph in graphs:
            assert verify(graph, graphs[0]) == [], graph.level


@settings(max_examples=10)
@given(small_specs())
def test_random_legal_specs_have_no_errors(spec: object) -> None:
    loaded = LoadedSpec(spec)  # type: ignore[arg-type]
    assert not [f for f in check_spec(loaded)[1] if f.is_error and f.code != "PD209"]


def _kind(graph: Graph, where: str, value: str):  # type: ignore[no-untyped-def]
    return graph.block(where).types[value]


def _two_all_reduces(g: Graph) -> Graph:
    first = g.block(L).node("o_out.all_reduce")
    return d.insert(g, L, first.name, d.again(first, "twice"), users={first.name: "twice"})


def _equal_all_reduces(g: Graph) -> Graph:
    first = g.block(L).node("o_out.all_reduce")
    copy = replace(first, name="copy", outputs=(Value("copy", first.outputs[0].type),))
    return d.rewire(d.insert(g, L, first.name, copy), L, "moe_residual", "attn_residual", "copy")


def _as_reduce_scatter(g: Graph) -> Graph:
    kind = d.place(_kind(g, L, "o_out"), seq=("sp", "tp"))
    changed = d.node(g, L, "o_out.all_reduce", op="reduce_scatter", attrs={"axes": ("tp",), "to": "seq"})
    return d.retype(changed, L, "o_out.all_reduce", kind)


def _gather_and_slice_back(g: Graph) -> Graph:
    whole = d.place(_kind(g, L, "attn_norm"), seq=())
    back = _kind(g, L, "attn_norm")
    nodes = (
        Node("there", "all_gather", ("attn_norm",), (Value("there", whole),), attrs={"axes": ("sp",), "of": "seq"}),
        Node("back", "slice", ("there",), (Value("back", back),), attrs={"axes": ("sp",), "to": "seq"}),
    )
    return d.rewire(d.insert(g, L, "attn_norm", *nodes), L, "qkv", "attn_norm", "back")


def _kv_replicated(g: Graph) -> Graph:
    for value in ("kv_before", "kv_after", "kv"):
        g = d.retype(g, S, value, d.place(_kind(g, S, value), kv_heads=()))
    return g


def _swap_layers(g: Graph) -> Graph:
    mine, other = g.block(S).layers, g.block(F).layers
    return d.block(d.block(g, S, layers=other), F, layers=mine)


def _send_inside_a_layer(g: Graph) -> Graph:
    kind = _kind(g, L, "attn_residual")
    nodes = (
        Node("out", "send", ("attn_residual",), (Value("out", kind),)),
        Node("back", "recv", ("out",), (Value("back", kind),)),
    )
    return d.rewire(d.insert(g, L, "attn_residual", *nodes), L, "moe_norm", "attn_residual", "back")


def _ids_without_send(g: Graph) -> Graph:
    g = d.remove(g, "epilogue", "return_send")
    g = d.bypass(g, "prologue", "return_recv")
    return d.block(g, "prologue", args=tuple(replace(a, source="next") for a in g.block("prologue").args))


def _second_writer(g: Graph) -> Graph:
    write = g.block(S).node("kv_write")
    copy = replace(write, name="rewrite", outputs=(Value("rewritten", write.outputs[0].type),))
    return d.rewire(d.insert(g, S, "kv_write", copy), S, "kv_read", "kv_after", "rewritten")


def _carry(g: Graph, where: str, source: str) -> Graph:
    args = tuple(replace(a, source=source) if a.carry != "layer" else a for a in g.block(where).args)
    return d.block(g, where, args=args)


def _dangling(g: Graph) -> Graph:
    norm = g.block(S).node("ffn_norm")
    return d.insert(g, S, norm.name, replace(norm, name="idle", outputs=(Value("idle", norm.outputs[0].type),)))


def _tokens_whole_on_tp(g: Graph) -> Graph:
    """The MoE part rebuilt as if tokens were replicated over tp, an EP axis."""
    rows = _kind(g, L, "rows")
    keep = [i for i, n in enumerate(rows.names) if n != "group.tp"]
    dims = tuple(rows.dims[i] for i in keep)
    shards = tuple(rows.placement.shards[i] for i in keep)
    return d.retype(g, L, "rows", replace(rows, dims=dims, placement=replace(rows.placement, shards=shards)))


# what is done, graph, damage, code, and the node, value or block that the finding names
DAMAGE: list[tuple[str, list[Graph], Callable[[Graph], Graph], str, str]] = [
    (
        "all-reduce dropped",
        WHOLE,
        lambda g: d.bypass(g, L, "o_out.all_reduce"),
        "PD405",
        "all-reduce over tp between `o_out`",
    ),
    (
        "all-reduce of the embedding dropped",
        WINDOWS,
        lambda g: d.bypass(g, "prologue", "x.all_reduce"),
        "PD405",
        "prologue",
    ),
    ("gather of the context dropped", WHOLE, lambda g: d.bypass(g, L, "kv.all_gather"), "PD405", "all-gather over sp"),
    ("gather of the logits dropped", DECODE, lambda g: d.bypass(g, "epilogue", "logits.all_gather"), "PD405", "sample"),
    (
        "gather at the end of the layer dropped",
        WHOLE,
        lambda g: d.bypass(g, L, "moe_sum.all_gather"),
        "PD405",
        "moe_residual",
    ),
    (
        "reduce-scatter dropped",
        MEGATRON,
        lambda g: d.bypass(g, S, "o_out.reduce_scatter"),
        "PD405",
        "reduce-scatter over tp",
    ),
    ("slice dropped", WHOLE, lambda g: d.bypass(g, L, "moe_norm.slice"), "PD405", "slice over tp"),
    ("all-reduce doubled in a row", WHOLE, _two_all_reduces, "PD406", "`twice`"),
    ("all-reduce doubled in parallel", WHOLE, _equal_all_reduces, "PD406", "`copy`"),
    ("a detour", WHOLE, _gather_and_slice_back, "PD406", "`back`"),
    ("reduce-scatter for all-reduce", WHOLE, _as_reduce_scatter, "PD407", "`o_out.all_reduce`"),
    (
        "all-gather for all-reduce",
        WHOLE,
        lambda g: d.node(g, L, "o_out.all_reduce", op="all_gather", attrs={"axes": ("tp",), "of": "hidden"}),
        "PD407",
        "`o_out.all_reduce`",
    ),
    (
        "all-reduce over wrong axes",
        WHOLE,
        lambda g: d.attrs(g, L, "o_out.all_reduce", axes=("sp",)),
        "PD407",
        "over sp",
    ),
    (
        "all-gather of the wrong dimension",
        WHOLE,
        lambda g: d.attrs(g, L, "kv.all_gather", of="batch"),
        "PD407",
        "kv.all_gather",
    ),
    (
        "dispatch to the wrong dimension",
        EXPERTS,
        lambda g: d.attrs(g, L, "rows.dispatch", to="rows"),
        "PD407",
        "rows.dispatch",
    ),
    ("axis that the mesh has not", WHOLE, lambda g: d.attrs(g, L, "o_out.all_reduce", axes=("cp",)), "PD416", "`cp`"),
    ("group of nobody", WHOLE, lambda g: d.attrs(g, L, "o_out.all_reduce", axes=()), "PD416", "o_out.all_reduce"),
    (
        "KV read before write",
        DECODE,
        lambda g: d.rewire(g, L, "kv_read", "kv_after", "kv_before"),
        "PD411",
        "`kv_read`",
    ),
    ("two writers of a KV version", WINDOWS, _second_writer, "PD428", "`rewrite`"),
    ("KV version not carried on", WINDOWS, lambda g: _carry(g, S, "kv_before"), "PD411", "`kv_write`"),
    (
        "attention on the cache itself",
        WINDOWS,
        lambda g: d.rewire(g, F, "attention", "kv", "kv_after"),
        "PD410",
        "`attention`",
    ),
    (
        "KV carried replicated",
        WINDOWS,
        lambda g: d.retype(g, S, "kv_before", d.place(_kind(g, S, "kv_before"), kv_heads=())),
        "PD410",
        "`kv_before`",
    ),
    ("KV replicated while K is cut", WINDOWS, _kv_replicated, "PD405", "`kv_write`"),
    (
        "K and V swapped",
        WINDOWS,
        lambda g: d.node(g, S, "kv_write", inputs=("kv_before", "v", "k_rot")),
        "PD414",
        "`kv_write`",
    ),
    ("gate and up swapped", WINDOWS, lambda g: d.node(g, S, "act", inputs=("up", "gate")), "PD414", "`act`"),
    (
        "residual add skipped",
        WINDOWS,
        lambda g: d.bypass(g, S, "attn_residual", "o_out.all_reduce"),
        "PD414",
        "`ffn_norm`",
    ),
    ("FFN skipped", WINDOWS, lambda g: d.block(g, S, result="attn_residual"), "PD414", "`attn_residual`"),
    (
        "another router's input",
        EXPERTS,
        lambda g: d.rewire(g, L, "router", "moe_norm", "attn_norm"),
        "PD414",
        "`router`",
    ),
    ("old token fed back", WINDOWS, lambda g: _carry(g, "prologue", "sampled"), "PD414", "`previous`"),
    ("window lost", WINDOWS, lambda g: d.attrs(g, S, "attention", window=128), "PD414", "`attention`"),
    ("top-k changed", EXPERTS, lambda g: d.attrs(g, L, "router", top_k=2), "PD414", "`router`"),
    ("layers of two kinds exchanged", WINDOWS, _swap_layers, "PD414", S),
    (
        "a layer missing",
        WINDOWS,
        lambda g: d.block(g, S, layers=g.block(S).layers[1:]),
        "PD412",
        "no block has layers 0",
    ),
    (
        "a layer twice",
        WINDOWS,
        lambda g: d.block(g, S, layers=(*g.block(S).layers, 1)),
        "PD412",
        "layers 1 stand more than once",
    ),
    ("stages that do not cover", DECODE, lambda g: replace(g, stages=(4, 5)), "PD412", "no block has layers 8"),
    ("boundary at the wrong layer", DECODE, lambda g: d.block(g, "boundary", layers=(3,)), "PD408", "boundary"),
    (
        "boundary missing",
        DECODE,
        lambda g: replace(g, blocks=tuple(b for b in g.blocks if b.role != "boundary")),
        "PD408",
        L,
    ),
    ("recv dropped", DECODE, lambda g: d.bypass(g, "boundary", "recv"), "PD409", "`send`"),
    ("send dropped", DECODE, lambda g: d.bypass(g, "boundary", "send"), "PD409", "`recv`"),
    (
        "stage crossed without send and recv",
        DECODE,
        lambda g: d.bypass(d.bypass(g, "boundary", "recv"), "boundary", "send"),
        "PD408",
        "boundary",
    ),
    ("stage crossed inside a layer", DECODE, _send_inside_a_layer, "PD408", "`out`"),
    ("ids return without a send", DECODE, _ids_without_send, "PD408", "`previous`"),
    ("return send dropped", DECODE, lambda g: d.remove(g, "epilogue", "return_send"), "PD402", "`ids_wire`"),
    ("combine dropped", WHOLE, lambda g: d.bypass(g, L, "expert_rows.combine"), "PD413", "rows.dispatch"),
    ("dispatch dropped", WHOLE, lambda g: d.bypass(g, L, "rows.dispatch"), "PD413", "expert_rows.combine"),
    ("tokens replicated over an EP axis", WHOLE, _tokens_whole_on_tp, "PD419", "`route`"),
    (
        "local shape changed",
        WINDOWS,
        lambda g: d.retype(g, S, "gate", d.resize(_kind(g, S, "gate"), ffn=1024)),
        "PD403",
        "`ffn`",
    ),
    (
        "result recorded where it is not",
        WINDOWS,
        lambda g: d.retype(g, S, "gate", d.place(_kind(g, S, "gate"), ffn=())),
        "PD403",
        "`gate_up`",
    ),
    (
        "an operand too many",
        WINDOWS,
        lambda g: d.node(g, S, "attn_residual", inputs=("x", "x", "x")),
        "PD403",
        "`attn_residual`",
    ),
    ("weight not cut", WINDOWS, lambda g: d.recut(g, S, "qkv", "wq", heads=()), "PD421", "`wq`"),
    ("weight cut over wrong axes", WHOLE, lambda g: d.recut(g, L, "o", "wo", heads=("sp",)), "PD421", "`wo`"),
    ("experts not on their owners", EXPERTS, lambda g: d.recut(g, L, "experts", "gate", slot=()), "PD421", "`experts`"),
    (
        "stream elsewhere than blocks take it",
        WHOLE,
        lambda g: replace(g, stream=d.place(g.stream, seq=())),
        "PD404",
        "`x`",
    ),
    ("value used before it is defined", WINDOWS, lambda g: d.move(g, S, "attention", "rotary"), "PD402", "`attention`"),
    ("node removed", WINDOWS, lambda g: d.remove(g, S, "rotary"), "PD402", "`kv_write`"),
    ("value missing in some repetitions", WHOLE, lambda g: d.node(g, L, "attn_norm", items="first"), "PD402", "`qkv`"),
    ("a cycle", WINDOWS, lambda g: d.rewire(g, S, "attn_norm", "x", "ffn_residual"), "PD401", "`attn_norm`"),
    ("a name twice", WINDOWS, lambda g: d.node(g, S, "rotary", name="qkv"), "PD420", "`qkv`"),
    ("unknown operator", WINDOWS, lambda g: d.node(g, S, "act", op="telepathy"), "PD417", "`act`"),
    ("dispatch before its level", EXPERTS, lambda g: replace(g, level="sp"), "PD417", "rows.dispatch"),
    ("weights cut before their level", WINDOWS, lambda g: replace(g, level="ep"), "PD421", "at level ep"),
    ("a node that nobody needs", WINDOWS, _dangling, "PD415", "`idle`"),
    ("micro-batches lost", WHOLE, lambda g: replace(g, items=g.items[:1]), "PD414", "items"),
]


@pytest.mark.parametrize(("base", "harm", "code", "text"), [c[1:] for c in DAMAGE], ids=[c[0] for c in DAMAGE])
def test_damage_is_found(base: list[Graph], harm: Callable[[Graph], Graph], code: str, text: str) -> None:
    found = verify(harm(base[-1]), base[0])
    assert any(f.code == code and text in f.message for f in found), [f"{f.code} {f.message}" for f in found]
    assert all(re.match(r"block `[^`]+`", f.message) for f in found)


def test_wiring_is_seen_by_erasure_alone() -> None:
    swapped = d.node(WINDOWS[-1], S, "kv_write", inputs=("kv_before", "v", "k_rot"))
    assert verify(swapped) == []
    assert {f.code for f in verify(swapped, WINDOWS[0])} == {"PD414"}


@pytest.mark.parametrize("name", BASES)
def test_erased_graphs_are_all_the_same(name: str) -> None:
    normal = erase(BASES[name][0])
    for graph in BASES[name]:
        mine = erase(graph)
        assert verify(mine, BASES[name][0]) == []
        assert [[n.name for n in b.nodes] for b in mine.blocks] == [[n.name for n in b.nodes] for b in normal.blocks]
        assert erase(mine) == mine
