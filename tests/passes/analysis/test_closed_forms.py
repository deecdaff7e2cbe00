"""The closed forms of the schedule equal the critical path of the DAG."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.cost import node_costs, resolve_hardware
from paradag.compiler.cost.closed_form import decode_makespan, equal_items_makespan, pipeline_makespan
from paradag.compiler.ir.graph import Graph
from paradag.compiler.spec import Spec
from paradag.passes.analysis import critical_path, flatten, unroll
from paradag.passes.analysis.stage_times import prefill_seconds, server_times, step_interval
from paradag.tests.strategies import lowered_levels, small_specs

RELATIVE = 1e-9


def path_seconds(graph: Graph, spec: Spec, frozen: bool = False) -> float:
    """Critical path of the flat DAG; ``frozen`` keeps every decode step at the context of the first."""
    hardware, _ = resolve_hardware(spec.cluster)
    extents = {name: values[..., None] for name, values in graph.extents().items()}
    if frozen:
        extents = {name: np.broadcast_to(values[:1], values.shape) for name, values in extents.items()}
    costs = node_costs(graph, hardware, extents)
    return critical_path(flatten(unroll(graph), costs)).seconds


@given(small_specs(phases=("prefill",)))
@settings(max_examples=12)
def test_prefill_makespan(spec: Spec) -> None:
    graph = lowered_levels(spec, "prefill")[-1]
    hardware, _ = resolve_hardware(spec.cluster)
    assert path_seconds(graph, spec) == pytest.approx(prefill_seconds(graph, node_costs(graph, hardware)), rel=RELATIVE)


@given(small_specs(phases=("decode",)), st.integers(1, 4))
@settings(max_examples=12)
def test_decode_makespan_of_a_chain_of_steps(spec: Spec, steps: int) -> None:
    graph = lowered_levels(spec, "decode", steps)[-1]
    hardware, _ = resolve_hardware(spec.cluster)
    times = server_times(graph, node_costs(graph, hardware))
    assert path_seconds(graph, spec) == pytest.approx(float(decode_makespan(times)), rel=RELATIVE)


@given(small_specs(phases=("decode",)))
@settings(max_examples=10)
def test_steady_interval_is_what_a_long_chain_adds_per_step(spec: Spec) -> None:
    """Equal micro-batches at a frozen context: late steps of the DAG are one interval apart."""
    strategy = spec.strategies[0]
    batch = strategy.microbatches * strategy.degree("dp") * 2
    spec = spec.model_copy(update={"workload": spec.workload.model_copy(update={"batch": batch})})
    one = lowered_levels(spec, "decode", 1)[-1]
    hardware, _ = resolve_hardware(spec.cluster)
    interval = step_interval(one, node_costs(one, hardware))
    late = path_seconds(replace(one, steps=13), spec, frozen=True)
    early = path_seconds(replace(one, steps=7), spec, frozen=True)
    assert (late - early) / 6 == pytest.approx(interval, rel=1e-6)


def test_equal_items_need_only_the_sum_and_the_slowest() -> None:
    servers = np.array([3.0, 1.0, 5.0, 2.0])
    times = np.broadcast_to(servers, (6, 4))
    assert pipeline_makespan(times) == equal_items_makespan(servers, 6) == 11 + 5 * 5


def test_unequal_items_follow_the_recurrence() -> None:
    times = np.array([[4.0, 1.0], [1.0, 6.0], [2.0, 1.0]])
    # item 1 waits for nobody at stage 1: starts at 5; item 2 waits for item 1 there until 11
    assert pipeline_makespan(times) == 12.0


def test_closed_forms_run_over_arrays_of_strategies() -> None:
    rng = np.random.default_rng(0)
    many = rng.random((50, 4, 5))
    assert np.allclose(pipeline_makespan(many), [pipeline_makespan(one) for one in many])
