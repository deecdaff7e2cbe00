"""Everything that can be said of a Graphviz drawing that paradag did not draw."""

from __future__ import annotations

from ....compiler.diagnostics import Diagnostic
from ....grammar.dot_reader import Drawing
from ._content_checks import check_dimensions, check_experts, check_layers, check_phases
from ._device_checks import check_communication, check_crossings, check_devices
from ._shape_checks import check_cycles, check_declarations, check_directed, check_loose_ends, check_shapes
from ._view import View

__all__ = ["check_drawing"]

_ALWAYS = (check_directed, check_cycles, check_devices, check_crossings, check_dimensions, check_phases, check_shapes)
_WHOLE = (check_declarations, check_loose_ends, check_communication, check_layers, check_experts)
"""Checks that miss something: what a cut-off text lacks is not the drawing's fault."""


def check_drawing(drawing: Drawing) -> list[Diagnostic]:
    """Findings on the text (PD70x) and on every graph of it (PD71x to PD74x).

    A finding is told once per graph, with its first places and a count. What a label means is guessed from its words;
    where they are not understood, nothing is said. A program that was to write a drawing has no graph to speak of: only
    its text is reported.
    """
    found = list(drawing.findings)
    codes = {d.code for d in found}
    if "PD704" in codes:
        return found
    checks = _ALWAYS if codes & {"PD703", "PD706"} else _ALWAYS + _WHOLE
    for graph in drawing.graphs:
        view = View.of(drawing, graph)
        if not view.facts:
            found.append(
                Diagnostic("PD707", f"graph `{graph.name}` has no nodes", drawing.span(graph.place), "nodes and edges")
            )
        for check in checks:
            found += check(view)
    return found
