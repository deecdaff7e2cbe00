"""The verifier, run on the graph after every pass.

Three layers: structure (names, masks, layers, levels), placements (the operators' own rules as a type system, and the
protocols of KV cache, pipeline and experts), and erasure (without distribution it is the logical graph). Each catches
faults that the others cannot see.
"""

from __future__ import annotations

from ...compiler.diagnostics import Diagnostic
from ...compiler.ir.graph import LEVELS, Graph
from . import _graph_rules, _placements, _protocols, _ring, _structure
from .erasure import differences, erase


def verify(graph: Graph, logical: Graph | None = None) -> list[Diagnostic]:
    """What is wrong with a graph; empty where it is legal.

    Args:
        graph: Graph of any level.
        logical: The graph it was lowered from, for comparison; None leaves that out.
    """
    found = [d for check in _structure.CHECKS for d in check(graph)]
    # before the first pass nothing is placed, so only sizes can disagree
    placed = erase(graph) if graph.level == LEVELS[0] else graph
    found += [d for check in _placements.CHECKS for d in check(placed)]
    found += [d for check in (*_protocols.CHECKS, *_ring.CHECKS, *_graph_rules.NEW_CHECKS) for d in check(graph)]
    if logical is not None:
        found += differences(graph, logical)
    return list(dict.fromkeys(found))
