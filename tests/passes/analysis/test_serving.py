"""Step times over arrays, and the serving model that is built on them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings

from paradag import compile as compile_strategy
from paradag.compiler.cost import node_costs, resolve_hardware
from paradag.compiler.cost.serving import ClosedLoop, burst_ttft
from paradag.compiler.spec import Spec
from paradag.compiler.spec.engines import engine, engine_names
from paradag.passes.analysis.memory import weight_bytes
from paradag.passes.analysis.serving import Point, ServingModel, cache_bytes, disaggregated
from paradag.passes.analysis.stage_times import server_times
from paradag.passes.analysis.step_times import StepTimes
from paradag.tests.strategies import lowered_levels, small_specs

TEXT = """
model "small" {{ layers 8 hidden 1024 vocab 32000 ffn 4096 attention gqa {{ heads 16 kv_heads 8 head_dim 64 }} }}
cluster {{ accelerator h100_sxm nodes 1 of 8 }}
workload {{ batch 64 input 512 tokens output 64 tokens }}
strategy {{ {} }}
"""


@cache
def served(strategy: str, engine_name: str = "vllm") -> ServingModel:
    phases = compile_strategy(TEXT.format(strategy)).phases
    times = [StepTimes(phases[p].graph, phases[p].hardware) for p in ("prefill", "decode")]
    return ServingModel(times[0], times[1], engine(engine_name))


@given(small_specs())
@settings(max_examples=6, deadline=None)
def test_points_cost_what_the_items_of_a_graph_cost(spec: Spec) -> None:
    for phase in ("prefill", "decode"):
        graph = lowered_levels(spec, phase)[-1]
        hardware, _ = resolve_hardware(spec.cluster)
        expected = server_times(graph, node_costs(graph, hardware))[0]
        items = [i for i in graph.items if i.last]
        numbers = [n for n, i in enumerate(graph.items) if i.last]
        columns = [np.array(c) for c in zip(*((i.batch, i.new, i.past + i.new) for i in items), strict=True)]
        found = StepTimes(graph, hardware).parts(*columns).total
        # the token return is missing in the last step of a chain
        stages = 2 * len(graph.stages) - 1
        np.testing.assert_allclose(found[:, :stages], expected[numbers][:, :stages], rtol=1e-9)


def test_fused_operators_move_their_bytes_and_measured_ones_take_nothing() -> None:
    times = served("tp 2").decode
    plain, fused, within = (
        StepTimes(times.graph, times.hardware, **options).parts(8, 1, 512).total.sum()
        for options in ({}, {"fused": ("add",)}, {"within": ("add",)})
    )
    launches = 2 * 8 * times.hardware.launch
    assert plain > fused > within
    assert plain - fused == pytest.approx(launches, rel=1e-6)


def test_products_that_are_fed_their_format_quantize_nothing() -> None:
    narrow = compile_strategy(TEXT.format("tp 2").replace("layers 8", "layers 8 dtype fp8")).phases["prefill"]
    feeds = {"fp8_block": ("norm", "activation")}
    for rows in (1, 4096):
        plain, fed = (
            StepTimes(narrow.graph, narrow.hardware, **options).parts(1, rows, rows).body.sum()
            for options in ({}, {"quantizing": feeds})
        )
        own, wide = (narrow.hardware.calibration.gemm(name) for name in ("fp8_block", "bf16"))
        launches = max(0.0, own.latency_s - wide.latency_s)
        # of a layer's products, those behind a norm (two, 1024 wide) and the activation (2048 on a rank)
        passes = own.prepare * 3 * rows * (1024 + 1024 + 2048) / narrow.hardware.bandwidth + 3 * own.row_s * rows
        assert plain - fed == pytest.approx(8 * (3 * launches + passes), rel=0.02)
    times = served("tp 2").prefill
    bare, other = (
        StepTimes(times.graph, times.hardware, **options).parts(1, 64, 64).body.sum()
        for options in ({}, {"quantizing": feeds})
    )
    assert bare == other  # weights in bf16


def test_a_step_with_prompts_takes_as_long_as_the_host_issues_its_kernels() -> None:
    model = served("tp 2", "trtllm")
    load = ClosedLoop(1, 16, 1, generations=1)
    (table,) = model.tables([Point(load)])
    floor = model.hosted(table, Point(load)).floor
    assert floor == pytest.approx(model.prefill.kernels.max() * model.engine.issue_s)
    assert floor > table.mixed(16, 0)  # sixteen tokens of a small model
    (found,) = model.latencies([Point(load)])
    assert found.prefill == pytest.approx(floor)


def test_a_lone_client_sees_the_prefill_and_the_decode_step() -> None:
    model = served("tp 2", "vllm_sync")
    (found,) = model.latencies([Point(ClosedLoop(1, 512, 64, generations=2), host=False)])
    prefill = model.prefill.parts(1, 512, 512).total.sum()
    step = model.decode.parts(1, 1, 512 + 32).total.sum()
    launches = model.prefill.kernels.sum() * model.prefill.hardware.calibration.launch.issue_s
    assert found.ttft == pytest.approx(max(prefill, launches), rel=0.05)
    assert found.tpot == pytest.approx(step, rel=1e-9)
    assert found.queue == 0


def test_points_together_are_as_points_alone() -> None:
    model = served("tp 2")
    points = [Point(ClosedLoop(c, n, 16, generations=2)) for c, n in ((1, 100), (9, 700), (40, 300))]
    together = model.latencies(points)
    for point, found in zip(points, together, strict=True):
        (alone,) = model.latencies([point])
        assert found.ttft == pytest.approx(alone.ttft, rel=0.03)
        assert found.tpot == pytest.approx(alone.tpot, rel=0.03)


def test_a_burst_without_a_server_queues_as_its_closed_form() -> None:
    model = served("tp 2", "sglang")
    (found,) = model.latencies([Point(ClosedLoop(8, 8192, 4, generations=1), budget=16384, host=False)])
    two = model.prefill.parts(2, 8192, 8192).total.sum()
    assert found.ttft == pytest.approx(float(burst_ttft(two / 2, 8, 2)), rel=0.1)


def test_replicas_share_the_clients() -> None:
    one, two = served("tp 2"), served("dp 2 -> tp 2")
    load = ClosedLoop(32, 512, 64, generations=2)
    (half,) = one.latencies([Point(replace(load, clients=16), host=False)])
    (both,) = two.latencies([Point(load, host=False)])
    assert both == half
    # one front end serves both
    assert two.load_of_group(Point(load)).tokenize == 2 * one.load_of_group(Point(load)).tokenize


def test_the_host_adds_to_every_step() -> None:
    model = served("tp 2", "vllm_sync")
    load = ClosedLoop(4, 64, 400, generations=2)
    with_host, without = model.latencies([Point(load), Point(load, host=False)])
    host = model.engine.step_s + 4 * model.engine.sequence_s
    assert with_host.tpot - without.tpot == pytest.approx(host, rel=0.05)


def test_stages_decode_at_the_pace_of_the_slowest() -> None:
    load = ClosedLoop(32, 512, 256, generations=1)
    (piped,) = served("pp 2 -> tp 2").latencies([Point(load, host=False)])
    (wide,) = served("tp 4").latencies([Point(load, host=False)])
    assert piped.tpot > wide.tpot
    assert piped.tpot < 3 * wide.tpot


def test_the_cache_limits_what_is_admitted() -> None:
    base = served("")
    model = ServingModel(base.prefill, base.decode, base.engine)
    load = ClosedLoop(64, 512, 64)
    room = cache_bytes(model.decode.graph, 1, round(512 + 64 * model.engine.output_reserved))
    weights = max(weight_bytes(model.decode.graph))
    model.memory = (20.5 * room + weights) / model.engine.memory_fraction
    assert model.scheduling(Point(load)).sequences == 20


def test_pools_of_their_own_decode_without_stalls() -> None:
    model = served("tp 2")
    load = ClosedLoop(16, 512, 64, generations=2)
    (shared,) = model.latencies([Point(load)])
    (apart,) = disaggregated(model, model, [Point(load)], 1, 1)
    assert apart.tpot < shared.tpot
    assert apart.ttft < 16 * shared.ttft / 2  # the decode of a request is no part of the time to its first token
    host = model.engine.step_s + 16 * model.engine.sequence_s
    assert apart.tpot == pytest.approx(model.decode.parts(16, 1, 544).total.sum() + host, rel=1e-9)


def test_engines_are_catalogued_with_their_sources() -> None:
    assert set(engine_names()) == {"vllm", "vllm_sync", "sglang", "trtllm"}
    for name in engine_names():
        entry = engine(name)
        assert entry.sources and entry.budget[0][0] == 0
        assert entry.default_budget(1.0) == entry.budget[0][1] and entry.default_budget(1e12) == entry.budget[-1][1]
    assert engine("vllm").default_budget(80e9) == 8192
