"""The flat graph against an independent one: networkx and the graph's own definition."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.cost import node_costs, resolve_hardware
from paradag.compiler.ir.flat import FlatGraph
from paradag.compiler.ir.unrolled import EDGE_KINDS
from paradag.compiler.spec import Spec
from paradag.passes.analysis import critical_path, flatten, unroll
from paradag.tests.strategies import lowered_levels, small_specs


def flat_of(spec: Spec, phase: str, steps: int = 1, ranks: bool = False) -> FlatGraph:
    graph = lowered_levels(spec, phase, steps)[-1]  # type: ignore[arg-type]
    hardware, _ = resolve_hardware(spec.cluster)
    return flatten(unroll(graph), node_costs(graph, hardware), expand_ranks=ranks)


@given(small_specs(), st.sampled_from(("prefill", "decode")), st.integers(1, 3), st.booleans())
@settings(max_examples=10)
def test_ids_are_topological_and_the_longest_path_is_networkx_own(
    spec: Spec, phase: str, steps: int, ranks: bool
) -> None:
    flat = flat_of(spec, phase, steps, ranks)
    sources, targets = flat.edges()
    assert (sources < targets).all()
    level = flat.column("level")
    assert (level[sources] < level[targets]).all()
    graph = flat.to_networkx()
    assert graph.number_of_edges() == flat.edge_count, "an edge is doubled"
    longest: dict[int, float] = {}
    for node in graph:
        before = max((longest[p] for p in graph.predecessors(node)), default=0.0)
        longest[node] = before + graph.nodes[node]["duration"]
    path = critical_path(flat)
    assert path.seconds == pytest.approx(max(longest.values()), rel=1e-12)
    assert np.allclose(path.finish, [longest[n] for n in range(len(longest))], rtol=1e-12)
    assert nx.is_path(graph, path.nodes.tolist())
    assert sum(graph.nodes[n]["duration"] for n in path.nodes.tolist()) == pytest.approx(path.seconds, rel=1e-12)


@given(small_specs(), st.sampled_from(("prefill", "decode")), st.booleans())
@settings(max_examples=8)
def test_shards_of_a_call_cover_the_stage_once(spec: Spec, phase: str, ranks: bool) -> None:
    flat = flat_of(spec, phase, ranks=ranks)
    mesh = flat.unrolled.graph.mesh
    for call in range(len(flat.unrolled)):
        views = [flat.node(n) for n in range(flat.first[call], flat.first[call + 1])]
        devices = [d for v in views for d in v.devices]
        stage = set(mesh.ranks(views[0].stage, {}, [a.name for a in mesh.axes]))
        assert sorted(devices) == sorted(stage), "every rank of the stage runs the call exactly once"


@given(small_specs(), st.sampled_from(("prefill", "decode")), st.integers(1, 2))
@settings(max_examples=8)
def test_only_sends_cross_stages_and_nothing_dangles(spec: Spec, phase: str, steps: int) -> None:
    flat = flat_of(spec, phase, steps)
    graph = flat.to_networkx()
    for a, b, kind in graph.edges(data="kind"):
        if graph.nodes[a]["stage"] != graph.nodes[b]["stage"]:
            assert (graph.nodes[a]["op"], graph.nodes[b]["op"], kind) == ("Send", "Recv", "pipeline")
    ends = {"PrefillBegin", "PrefillEnd", "DecodeStepBegin", "DecodeStepEnd", "KVTransfer", "Aggregate"}
    for node, op in graph.nodes(data="op"):
        if not graph.in_degree(node) or not graph.out_degree(node):
            assert op in ends


@given(small_specs(phases=("decode",)))
@settings(max_examples=8)
def test_decode_steps_are_a_chain(spec: Spec) -> None:
    flat = flat_of(spec, "decode", 3)
    graph = flat.to_networkx()
    step = flat.column("step")
    begins = [n for n, op in graph.nodes(data="op") if op == "DecodeStepBegin" and step[n] > 0]
    assert begins and all(graph.in_degree(n) for n in begins)
    state = EDGE_KINDS.index("state")
    sources, targets = flat.edges()
    reads = flat.kinds == state
    assert (step[targets[reads]] - step[sources[reads]] <= 1).all()
    assert (step[targets[reads]] - step[sources[reads]] == 1).any(), "step t + 1 reads the version that step t wrote"


@given(small_specs(), st.sampled_from(("prefill", "decode")))
@settings(max_examples=6)
def test_calls_of_one_device_are_serial(spec: Spec, phase: str) -> None:
    """On every device compute and collectives never overlap."""
    flat = flat_of(spec, phase, ranks=True)
    path = critical_path(flat)
    finish, duration = path.finish, flat.duration
    busy: dict[int, list[tuple[float, float]]] = {}
    for number in range(flat.node_count):
        view = flat.node(number)
        if view.node.op in ("send", "recv", "kv_send", "kv_recv") or not view.duration:
            continue
        for device in view.devices:
            busy.setdefault(device, []).append((finish[number] - duration[number], finish[number]))
    for spans in busy.values():
        spans.sort()
        assert all(a[1] <= b[0] * (1 + 1e-9) for a, b in pairwise(spans))
