"""Who sends what to whom in a KV transfer, against sets of elements, by its laws, and by arithmetic."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paradag import compile as compile_strategy
from paradag.compiler.build import needs_transfer
from paradag.compiler.cost import node_costs, resolve_hardware
from paradag.compiler.ir.graph import Graph
from paradag.compiler.ir.mesh import build_mesh
from paradag.compiler.ir.overlap import CacheLayout, MicroBatch, Overlap, chunk_table, overlap
from paradag.compiler.ir.token_order import TOKEN_ORDERS, token_positions
from paradag.compiler.ir.types import BATCH, CONTEXT, Placement, chunk_bounds, tensor
from paradag.compiler.spec import Spec
from paradag.passes.analysis import TransferPlan, analyse_memory, plan_transfer
from paradag.passes.analysis.transfer import send_costs
from paradag.tests.strategies import lowered_levels, small_specs

EXAMPLES = Path(__file__).resolve().parents[3] / "ir_examples"

Element = tuple[int, ...]

CUT = ("kv_heads",)
"""Dimensions besides batch and context that are followed index by index; all others are whole on every rank."""

# --- token order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("new", "parts"), [(8, 2), (24, 3), (16, 8)])
def test_zigzag_gives_a_rank_the_slices_r_and_its_mirror(new: int, parts: int) -> None:
    slices = np.arange(new).reshape(2 * parts, -1)
    order = token_positions("zigzag", new, parts).reshape(parts, -1)
    for rank in range(parts):
        assert order[rank].tolist() == [*slices[rank], *slices[2 * parts - 1 - rank]]


@given(st.integers(0, 40), st.integers(1, 9), st.sampled_from(TOKEN_ORDERS))
def test_token_orders_are_permutations_whatever_the_sizes(new: int, parts: int, order: str) -> None:
    assert sorted(token_positions(order, new, parts).tolist()) == list(range(new))


def test_an_unknown_token_order_is_refused() -> None:
    with pytest.raises(ValueError, match="striped"):
        token_positions("striped", 8, 2)


@given(st.integers(0, 60), st.lists(st.integers(1, 5), max_size=3))
def test_the_table_of_chunks_is_the_bounds_of_every_rank(size: int, parts: list[int]) -> None:
    table = chunk_table(size, parts).tolist()
    coordinates = product(*(range(p) for p in parts))
    assert table == [list(chunk_bounds(size, zip(parts, at, strict=True))) for at in coordinates]


# --- against sets of elements ----------------------------------------------------------------------------------------


def holdings(layout: CacheLayout, tokens: range, sequences: int) -> dict[int, set[Element]]:
    """(sequence, token, index ...) of what each shard holds; indices of the dimensions that either layout may cut."""
    mesh, kind = layout.mesh, layout.kind
    held: dict[int, set[Element]] = {}
    for at in product(range(mesh.dp), *(range(a.size) for a in mesh.axes)):
        coordinate = dict(zip((a.name for a in mesh.axes), at[1:], strict=True))
        cuts = {
            name: [(mesh.size((a,)), coordinate[a]) for a in axes]
            for name, axes in zip(kind.names, kind.placement.shards, strict=True)
        }
        rank = mesh.ranks(layout.stage, coordinate, ())[0] - mesh.first_rank + at[0] * mesh.replica_ranks
        start = at[0] * sum(m.sequences for m in layout.microbatches)
        for number, microbatch in enumerate(layout.microbatches):
            low, high = chunk_bounds(microbatch.sequences, cuts["batch"])
            mine = [s for s in range(start + low, start + high) if s < sequences]
            positions: list[int] = []
            past = 0
            for new in microbatch.chunks:
                order = past + token_positions(layout.token_order, new, mesh.degree("sp"))
                positions += order[slice(*chunk_bounds(new, cuts["context"]))].tolist()
                past += new
            rest = [
                range(*chunk_bounds(kind.dims[kind.index(n)].size, cuts[n]))  # type: ignore[arg-type]
                for n in kind.names
                if n in CUT
            ]
            held[number * mesh.gpus + rank] = set(product(mine, (p for p in positions if p in tokens), *rest))
            start += microbatch.sequences
    return held


def check_against_sets(flow: Overlap, tokens: range, sequences: int) -> None:
    """Every element reaches every shard that wants it once, from a holder, its own GPU first."""
    have, want = holdings(flow.have, tokens, sequences), holdings(flow.want, tokens, sequences)
    whole = [d for d in flow.have.kind.dims if d.name not in ("batch", "context", *CUT)]
    assert not any(side.kind.axes_of(d.name) for side in (flow.have, flow.want) for d in whole)
    each = prod(d.size for d in whole if isinstance(d.size, int))
    assert set().union(*have.values()) == set().union(*want.values())
    pieces: dict[frozenset[Element], list[int]] = defaultdict(list)
    for shard, elements in have.items():
        pieces[frozenset(elements)].append(shard)
    got: dict[tuple[int, int], int] = {}
    for source, target, count in zip(flow.sources.tolist(), flow.targets.tolist(), flow.elements.tolist(), strict=True):
        assert count > 0 and (source, target) not in got
        got[source, target] = count
    for target, wanted in want.items():
        if not wanted:
            continue
        rank = flow.want.mesh.first_rank + target % flow.want.mesh.gpus
        for elements, holders in pieces.items():
            shared = len(elements & wanted) * each
            taken = {h: got.pop((h, target)) for h in holders if (h, target) in got}
            assert sum(taken.values()) == shared
            at_home = [h for h in holders if flow.have.mesh.first_rank + h % flow.have.mesh.gpus == rank]
            if at_home and shared:
                assert taken == {at_home[0]: shared}
    assert not got, "entries between shards that share nothing"


@st.composite
def layouts(draw: st.DrawFn, microbatches: tuple[MicroBatch, ...], dp: int, first_rank: int, order: str) -> CacheLayout:
    """Any layout of a cache of 4 heads and 2 features on up to 16 ranks, the context cut like the stage allows."""
    adp, sp, tp = draw(st.sampled_from([(1, 1, 1), (2, 1, 2), (1, 2, 4), (2, 2, 2), (3, 2, 1), (4, 1, 4), (1, 4, 2)]))
    kv_groups = draw(st.sampled_from([g for g in (1, 2, 4) if tp % g == 0]))
    view = {"adp": adp, "sp": sp, "tp": tp}
    placement = draw(st.just(()) | st.permutations(("pp", "adp", "sp", "tp")).map(tuple))
    mesh = build_mesh(
        attention=view, experts={"edp": 1, "ep": adp * sp * tp, "etp": 1}, kv_groups=kv_groups, pp=2, dp=dp,
        placement=placement, first_rank=first_rank,
    )  # fmt: skip
    kind = tensor("fp8", ("batch", BATCH), ("context", CONTEXT), ("kv_heads", 4), ("kv_features", 2))
    heads = mesh.view("kv") if draw(st.booleans()) else ()
    context = (*mesh.view("sp"), *(mesh.view("tp") if not heads and draw(st.booleans()) else ()))
    kind = kind.placed(Placement((mesh.view("adp"), context, heads, ())))
    return CacheLayout(kind, mesh, draw(st.integers(0, 1)), microbatches, order)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[CacheLayout, CacheLayout, range, int]:
    """Two layouts of one batch and prompt, the tokens wanted, and the sequences of the batch."""
    prompt = draw(st.integers(1, 13))
    sizes = [draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)) for _ in range(2)]
    cut = draw(st.lists(st.integers(1, 5), max_size=3).filter(lambda c: sum(c) < prompt))
    chunkings = [(prompt,), (*cut, prompt - sum(cut))]
    before = tuple(MicroBatch(s, draw(st.sampled_from(chunkings))) for s in sizes[0])
    after = tuple(MicroBatch(s, (prompt,)) for s in sizes[1])
    have = draw(layouts(before, draw(st.integers(1, 2)), 0, draw(st.sampled_from(TOKEN_ORDERS))))
    first_rank = draw(st.sampled_from((0, have.mesh.gpus)))
    want = draw(layouts(after, draw(st.integers(1, 2)), first_rank, "contiguous"))
    room = min(have.sequences, want.sequences)
    return have, want, range(draw(st.integers(0, prompt - 1)), prompt), draw(st.integers(1, room))


@given(pairs())
@settings(max_examples=40)
def test_any_two_layouts_overlap_as_their_elements_do(case: tuple[CacheLayout, CacheLayout, range, int]) -> None:
    have, want, tokens, sequences = case
    check_against_sets(overlap(have, want, tokens, sequences), tokens, sequences)


def test_caches_of_other_dimensions_do_not_overlap() -> None:
    mesh = build_mesh(attention={"adp": 1, "sp": 1, "tp": 1}, experts={"edp": 1, "ep": 1, "etp": 1})
    some = (MicroBatch(1, (2,)),)
    latent = CacheLayout(tensor("fp8", ("batch", BATCH), ("context", CONTEXT), ("latent", 4)), mesh, 0, some)
    heads = CacheLayout(tensor("fp8", ("batch", BATCH), ("context", CONTEXT), ("kv_heads", 4)), mesh, 0, some)
    with pytest.raises(ValueError, match="kv_heads"):
        overlap(latent, heads, range(2))


# --- laws of plans of compiled graphs --------------------------------------------------------------------------------


def plan_of(spec: Spec) -> TransferPlan:
    prefill, decode = (lowered_levels(spec, phase)[-1] for phase in ("prefill", "decode"))
    return plan_transfer(prefill, decode, spec.workload.batch)


def window_of(graph: Graph, layer: int) -> int | None:
    (block,) = (b for b in graph.with_role("layer") if layer in b.layers)
    return block.node("attention").attrs.get("window")


@given(small_specs())
@settings(max_examples=8)
def test_every_decode_rank_gets_its_cache_at_the_prompts_length(spec: Spec) -> None:
    assume(needs_transfer(spec))
    plan = plan_of(spec)
    decode = lowered_levels(spec, "decode")[-1]
    mesh = decode.mesh
    got = np.zeros(mesh.gpus)
    for route in plan.routes:
        flow = route.overlap
        tokens = range(spec.workload.input)[-(window_of(decode, route.layers[0]) or spec.workload.input) :]
        check_against_sets(flow, tokens, spec.workload.batch or 1)
        ranks = flow.target_devices - mesh.first_rank
        got += np.bincount(ranks, flow.elements, mesh.gpus) * route.element_bytes * len(route.layers)
    assert sorted(layer for route in plan.routes for layer in route.layers) == list(range(decode.layers))
    memory = analyse_memory(decode, 1.0, spec.workload.input)
    for stage, report in enumerate(memory.stages):
        ranks = np.array(mesh.ranks(stage, {}, [a.name for a in mesh.axes])) - mesh.first_rank
        assert got[ranks].max() == pytest.approx(report.kv_cache)


@given(small_specs())
@settings(max_examples=8)
def test_a_send_costs_what_its_busiest_rank_sends(spec: Spec) -> None:
    """Never more than all that a rank holds for all who want it; nothing where nothing moves."""
    assume(needs_transfer(spec))
    plan = plan_of(spec)
    prefill = lowered_levels(spec, "prefill")[-1]
    hardware, _ = resolve_hardware(spec.cluster)
    moved = 0.0
    for (block, _), send in send_costs(plan, prefill, hardware).items():
        for index, layer in enumerate(prefill.block(block).layers):
            flow = plan.of_layer[layer].overlap
            for item, each in enumerate(prefill.items):
                mine = flow.source_microbatches == each.microbatch
                sums: dict[int, float] = defaultdict(float)
                for device, size in zip(flow.source_devices[mine].tolist(), flow.moved[mine].tolist(), strict=True):
                    sums[device] += size * plan.of_layer[layer].element_bytes
                assert send.cost.wire_bytes[0, item, index] == pytest.approx(max(sums.values(), default=0.0))
                assert (send.cost.time[0, item, index] > 0) == any(sums.values())
                moved += sum(sums.values()) if each.last else 0.0
    assert moved == pytest.approx(plan.total_bytes)
    assert sum(plan.sent.values()) == pytest.approx(plan.total_bytes)
    assert sum(plan.received.values()) == pytest.approx(plan.total_bytes)


HEADER = """
model "m" {{ layers 2  hidden 64  vocab 128  ffn 128  {attention}  {moe} }}
cluster {{ accelerator h100_sxm  nodes 4 of 8 }}
workload {{ batch {batch}  input 16 tokens  output 8 tokens }}
strategy prefill {{ {prefill} }}
strategy decode {{ {decode} }}
"""
GQA = "attention gqa { heads 8  kv_heads 2  head_dim 8 }"
MLA = "attention mla { heads 8  q_lora 16  kv_lora 16  nope_dim 8  rope_dim 4  v_dim 8 }"
MOE = "moe { experts 8  top_k 2  ffn 32 }"


def text(prefill: str, decode: str, *, attention: str = GQA, moe: str = "", batch: int = 8) -> str:
    return HEADER.format(prefill=prefill, decode=decode, attention=attention, moe=moe, batch=batch)


def test_shared_pools_whose_caches_lie_alike_move_nothing() -> None:
    compiled = compile_strategy(text("ep 8 -> tp 4", "ep 4 -> tp 4  ranks 8", moe=MOE))
    assert compiled.phases and compiled.transfer is None
    assert not any(n.op == "kv_send" for _, n in compiled.phases["prefill"].graph.nodes())


def test_shared_pools_keep_what_a_gpu_holds_already() -> None:
    """tp 2 to tp 4 with two KV heads: ranks 0 and 1 hold heads 0 and 1; afterwards ranks 0, 1 and 2, 3 do."""
    compiled = compile_strategy(text("tp 2", "tp 4"))
    assert compiled.transfer is not None
    one_head = 8 * 16 * 16 * 2
    route = compiled.transfer.routes[0]
    assert route.peers("prefill", 0, [0, 1]) == {1: one_head, 2: one_head, 3: one_head}
    assert route.peers("decode", 0, [0]) == {}
    assert route.layer_bytes == 3 * one_head


def test_holders_of_the_same_heads_take_turns() -> None:
    """Four prefill ranks hold the whole latent cache of 8 sequences; one decode rank takes two from each."""
    compiled = compile_strategy(text("tp 4  pools separate", "ranks 1  pools separate", attention=MLA))
    assert compiled.transfer is not None
    sequence = 16 * 20 * 2
    assert compiled.transfer.routes[0].peers("decode", 0, [4]) == {rank: 2 * sequence for rank in range(4)}
    assert compiled.transfer.sent == dict.fromkeys(range(4), 2 * 2.0 * sequence)


def test_turns_go_on_over_decode_ranks_with_one_sequence_each() -> None:
    """Eight attention-DP ranks of one sequence each: the four holders serve two of them each, not rank 0 all."""
    moe_decode = "ep 8  pools separate"
    compiled = compile_strategy(text("tp 4  pools separate", moe_decode, attention=MLA, moe=MOE))
    assert compiled.transfer is not None
    assert len(set(compiled.transfer.sent.values())) == 1 and set(compiled.transfer.sent) == set(range(4))


def test_replicated_heads_halve_what_a_rank_sends() -> None:
    """Two KV heads over tp 4: two ranks hold each head and share the work of sending it to tp 2."""
    compiled = compile_strategy(text("tp 4  pools separate", "tp 2  pools separate"))
    prefill = compiled.phases["prefill"]
    (key,) = (k for k in prefill.costs if k[1] == "kv_send")
    held = node_costs(prefill.graph, prefill.hardware)[key].wire_bytes
    planned = prefill.costs[key]
    assert np.all(np.asarray(planned.wire_bytes) * 2 == held)
    link = prefill.hardware.scale_up
    one_head = 8 * 16 * 16 * 2
    # The receiver is the bottleneck: it takes a whole head, half from each holder.
    expected = one_head / link.bandwidth + link.latency + prefill.hardware.launch
    assert np.asarray(planned.time).ravel().tolist() == pytest.approx([expected] * 2)
    assert sum(t.bytes for t in prefill.traffic if t.op == "KVTransfer") == 2 * 2 * one_head


def test_a_transfer_uses_the_link_between_its_pools() -> None:
    """Pools of 8 and 8 GPUs on nodes of 8: all traffic leaves the node, though either pool fits one."""
    compiled = compile_strategy(text("tp 8  pools separate", "tp 8  pools separate"))
    links = {t.link for t in compiled.phases["prefill"].traffic if t.op == "KVTransfer"}
    assert links == {"scale_out"}


def test_micro_batches_may_differ_between_the_phases() -> None:
    compiled = compile_strategy(text("microbatches 3  pools separate", "microbatches 2  pools separate"))
    assert compiled.transfer is not None
    flow = compiled.transfer.routes[0].overlap
    sequence = 16 * 2 * 16
    # 3, 3, 2 sequences become 4, 4.
    entries = zip(flow.sources.tolist(), flow.targets.tolist(), (flow.elements // sequence).tolist(), strict=True)
    assert list(entries) == [(0, 0, 3), (1, 0, 1), (1, 1, 2), (2, 1, 2)]


def test_pipeline_stages_meet_where_they_share_layers() -> None:
    compiled = compile_strategy(text("pp 2  pools separate", "tp 2  pools separate"))
    assert compiled.transfer is not None
    assert [(r.stages, r.layers) for r in compiled.transfer.routes] == [((0, 0), (0,)), ((1, 0), (1,))]
    assert compiled.transfer.routes[1].peers("decode", 0, [2, 3]) == {1: 8 * 16 * 2 * 16 * 2}


def test_compiling_one_phase_knows_the_other_ones_layout() -> None:
    both = compile_strategy(text("tp 4  pools separate", "tp 2  pools separate"))
    alone = compile_strategy(text("tp 4  pools separate", "tp 2  pools separate"), phase="prefill")
    assert set(alone.phases) == {"prefill"} and alone.transfer is not None and both.transfer is not None
    assert alone.transfer.sent == both.transfer.sent
    assert alone.phases["prefill"].critical.seconds == both.phases["prefill"].critical.seconds


def test_no_transfer_where_the_cache_stays() -> None:
    assert compile_strategy(text("tp 2", "tp 2")).transfer is None


def test_the_disaggregated_example_by_arithmetic() -> None:
    """DeepSeek-V3, 32 to 144 GPUs: a latent cache of 576 bf16 numbers per token and layer, 144 prompts of 4096."""
    compiled = compile_strategy(EXAMPLES / "deepseek-v3-disaggregated.strat")
    plan = compiled.transfer
    assert plan is not None
    sequence = 4096 * 576 * 2 * 61
    # Decode: adp 36 of tp 4, four sequences on every rank, the latent replicated over tp.
    assert plan.received == dict.fromkeys(range(32, 176), 4.0 * sequence)
    # Prefill: adp 4, sp 2, tp 4. A rank sends half of the tokens of 36 of the sequences, to one of four replicas each.
    assert plan.sent == dict.fromkeys(range(32), 36 * sequence / 2)
    assert plan.total_bytes == 4 * 144 * sequence
    (route,) = plan.routes
    # Micro-batch 0 is sequences 0-35, nine per adp group: four, four and one go to decode groups 0, 1 and 2.
    half = 2048 * 576 * 2
    assert route.peers("prefill", 0, [1]) == {33: 4 * half, 37: 4 * half, 41: half}
    assert route.peers("decode", 0, [33]) == {1: 4 * half, 5: 4 * half}
    sends = [c for (_, node), c in compiled.phases["prefill"].costs.items() if node == "kv_send"]
    assert {float(b) for c in sends for b in np.unique(c.wire_bytes)} == {9.0 * half}


def test_hundreds_of_ranks_take_a_map_of_their_size() -> None:
    """320 ranks of 80 x 4 to 320 of 40 x 8: three sequences per group become six."""
    sides = []
    for adp, tp, first in ((80, 4, 0), (40, 8, 320)):
        mesh = build_mesh(
            attention={"adp": adp, "sp": 1, "tp": tp}, experts={"edp": 1, "ep": 320, "etp": 1}, first_rank=first
        )
        kind = tensor("bf16", ("batch", BATCH), ("context", CONTEXT), ("latent", 576))
        kind = kind.placed(Placement((mesh.view("adp"), (), ())))
        sides.append(CacheLayout(kind, mesh, 0, (MicroBatch(240, (4096,)),)))
    flow = overlap(*sides, range(4096))
    received = np.bincount(flow.targets, flow.elements)
    sent = np.bincount(flow.sources, flow.elements)
    assert received.tolist() == [6 * 4096 * 576] * 320
    # Eight ranks want each group's three sequences; four holders serve two each.
    assert sent.tolist() == [2 * 3 * 4096 * 576] * 320
    assert len(flow.elements) == 80 * 8
