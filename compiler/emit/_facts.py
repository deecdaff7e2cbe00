"""What a drawing says of a node: dimensions, GPUs, bytes, time, share of its stage's time, kinds of its edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...passes.analysis import PhaseAnalysis, expanded_axes
from ...passes.analysis.unroll import node_mask
from ..cost import BOUNDS, NodeCost
from ..ir.graph import Block, Node
from ..ir.mesh import ATTENTION_VIEW
from ..ir.ops import CostClass, Kind, operator
from ..ir.types import TensorType
from ..ir.unrolled import EDGE_KINDS
from ._labels import dims_text, duration, quantity, shapes_lines, share
from ._scene import Look

Key = tuple[str, str]


class PhaseFacts:
    """Facts of one phase. Sizes and times are those of the largest pipeline item at the first step with the node."""

    def __init__(self, analysis: PhaseAnalysis) -> None:
        self.analysis = analysis
        self.graph = analysis.graph
        self.mesh = analysis.graph.mesh
        self._arrays = self.graph.extents()
        self._places: dict[tuple[str, str], tuple[int, int]] = {}
        self._groups: dict[tuple[tuple[int, ...], tuple[str, ...]], list[tuple[int, ...]]] = {}

    # --- where ------------------------------------------------------------------------------------------------------

    def place(self, node: Node) -> tuple[int, int]:
        """(step, item) that is drawn of a node: its first step, and of its items the largest, the last of equals."""
        key = (node.steps, node.items)
        if key not in self._places:
            self._places[key] = self._find_place(node)
        return self._places[key]

    def _find_place(self, node: Node) -> tuple[int, int]:
        mask = node_mask(self.graph, node)
        step = int(np.flatnonzero(mask.any(axis=1))[0])
        items = np.flatnonzero(mask[step])
        tokens = (self._arrays["batch"][step] * self._arrays["new"][step])[items]
        return step, int(items[len(items) - 1 - int(tokens[::-1].argmax())])

    def device_groups(self, node: Node, stages: Sequence[int]) -> list[tuple[int, ...]]:
        """Device groups of a node in the given stages: of a collective its communicators, else the shards' ranks."""
        group_axes = node.attrs.get("axes")
        outer = (
            tuple(a.name for a in self.mesh.axes if a.name not in group_axes)
            if group_axes and operator(node).cost_class is CostClass.NETWORK
            else expanded_axes(node, self.mesh)
        )
        return self.partition(outer, stages)

    def partition(self, outer: tuple[str, ...], stages: Sequence[int]) -> list[tuple[int, ...]]:
        """Ranks of the stages, one group per coordinate on the ``outer`` axes."""
        key = (tuple(stages), outer)
        if key not in self._groups:
            inner = tuple(a.name for a in self.mesh.axes if a.name not in outer)
            size = self.mesh.size(inner)
            groups: list[tuple[int, ...]] = []
            for stage in stages:
                ranks = self.mesh.ranks(stage, {}, (*outer, *inner))
                groups += [tuple(sorted(ranks[i : i + size])) for i in range(0, len(ranks), size)]
            self._groups[key] = groups
        return self._groups[key]

    # --- sizes ------------------------------------------------------------------------------------------------------

    def shape_lines(self, block: Block, node: Node) -> list[str]:
        """``Input:`` and ``Output:`` lines. A node with one side only passes its value through."""
        inputs = [block.types[i] for i in node.inputs]
        outputs = [v.type for v in node.outputs]
        place = self.place(node)
        return [
            *shapes_lines("Input", [self.dims(t, place) for t in inputs or outputs]),
            *shapes_lines("Output", [self.dims(t, place) for t in outputs or inputs]),
        ]

    def dims(self, t: TensorType, place: tuple[int, int]) -> str:
        """Dimensions per rank."""
        return dims_text(t, self._extents(place), self.mesh)

    def _extents(self, place: tuple[int, int]) -> dict[str, int]:
        return {name: int(values[place]) for name, values in self._arrays.items()}

    def payload(self, block: Block, node: Node) -> float:
        """Bytes of a message on one rank: what goes in, and of an all-gather what comes out."""
        extents = self._extents(self.place(node))
        gives = node.op == "all_gather" or not node.inputs
        types = [v.type for v in node.outputs] if gives else [block.types[i] for i in node.inputs]
        return sum(float(t.local_bytes(extents, self.mesh)) for t in types)

    # --- costs ------------------------------------------------------------------------------------------------------

    def seconds(self, block: Block, node: Node, layer: int = -1) -> float:
        """Time of one call, launch overhead included."""
        return self._pick(self._cost(block, node).time, block, node, layer)

    def time_line(self, block: Block, node: Node, layers: Sequence[int]) -> str:
        """``25.1 us x 80, 14 %``: time of a call, calls that the box stands for, share of the stage's busy time."""
        time = self.seconds(block, node, layers[0] if layers else -1)
        if time <= 0:
            return ""
        part = self.share(block, [node], layers)
        repeats = f" x {len(layers)}" if len(layers) > 1 and block.role == "layer" else ""
        return f"{duration(time)}{repeats}" + f", {share(part)}"

    def share(self, block: Block, nodes: Sequence[Node], layers: Sequence[int]) -> float:
        """Share of some nodes of a block, at some layers, in their stages' busy time, over all items and steps."""
        keys = list(product((self._number[block.name, n.name] for n in nodes), layers or (-1,)))
        known = [self._totals[key] for key in keys if key in self._totals]
        busy = sum(self._busy[stage] for stage in {stage for _, stage in known})
        return sum(seconds for seconds, _ in known) / busy if busy else 0.0

    def is_critical(self, block: Block, nodes: Sequence[Node], layers: Sequence[int]) -> bool:
        """Whether the critical path runs through any of the nodes at any of the layers."""
        numbers = (self._number[block.name, n.name] for n in nodes)
        return any(key in self._on_path for key in product(numbers, layers or (-1,)))

    def tooltip(self, block: Block, node: Node, layer: int = -1) -> str:
        """FLOPs, bytes and bound of one call on one rank."""
        cost = self._cost(block, node)

        def pick(values: Any) -> float:
            return self._pick(values, block, node, layer)

        figures = [(cost.flops, "FLOP"), (cost.hbm_bytes, "B HBM"), (cost.wire_bytes, "B on the wire")]
        words = [quantity(pick(values), unit) for values, unit in figures if pick(values)]
        weights = sum(float(p.type.local_bytes({}, self.mesh)) for p in node.params if not p.const)
        if weights:
            words.append(f"{quantity(weights, 'B')} weights")
        bound = BOUNDS[int(pick(cost.bound))]
        return ", ".join([f"{block.name}.{node.name}", *words, *([f"{bound}-bound"] if bound != "none" else [])])

    def _cost(self, block: Block, node: Node) -> NodeCost:
        return self.analysis.costs[block.name, node.name]

    def _pick(self, values: Any, block: Block, node: Node, layer: int) -> float:
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 0:
            return float(array)
        repetition = block.layers.index(layer) if layer in block.layers else 0
        full = np.broadcast_to(array, (self.graph.steps, len(self.graph.items), max(array.shape[-1], 1)))
        return float(full[(*self.place(node), min(repetition, full.shape[2] - 1))])

    # --- from the flat graph ----------------------------------------------------------------------------------------

    @cached_property
    def _number(self) -> dict[Key, int]:
        return {(b.name, n.name): i for i, (b, n) in enumerate(self.analysis.flat.unrolled.templates)}

    @cached_property
    def _on_path(self) -> set[tuple[int, int]]:
        """(template, layer) of the calls on the critical path."""
        flat = self.analysis.flat
        calls = np.searchsorted(flat.first, self.analysis.critical.nodes, side="right") - 1
        return set(zip(flat.unrolled.template[calls].tolist(), flat.unrolled.layer[calls].tolist(), strict=True))

    @cached_property
    def _totals(self) -> dict[tuple[int, int], tuple[float, int]]:
        """Seconds over all items and steps, and stage, by (template, layer)."""
        unrolled = self.analysis.flat.unrolled
        width = self.graph.layers + 1
        code = unrolled.template * width + unrolled.layer + 1
        keys, first, where = np.unique(code, return_index=True, return_inverse=True)
        seconds = np.bincount(where, weights=self.analysis.flat.call_duration)
        values = zip(keys.tolist(), seconds.tolist(), unrolled.stage[first].tolist(), strict=True)
        return {(key // width, key % width - 1): (total, stage) for key, total, stage in values}

    @cached_property
    def _busy(self) -> list[float]:
        """Seconds of all calls of each stage: its GPUs' busy time."""
        busy = [0.0] * len(self.graph.stages)
        for seconds, stage in self._totals.values():
            busy[stage] += seconds
        return busy

    @cached_property
    def edge_kinds(self) -> Mapping[tuple[Key, Key], str]:
        """Kind of the edges between two nodes of the lowered graph; order edges are no dependence and are left out."""
        unrolled = self.analysis.flat.unrolled
        names = [(b.name, n.name) for b, n in unrolled.templates]
        order = EDGE_KINDS.index("order")
        real: NDArray[np.bool_] = unrolled.edge_kind != order
        ends = unrolled.template[unrolled.source[real]], unrolled.template[unrolled.target[real]]
        code = (ends[0] * len(names) + ends[1]) * len(EDGE_KINDS) + unrolled.edge_kind[real]
        kinds: dict[tuple[Key, Key], str] = {}
        for value in np.unique(code).tolist():
            pair, kind = divmod(value, len(EDGE_KINDS))
            source, target = divmod(pair, len(names))
            kinds[names[source], names[target]] = EDGE_KINDS[kind]
        return kinds

    # --- words ------------------------------------------------------------------------------------------------------

    def title(self, block: Block, node: Node) -> str:
        """Operator; of communication also over what, on how many GPUs, and the bytes of one rank's message."""
        rule = operator(node)
        if rule.cost_class is not CostClass.NETWORK:
            return rule.public
        size = quantity(self.payload(block, node), "B")
        if rule.kind is Kind.P2P:
            return f"{rule.public} {size} per GPU"
        axes = node.attrs["axes"]
        return f"{rule.public} over {self.axes_name(node)} ({self.mesh.size(axes)} GPUs) {size}"

    def axes_name(self, node: Node) -> str:
        """The axes of a collective in the user's words; of the routing all-to-alls those of the expert view."""
        axes = set(node.attrs["axes"])
        for view in ("ep", "edp", "etp") if node.op in ("dispatch", "combine") else ATTENTION_VIEW:
            if axes == set(self.mesh.view(view)):
                return view
        return self.mesh.describe(node.attrs["axes"])

    def exists(self, node: Node, *, later: bool = False) -> bool:
        """Whether the node belongs to the first decode step, or (``later``) only to those after it."""
        mask = node_mask(self.graph, node)
        return bool(mask[1:].any() and not mask[0].any()) if later else bool(mask[0].any())


def look_of(node: Node) -> Look:
    """Colour class of a node."""
    rule = operator(node)
    if rule.kind is Kind.STATE:
        return "kv"
    if rule.kind in (Kind.COLLECTIVE, Kind.P2P):
        return "communication"
    return "control" if rule.kind is Kind.CONTROL else "compute"
