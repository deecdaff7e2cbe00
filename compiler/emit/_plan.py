"""What a drawing shows once and what it repeats: stages, runs of layers, and blocks drawn before.

A stage is a list of parts in program order. A part is a block drawn node by node, a block that was drawn before (then
it is a single folded node), or several blocks that alternate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ..ir.graph import Block, Graph, Node

_LONGEST_PERIOD = 16


@dataclass(frozen=True)
class Part:
    """A block, or some nodes of it, over some layers.

    Attributes:
        block: The block.
        nodes: Its nodes in this part.
        layers: Layers that it stands for; of a boundary the first layers behind it; none for prologue and epilogue.
        stages: Stages that run it.
        folded: Drawn before: one node stands for all.
    """

    block: Block
    nodes: tuple[Node, ...]
    layers: tuple[int, ...]
    stages: tuple[int, ...]
    folded: bool = False


@dataclass(frozen=True)
class Alternation:
    """Parts that take turns: once through all of them per repetition."""

    parts: tuple[Part, ...]
    repeats: int

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(layer for p in self.parts for layer in p.layers))


@dataclass(frozen=True)
class StagePlan:
    """One pipeline stage, or neighbouring stages that are alike.

    Attributes:
        stages: The stages.
        layers: Their layers.
        parts: What runs, in program order.
    """

    stages: tuple[int, ...]
    layers: tuple[int, ...]
    parts: tuple[Part | Alternation, ...]

    def flat_parts(self) -> Iterator[Part]:
        for part in self.parts:
            yield from part.parts if isinstance(part, Alternation) else (part,)


def plan_stages(graph: Graph, *, unfold_layers: bool, fold_stages: bool) -> tuple[StagePlan, ...]:
    """The stages of a drawing.

    Args:
        graph: A lowered graph.
        unfold_layers: Draw every layer; otherwise every distinct layer once.
        fold_stages: Draw neighbouring inner stages that are alike as one.
    """
    kinds = _kinds(graph)
    plans = [_stage_plan(graph, kinds, stages, unfold_layers) for stages in _stage_groups(graph, kinds, fold_stages)]
    drawn: set[str] = set()
    return tuple(plans if unfold_layers else [_mark_folded(plan, drawn) for plan in plans])


def periodic_runs(kinds: Sequence[str]) -> list[tuple[int, int, int]]:
    """A sequence as runs of (start, period, repeats): ``ssssfff`` is (0, 1, 4), (4, 1, 3); ``sfsfsf`` is (0, 2, 3).

    Greedy: the period that covers most comes first, of equals the shortest.
    """
    runs: list[tuple[int, int, int]] = []
    start = 0
    while start < len(kinds):
        best = (0, 1, 1)
        for period in range(1, min(_LONGEST_PERIOD, len(kinds) - start) + 1):
            unit = kinds[start : start + period]
            repeats = 1
            while kinds[start + repeats * period : start + (repeats + 1) * period] == unit:
                repeats += 1
            if (repeats > 1 or period == 1) and repeats * period > best[0]:
                best = (repeats * period, period, repeats)
        runs.append((start, best[1], best[2]))
        start += best[0]
    return runs


def _stage_groups(graph: Graph, kinds: Sequence[str], fold: bool) -> list[tuple[int, ...]]:
    last = len(graph.stages) - 1

    def signature(stage: int) -> tuple[object, ...]:
        if not fold or stage in (0, last):
            return (stage,)
        start = graph.stage_starts[stage]
        return ("inner", *kinds[start : start + graph.stages[stage]])

    return [tuple(group) for _, group in groupby(range(last + 1), key=signature)]


def _kinds(graph: Graph) -> list[str]:
    """Block name of every layer."""
    kinds = [""] * graph.layers
    for block in graph.with_role("layer"):
        for layer in block.layers:
            kinds[layer] = block.name
    return kinds


def _stage_plan(graph: Graph, kinds: Sequence[str], stages: tuple[int, ...], unfold_layers: bool) -> StagePlan:
    starts = tuple(graph.stage_starts[s] for s in stages)
    count = graph.stages[stages[0]]
    layers = tuple(range(starts[0], starts[0] + count * len(stages)))
    parts: list[Part | Alternation] = []
    if stages[0] == 0:
        parts += [Part(b, b.nodes, (), stages) for b in graph.with_role("prologue")]
    else:
        parts += _boundary(graph, starts, stages, sending=False)
    parts += _layer_parts(graph, kinds[starts[0] : starts[0] + count], starts, stages, unfold_layers)
    if stages[-1] < len(graph.stages) - 1:
        parts += _boundary(graph, tuple(graph.stage_starts[s + 1] for s in stages), stages, sending=True)
    else:
        parts += [Part(b, b.nodes, (), stages) for b in graph.with_role("epilogue")]
    return StagePlan(stages, layers, tuple(parts))


def _boundary(graph: Graph, layers: tuple[int, ...], stages: tuple[int, ...], *, sending: bool) -> list[Part]:
    blocks = graph.with_role("boundary")
    return [Part(b, tuple(n for n in b.nodes if (n.op == "send") is sending), layers, stages) for b in blocks]


def _layer_parts(
    graph: Graph, kinds: Sequence[str], starts: tuple[int, ...], stages: tuple[int, ...], unfold: bool
) -> list[Part | Alternation]:
    runs = [(i, 1, 1) for i in range(len(kinds))] if unfold else periodic_runs(kinds)
    parts: list[Part | Alternation] = []
    for offset, period, repeats in runs:
        members: list[Part] = []
        for place in range(offset, offset + period):
            block = graph.block(kinds[place])
            layers = tuple(start + place + period * r for start in starts for r in range(repeats))
            members.append(Part(block, block.nodes, layers, stages))
        parts.append(members[0] if period == 1 else Alternation(tuple(members), repeats))
    return parts


def _mark_folded(plan: StagePlan, drawn: set[str]) -> StagePlan:
    """The plan with every layer block that stands in ``drawn`` folded; ``drawn`` takes the names of the others."""

    def mark(part: Part) -> Part:
        if part.block.role != "layer" or part.block.name not in drawn:
            drawn.add(part.block.name)
            return part
        return replace(part, folded=True)

    parts = tuple(
        replace(p, parts=tuple(map(mark, p.parts))) if isinstance(p, Alternation) else mark(p) for p in plan.parts
    )
    return replace(plan, parts=parts)
