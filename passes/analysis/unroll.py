"""Unrolling: calls, the edges that dataflow gives them, and a topological order by levels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...compiler.diagnostics import Diagnostic, DiagnosticError
from ...compiler.ir.graph import Arg, Block, Graph, Node
from ...compiler.ir.unrolled import EDGE_KINDS, Ints, Unrolled
from .schedule import order_edges, stream_of

_KIND = {name: number for number, name in enumerate(EDGE_KINDS)}


MAX_CALLS = 5_000_000
"""Calls that a graph may unroll to; they take about a gigabyte."""


def unroll(graph: Graph) -> Unrolled:
    """All calls of a graph with data, state, pipeline, route and order edges, sorted by level.

    Raises:
        DiagnosticError: PD306, more than ``MAX_CALLS`` calls.
    """
    trips = graph.steps * len(graph.items)
    calls = trips * sum(max(1, len(block.layers)) for block, _ in graph.nodes())
    if calls > MAX_CALLS:
        message = f"{graph.phase} would unroll to {calls:,} calls ({trips:,} trips through the pipeline)"
        help_text = "fewer --steps or micro-batches, or larger chunks"
        raise DiagnosticError([Diagnostic("PD306", message, expected=f"at most {MAX_CALLS:,}", help=help_text)])
    return _Unroller(graph).run()


@dataclass
class _Grid:
    """Call numbers of one template: [steps, items, repetitions], -1 where masked."""

    block: Block
    node: Node
    calls: Ints


class _Unroller:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.shape = (graph.steps, len(graph.items))
        self.grids: dict[tuple[str, str], _Grid] = {}
        self.sources: list[Ints] = []
        self.targets: list[Ints] = []
        self.kinds: list[NDArray[np.int8]] = []

    def run(self) -> Unrolled:
        self._number_calls()
        self._number_stream()
        for grid in self.grids.values():
            for name in self._distinct_inputs(grid):
                self._connect(grid, name)
        return self._sorted()

    # --- calls ------------------------------------------------------------------------------------------------------

    def _number_calls(self) -> None:
        """Call numbers in (template, step, item, repetition) order."""
        count = 0
        for block, node in self.graph.nodes():
            present = node_mask(self.graph, node)[..., None]
            present = np.broadcast_to(present, (*self.shape, max(1, len(block.layers))))
            calls = np.full(present.shape, -1, dtype=np.int64)
            size = int(present.sum())
            calls[present] = np.arange(count, count + size)
            count += size
            self.grids[block.name, node.name] = _Grid(block, node, calls)
        self.count = count

    def _number_stream(self) -> None:
        """Calls that give the stream entering each layer (index L: entering the epilogue)."""
        layers = self.graph.layers
        self.entering = np.full((*self.shape, layers + 1), -1, dtype=np.int64)
        for block in self.graph.blocks:
            if block.role in ("prologue", "layer") and block.result:
                where = [0] if block.role == "prologue" else [layer + 1 for layer in block.layers]
                self.entering[:, :, where] = self._result(block)
        self.leaving = self.entering.copy()
        for block in self.graph.with_role("boundary"):
            self.entering[:, :, list(block.layers)] = self._result(block)

    def _result(self, block: Block) -> Ints:
        return self.grids[block.name, block.producers[block.result].name].calls

    # --- edges ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _distinct_inputs(grid: _Grid) -> list[str]:
        """Inputs with different producers: two values of one node make one edge."""
        producers = grid.block.producers
        return list({producers[i].name if i in producers else f"%{i}": i for i in grid.node.inputs}.values())

    def _connect(self, grid: _Grid, name: str) -> None:
        producer = grid.block.producers.get(name)
        if producer is not None:
            source = self.grids[grid.block.name, producer.name]
            self._edges(source.calls, grid.calls, _edge_kind(source.node, grid.node, name))
            return
        arg = next((a for a in grid.block.args if a.value.name == name), None)
        if arg is None:
            raise LookupError(f"nothing in {grid.block.name} gives %{name}, which {grid.node.name} takes")
        kind = "state" if grid.node.op == "kv_write" else "data"
        if arg.carry == "layer":
            self._edges(self._stream_into(grid.block), grid.calls, _edge_kind(None, grid.node, name))
        elif arg.carry == "version":
            self._edges(self._version(grid.block, arg), grid.calls, kind)
        else:
            before = next((g for g in self.grids.values() if self._gives(g, arg.source)), None)
            if before is None:
                raise LookupError(f"no step gives %{arg.source}, which {grid.node.name} takes from the step before")
            self._edges(_shift_step(before.calls), grid.calls, "pipeline" if grid.node.op == "recv" else "data")

    @staticmethod
    def _gives(grid: _Grid, value: str) -> bool:
        return grid.block.role == "epilogue" and any(v.name == value for v in grid.node.outputs)

    def _stream_into(self, block: Block) -> Ints:
        if block.role == "boundary":
            return self.leaving[:, :, list(block.layers)]
        where = list(block.layers) if block.role == "layer" else [self.graph.layers]
        return self.entering[:, :, where]

    def _version(self, block: Block, arg: Arg) -> Ints:
        """Calls that give a version: this block's at the chunk or step before, or its stand-in."""
        source = self.grids[block.name, block.producers[arg.source].name].calls
        if self.graph.phase == "prefill":
            before = np.full_like(source, -1)
            later = [j for j, item in enumerate(self.graph.items) if not item.first]
            before[:, later] = source[:, [j - 1 for j in later]]
        else:
            before = _shift_step(source)
        if arg.init:
            initial = self.grids[block.name, block.producers[arg.init].name].calls
            before = np.where(before < 0, initial, before)
        return before

    def _edges(self, source: Ints, target: Ints, kind: str) -> None:
        source = np.broadcast_to(source, np.broadcast_shapes(source.shape, target.shape))
        target = np.broadcast_to(target, source.shape)
        real = (source >= 0) & (target >= 0)
        self.sources.append(source[real])
        self.targets.append(target[real])
        self.kinds.append(np.full(int(real.sum()), _KIND[kind], dtype=np.int8))

    # --- order ------------------------------------------------------------------------------------------------------

    def _sorted(self) -> Unrolled:
        columns = self._columns()
        position, unit_key = columns["position"], columns["unit"]
        streams = columns["stream"]
        source, target = np.concatenate(self.sources), np.concatenate(self.targets)
        kind = np.concatenate(self.kinds)
        extra = order_edges(unit_key, columns["stage"], position, streams, source, target)
        source, target = np.concatenate([source, extra[0]]), np.concatenate([target, extra[1]])
        kind = np.concatenate([kind, np.full(len(extra[0]), _KIND["order"], dtype=np.int8)])
        level = _levels(unit_key, position, source, target)
        has_input = np.zeros(self.count, dtype=np.int8)
        has_input[target] = 1
        order = np.lexsort((columns["template"], unit_key, 1 - has_input, level))
        rank = np.empty_like(order)
        rank[order] = np.arange(self.count)
        picked = {name: columns[name][order] for name in ("template", "step", "item", "layer", "repetition", "stage")}
        templates = tuple((g.block, g.node) for g in self.grids.values())
        source, target = rank[source], rank[target]
        edges = np.lexsort((source, target))
        return Unrolled(
            self.graph,
            templates,
            **picked,
            level=level[order],
            source=source[edges],
            target=target[edges],
            edge_kind=kind[edges],
        )

    def _columns(self) -> dict[str, Ints]:
        names = ("template", "step", "item", "layer", "repetition", "stage", "position", "stream")
        columns = {name: np.zeros(self.count, dtype=np.int64) for name in names}
        positions = _positions(self.graph)
        for number, ((block_name, node_name), grid) in enumerate(self.grids.items()):
            step, item, repetition = np.nonzero(grid.calls >= 0)
            calls = grid.calls[step, item, repetition]
            layers = np.array(grid.block.layers or (-1,), dtype=np.int64)
            stages = self.graph.stages_of(grid.block, grid.node).astype(np.int64)
            columns["template"][calls] = number
            columns["step"][calls] = step
            columns["item"][calls] = item
            columns["repetition"][calls] = repetition
            columns["layer"][calls] = layers[repetition]
            columns["stage"][calls] = stages[repetition]
            columns["position"][calls] = positions[block_name, node_name][repetition]
            columns["stream"][calls] = stream_of(grid.node)
        units = len(self.graph.items) * len(self.graph.stages)
        columns["unit"] = columns["step"] * units + columns["item"] * len(self.graph.stages) + columns["stage"]
        return columns


def node_mask(graph: Graph, node: Node) -> NDArray[np.bool_]:
    """[steps, items]: where the node exists."""
    steps = np.arange(graph.steps)[:, None]
    on_step = {"all": steps >= 0, "first": steps == 0, "later": steps > 0, "early": steps < graph.steps - 1}[node.steps]
    first = np.array([i.first for i in graph.items], dtype=np.bool_)
    last = np.array([i.last for i in graph.items], dtype=np.bool_)
    on_item = {"all": first | True, "first": first, "last": last, "early": ~last}[node.items]
    mask: NDArray[np.bool_] = on_step & on_item[None, :]
    return mask


def _shift_step(calls: Ints) -> Ints:
    before = np.full_like(calls, -1)
    before[1:] = calls[:-1]
    return before


def _edge_kind(source: Node | None, target: Node, value: str) -> str:
    if source is not None and source.op == "send":
        return "pipeline"
    if source is not None and source.op in ("kv_write", "kv_recv"):
        return "state"
    if target.op == "kv_write" and source is None:
        return "state"
    if source is not None and source.op == "router":
        return "route"
    if target.op in ("all_gather", "ring_shift") and source is not None and source.op in ("kv_read", "ring_shift"):
        return "sync"
    return "sync" if target.op in ("prefill_end", "decode_end", "chunk_end") else "data"


def _positions(graph: Graph) -> dict[tuple[str, str], Ints]:
    """Place of each node in the program of its stage, per repetition."""
    positions = {(b.name, n.name): np.zeros(max(1, len(b.layers)), dtype=np.int64) for b, n in graph.nodes()}
    boundary = {layer: (b, i) for b in graph.with_role("boundary") for i, layer in enumerate(b.layers)}
    layer_of = {layer: (b, i) for b in graph.with_role("layer") for i, layer in enumerate(b.layers)}
    cursor = 0

    def place(block: Block, repetition: int, nodes: tuple[Node, ...]) -> None:
        nonlocal cursor
        for node in nodes:
            positions[block.name, node.name][repetition] = cursor
            cursor += 1

    for block in graph.with_role("prologue"):
        place(block, 0, block.nodes)
    for layer in range(graph.layers):
        if layer in boundary:
            block, repetition = boundary[layer]
            place(block, repetition, tuple(n for n in block.nodes if n.op == "send"))
            cursor = 0
            place(block, repetition, tuple(n for n in block.nodes if n.op != "send"))
        place(*layer_of[layer], layer_of[layer][0].nodes)
    for block in graph.with_role("epilogue"):
        place(block, 0, block.nodes)
    return positions


def _levels(unit: Ints, position: Ints, source: Ints, target: Ints) -> Ints:
    """A level per call: its place in its unit plus the unit's own start, units in (step, item, stage) order."""
    start = np.zeros(int(unit.max(initial=0)) + 1, dtype=np.int64)
    across = np.flatnonzero(unit[source] != unit[target])
    across = across[np.argsort(unit[target[across]], kind="stable")]
    from_unit, to_unit = unit[source[across]], unit[target[across]]
    needed = position[source[across]] + 1 - position[target[across]]
    bounds = np.flatnonzero(np.diff(to_unit, prepend=-1, append=-1))
    for low, high in pairwise(bounds.tolist()):
        start[to_unit[low]] = max(0, int((start[from_unit[low:high]] + needed[low:high]).max()))
    return start[unit] + position
