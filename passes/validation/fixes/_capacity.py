"""Memory of a legal spec, without costs or a flat graph: what a repair asks for again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ....compiler.build import build_graph, cache_tokens, cached_sequences, two_layouts
from ....compiler.cost import resolve_hardware
from ....compiler.diagnostics import DiagnosticError
from ....compiler.ir.graph import Graph
from ....compiler.spec import Spec
from ....compiler.spec.strategy import Phase
from ...analysis.memory import MemoryReport, analyse_memory, weight_bytes
from ...lowering import lowering_sequence
from .._stages import stage_layers


def over_memory(wanted: Iterable[Phase] = ("prefill", "decode")) -> Callable[[Spec], tuple[Phase, ...]]:
    """A check for the phases, of those ``wanted``, whose fullest GPU holds more than its memory."""
    phases = tuple(wanted)

    def check(spec: Spec) -> tuple[Phase, ...]:
        return tuple(p for p, report in memory_reports(spec, phases).items() if report.headroom < 0)

    return check


def memory_reports(spec: Spec, wanted: Iterable[Phase] = ("prefill", "decode")) -> dict[Phase, MemoryReport]:
    """Memory of the phases that a compilation of ``wanted`` ones would build; none where the hardware is unknown."""
    try:
        hardware, _ = resolve_hardware(spec.cluster, spec.model.dtype, pack=spec.pack)
    except DiagnosticError:
        return {}
    modes = {"both", "mixed"}
    graphs: dict[Phase, Graph] = {
        s.phase: _lowered(spec, s.phase)
        for s in spec.strategies
        if s.phase in wanted and spec.workload.mode in {*modes, s.phase}
    }
    twice = len(graphs) == 2 and two_layouts(spec)
    reports = {}
    for phase, graph in graphs.items():
        second = max(max(weight_bytes(g)) for p, g in graphs.items() if p != phase) if twice else 0.0
        context, cached = cache_tokens(spec, phase), cached_sequences(spec, phase)
        reports[phase] = analyse_memory(graph, hardware.memory, context, other_weights=second, cached=cached)
    return reports


def _lowered(spec: Spec, phase: Phase) -> Graph:
    graph = build_graph(spec, phase, "memory", 1)
    for lowering in lowering_sequence(stage_layers(spec, phase)):
        graph = lowering.run(graph)
    return graph
