"""Boxes of a drawing: a node, a block drawn elsewhere, the decode steps after the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..ir.graph import Node
from ..ir.ops import CostClass, operator
from ._facts import PhaseFacts, look_of
from ._labels import duration, groups_text, number_ranges, share
from ._plan import Part
from ._scene import Box


def node_box(facts: PhaseFacts, part: Part, node: Node, number: str, groups: Sequence[tuple[int, ...]]) -> Box:
    """The box of a node on the given device groups."""
    block, layers = part.block, part.layers
    time = facts.time_line(block, node, layers)
    return Box(
        id=number,
        title=facts.title(block, node),
        lines=(
            node.name + (f": {time}" if time else ""),
            *facts.shape_lines(block, node),
            groups_text(groups),
        ),
        shape=operator(node).shape,
        look=look_of(node),
        share=facts.share(block, [node], layers),
        critical=facts.is_critical(block, [node], layers),
        tooltip=facts.tooltip(block, node, layers[0] if layers else -1),
        ranks=groups[0] if len(groups) == 1 else (),
    )


def folded_box(facts: PhaseFacts, part: Part, number: str) -> Box:
    """One box for a block that is drawn elsewhere, with what it communicates and how long a layer takes."""
    block = part.block
    moved = Counter(operator(n).public for n in part.nodes if operator(n).cost_class is CostClass.NETWORK)
    each = ", ".join(f"{count} {name}" for name, count in moved.items())
    seconds = sum(facts.seconds(block, n, part.layers[0]) for n in part.nodes)
    busy = facts.share(block, part.nodes, part.layers)
    dims = facts.dims(block.types[block.result], facts.place(part.nodes[0]))
    return Box(
        id=number,
        title=layers_title(part),
        lines=(
            "each as drawn before" + (f", with {each}" if each else ""),
            f"{duration(seconds)} x {len(part.layers)}, {share(busy)}",
            f"Input: {dims}",
            f"Output: {dims}",
            groups_text(facts.partition((), part.stages)),
        ),
        shape="box",
        look="compute",
        share=busy,
        critical=facts.is_critical(block, part.nodes, part.layers),
        folded=True,
    )


def later_steps_box(facts: PhaseFacts, number: str, gpus: str) -> Box:
    """One box for the decode steps after the first."""
    steps = facts.graph.steps
    end = next(n for _, n in facts.graph.nodes() if n.op == "decode_end")
    dims = facts.dims(end.outputs[0].type, facts.place(end))
    return Box(
        id=number,
        title=f"DAG of one step x {steps - 1}",
        lines=(
            f"{later_steps_name(steps)}, each as drawn before, from DecodeStepBegin to DecodeStepEnd",
            "each reads the KV version that the step before wrote",
            f"{duration(facts.analysis.latency)} x {steps - 1}",
            f"Input: {dims}",
            f"Output: {dims}",
            gpus,
        ),
        shape="box",
        look="compute",
        folded=True,
    )


def later_steps_name(steps: int) -> str:
    """``decode steps 1-3``: those after the first."""
    return "decode step 1" if steps == 2 else f"decode steps 1-{steps - 1}"


def layers_title(part: Part) -> str:
    """``moe layer x 58 (layers 3-60)``."""
    name, count = part.block.name.replace("_", " "), len(part.layers)
    return f"{name} {part.layers[0]}" if count == 1 else f"{name} x {count} (layers {number_ranges(part.layers)})"
