"""The fixed order of the four lowering passes."""

from __future__ import annotations

from dataclasses import replace

from ...compiler.ir.graph import Graph
from .ep import LowerEp
from .pp import LowerPp
from .resolve import resolve
from .sp import LowerSp
from .tp import LowerTp

LoweringPass = LowerPp | LowerSp | LowerEp | LowerTp


def lowering_sequence(stages: tuple[int, ...]) -> tuple[LoweringPass, ...]:
    """PP, SP, EP, TP for a pipeline with so many layers in each stage."""
    return LowerPp(stages), LowerSp(), LowerEp(), LowerTp()


def lower_at_once(graph: Graph, stages: tuple[int, ...]) -> Graph:
    """The lowered graph of a logical one, as the four passes give it, but for the names of what they insert.

    The collectives of a graph are a function of its placements alone, so that all facts can be stated before they are
    resolved once. For whoever wants many graphs and none of the levels between.
    """
    for lowering in lowering_sequence(stages):
        graph = lowering.place(graph)
    lowered = resolve(graph, "tp")
    # What the last stage sends back lies as its sender says, which was not known where it arrives.
    ends = tuple(b for b in lowered.blocks if b.role in ("prologue", "epilogue"))
    if len(ends) < 2:
        return lowered
    settled = {b.name: b for b in resolve(replace(lowered, blocks=ends), "tp").blocks if b.role == "prologue"}
    return lowered.map_blocks(lambda b: settled.get(b.name, b))
