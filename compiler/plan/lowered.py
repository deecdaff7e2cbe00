"""Lowered graphs of single deployments, as `compile` has them."""

from __future__ import annotations

from dataclasses import replace

from ...passes.lowering.sequence import lower_at_once
from ...passes.validation import stage_layers
from ..build import build_graph, decode_context
from ..ir.graph import Graph
from ..spec import Spec
from ..spec.strategy import Phase


def lowered(spec: Spec, phase: Phase, context: int | None = None) -> Graph:
    """The lowered graph of a phase.

    Args:
        spec: Model, cluster, workload with its batch, strategies.
        phase: prefill or decode.
        context: Tokens per sequence of the costed decode step; default the usual middle of the generation.
    """
    graph = lower_at_once(build_graph(spec, phase, "plan"), stage_layers(spec, phase))
    if phase == "prefill" or context is None:
        return graph
    further = context - decode_context(spec)
    return replace(graph, items=tuple(replace(i, past=i.past + further) for i in graph.items)) if further else graph
