"""Utilization against the schedule, the logical model and the costs; and what the latency is the sum of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.cost import resolve_hardware
from paradag.compiler.cost.network import link_shares, wire_bytes
from paradag.compiler.ir.graph import Phase
from paradag.compiler.ir.unrolled import STREAMS
from paradag.compiler.spec import Spec
from paradag.passes.analysis import PhaseAnalysis, analyse_phase
from paradag.passes.analysis.explain import explain_top
from paradag.passes.analysis.latency_path import latency_path
from paradag.passes.analysis.schedule import stream_of
from paradag.tests.emit.builds import MOE, compile_phase, term, tiny_spec
from paradag.tests.strategies import lowered_levels, small_specs

PHASES: tuple[Phase, ...] = ("prefill", "decode")


def analysed(spec: Spec, phase: Phase, steps: int = 1) -> PhaseAnalysis:
    hardware, _ = resolve_hardware(spec.cluster)
    graph = lowered_levels(spec, phase, steps)[-1]
    return analyse_phase(graph, hardware, spec.workload.input + spec.workload.output)


def first_step(analysis: PhaseAnalysis, name: str) -> float:
    """Sum of a cost over the calls of the first step."""
    calls = analysis.flat.unrolled
    values = calls.gather([getattr(analysis.costs[b.name, n.name], name) for b, n in calls.templates])
    return float(values[calls.step == 0].sum())


def on_one_gpu(spec: Spec, phase: Phase) -> Spec:
    """The same work of one replica without any other parallelism."""
    strategy = spec.strategy(phase)
    assert strategy is not None
    chain = tuple(t for t in strategy.chain if t.name == "dp")
    return spec.model_copy(update={"strategies": (strategy.model_copy(update={"chain": chain, "ranks": None}),)})


@given(small_specs(), st.sampled_from(PHASES), st.integers(1, 2))
@settings(max_examples=8)
def test_busy_and_idle_time_of_every_rank_add_up_to_the_latency(spec: Spec, phase: Phase, steps: int) -> None:
    analysis = analysed(spec, phase, steps if phase == "decode" else 1)
    found = analysis.utilization
    for rank in found.ranks:
        assert rank.busy_s + rank.idle_s == pytest.approx(analysis.latency, rel=1e-9)
        assert min(rank.compute_s, rank.communication_s, rank.imbalance_s, rank.bubble_s) >= 0
    mesh = analysis.graph.mesh
    assert sorted(r for rank in found.ranks for r in rank.ranks) == list(
        range(mesh.first_rank, mesh.first_rank + mesh.replica_ranks)
    )
    assert found.rank_balance >= 1 - 1e-9 and found.stage_balance >= 1 - 1e-9
    assert 0 < found.busy <= 1 + 1e-9 and 0 <= found.bubble < 1


@given(small_specs(), st.sampled_from(PHASES))
@settings(max_examples=8)
def test_work_is_the_models_and_the_costs(spec: Spec, phase: Phase) -> None:
    analysis = analysed(spec, phase)
    found = analysis.utilization
    alone = analysed(on_one_gpu(spec, phase), phase)
    assert found.work.model_flops.sum() == pytest.approx(first_step(alone, "flops"))
    assert found.work.model_flops.sum() <= first_step(analysis, "flops") * analysis.graph.mesh.stage_ranks * (1 + 1e-9)
    assert 0 < found.mfu <= 1 and found.mbu > 0
    sent = float((found.work.scale_up_bytes + found.work.scale_out_bytes).sum())
    routed = sum(t.bytes for t in analysis.traffic if t.op in ("Dispatch", "Combine"))
    others = sum(t.bytes for t in analysis.traffic) - routed
    # an exchange may send a token once to a rank that holds several of its experts
    assert others * (1 - 1e-9) <= sent <= (others + routed) * (1 + 1e-9)
    assert 0 <= found.scale_up <= 1 and 0 <= found.scale_out <= 1


@given(small_specs(phases=("prefill",), must={"pp"}))
@settings(max_examples=6)
def test_bubbles_are_the_gaps_of_the_schedule(spec: Spec) -> None:
    analysis = analysed(spec, "prefill")
    calls, finish = analysis.flat.unrolled, analysis.critical.call_finish
    start = finish - analysis.flat.call_duration
    main = np.array([STREAMS[stream_of(n)] == "main" for _, n in calls.templates])[calls.template]
    for rank in analysis.utilization.ranks:
        mine = np.flatnonzero(main & (calls.stage == rank.stage) & (analysis.flat.call_duration > 0))
        mine = mine[finish[mine].argsort()]
        gaps = start[mine] - np.append(0.0, finish[mine][:-1])
        assert gaps.min() >= -1e-12, "one thing at a time"
        idle = gaps.sum() + analysis.latency - finish[mine[-1]]
        assert rank.bubble_s == pytest.approx(idle, abs=1e-9 * analysis.latency)


def test_one_dense_gpu_by_hand() -> None:
    """FLOPs of the projections are two per weight and token; the mean of stages is the one stage."""
    analysis = analysed(tiny_spec("decode", batch=4), "decode")
    found = analysis.utilization
    weights = 8 * 4 * 4 + 2 * 8 * 2 * 4 + 4 * 4 * 8 + 3 * 8 * 16  # q, k and v, o, FFN
    attention = 4 * (7 * 4 * 4) * 4  # 4 heads, context 6 + 2 / 2, 4 sequences
    lm_head = 2 * 4 * 8 * 32
    assert found.work.model_flops[0] >= 2 * 4 * weights + attention + lm_head
    ideal = found.work.model_flops[0] / analysis.hardware.peaks["bf16"]
    assert found.mfu == pytest.approx(ideal / analysis.latency)
    assert found.mbu == pytest.approx(found.work.hbm_bytes[0] / analysis.latency / analysis.hardware.bandwidth)
    assert found.scale_up == found.scale_out == found.bubble == 0 and found.busy == pytest.approx(1)


def test_a_lone_micro_batch_leaves_the_other_stages_waiting() -> None:
    spec = tiny_spec("decode", term("pp", 4), layers=4)
    assert 0.7 < analysed(spec, "decode").utilization.bubble < 1
    full = tiny_spec("decode", term("pp", 4), layers=4, batch=32, microbatches=8)
    assert analysed(full, "decode").utilization.bubble < 0.5


def test_groups_with_fewer_sequences_wait_for_the_fullest() -> None:
    """Seven sequences over four attention groups: 2, 2, 2 and 1."""
    spec = tiny_spec("decode", term("ep", 8), term("tp", 2), moe=MOE, layers=2, batch=7)
    found = compile_phase(spec, "decode").phases["decode"].utilization
    full, fewer = sorted(found.ranks, key=lambda r: r.imbalance_s)
    assert (full.ranks, fewer.ranks) == ((0, 1, 2, 3, 4, 5), (6, 7))
    assert full.imbalance_s == 0 < fewer.imbalance_s and fewer.compute_s < full.compute_s
    assert found.rank_balance > 1 == found.stage_balance
    even = tiny_spec("decode", term("ep", 8), term("tp", 2), moe=MOE, layers=2, batch=8)
    assert compile_phase(even, "decode").phases["decode"].utilization.rank_balance == pytest.approx(1)


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "dispatch"])
def test_links_share_the_bytes_of_a_collective(op: str) -> None:
    """A domain of 4 and 2 of them: what the levels of the hierarchy send is what the group sends."""
    near, far = link_shares(op, 8, 4)
    assert near + far == pytest.approx(1)
    if op in ("all_reduce", "reduce_scatter"):
        assert near * wire_bytes(op, 800.0, 8) == pytest.approx(wire_bytes(op, 800.0, 4))
        assert far * wire_bytes(op, 800.0, 8) == pytest.approx(wire_bytes(op, 200.0, 2))
    assert sum(link_shares(op, 8, 8)) == pytest.approx(1) and link_shares(op, 8, 8)[1] == pytest.approx(0)
    assert sum(link_shares(op, 1, 1)) == 0


@given(small_specs(), st.sampled_from(PHASES), st.integers(1, 2))
@settings(max_examples=12)
def test_the_latency_is_the_sum_of_its_path(spec: Spec, phase: Phase, steps: int) -> None:
    analysis = analysed(spec, phase, steps if phase == "decode" else 1)
    path = latency_path(analysis)
    assert path.seconds.sum() == pytest.approx(analysis.latency, rel=1e-9)
    top = explain_top(analysis)
    assert sum(g.seconds for g in top.groups) == pytest.approx(analysis.latency, rel=1e-9)
    assert sum(g.share for g in top.groups) == pytest.approx(1)
    assert [g.seconds for g in top.groups] == sorted((g.seconds for g in top.groups), reverse=True)


@given(small_specs(must={"transfer"}))
@settings(max_examples=5)
def test_transfers_run_beside_the_path_to_the_first_token(spec: Spec) -> None:
    path = latency_path(analysed(spec, "prefill"))
    templates = path.analysis.flat.unrolled.templates
    assert "kv_send" not in {templates[t][1].op for t in path.template.tolist()}
    assert path.seconds.sum() == pytest.approx(path.analysis.latency, rel=1e-9)
