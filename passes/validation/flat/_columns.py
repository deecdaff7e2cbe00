"""What the rules look at: nodes and edges as columns, whatever graph they come from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ....compiler.build.mesh import mesh_of
from ....compiler.diagnostics import Diagnostic
from ....compiler.ir.flat import FlatGraph
from ....compiler.ir.mesh import AxesDoNotNest, Mesh
from ....compiler.ir.ops import operator
from ....compiler.ir.unrolled import EDGE_KINDS
from ....compiler.spec.stage_law import degrees_of

if TYPE_CHECKING:
    from ....compiler.emit import LoadedGraph

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

MAX_TOLD = 5
"""Findings of one rule that are told; the last says how many more there are."""

ORDER = EDGE_KINDS.index("order")


class Column(Protocol):
    """A column in which equal values are kept once."""

    @property
    def values(self) -> Sequence[Any]:
        """Each distinct value."""

    @property
    def codes(self) -> NDArray[Any]:
        """Per row, the index of its value."""


@dataclass(frozen=True, eq=False)
class Table:
    """Row i has ``values[codes[i]]``."""

    values: Sequence[Any]
    codes: Ints

    def where(self, wanted: Callable[[Any], bool]) -> Mask:
        """Rows whose value is wanted; asked once per distinct value."""
        hits = np.array([wanted(v) for v in self.values], dtype=np.bool_)
        mask: Mask = hits[self.codes] if len(hits) else np.zeros(len(self.codes), dtype=np.bool_)
        return mask

    def number(self, of: Callable[[Any], int]) -> Ints:
        """A number per row; computed once per distinct value."""
        numbers = np.array([of(v) for v in self.values], dtype=np.int64)
        return numbers[self.codes] if len(numbers) else np.zeros(len(self.codes), dtype=np.int64)

    def __getitem__(self, row: int) -> Any:
        return self.values[int(self.codes[row])]


@dataclass(frozen=True, eq=False)
class Columns:
    """A flat graph. Rows are nodes in the order of their ids.

    Attributes:
        phase: The graph's phase.
        mesh: The ranks; None where the strategy gives none.
        layers: Layers of the model, or None where it is not known.
        tokens: Prompt tokens, or None.
        gpus: GPUs of the cluster, or None.
        op, name, kind, module, phases: Strings.
        place: Coordinates on axes, as sorted (axis, coordinate) pairs.
        group: Axes of the device group.
        devices: Ranks.
        transfer: What pairs a KV transfer with its counterpart, or None.
        detail: Tensors (inputs, outputs, weights) as a document has them; None where the graph has them elsewhere.
        has_output: Whether the node gives a value.
        stage, layer, step, microbatch, chunk: Numbers; layer is -1 outside layers.
        source, target, edge: Ends and kinds of all edges.
    """

    phase: str
    mesh: Mesh | None
    layers: int | None
    tokens: int | None
    gpus: int | None
    op: Table
    name: Table
    kind: Table
    module: Table
    phases: Table
    place: Table
    group: Table
    devices: Table
    transfer: Table
    detail: Table | None
    has_output: Mask
    stage: Ints
    layer: Ints
    step: Ints
    microbatch: Ints
    chunk: Ints
    source: Ints
    target: Ints
    edge: Ints

    def __len__(self) -> int:
        return len(self.stage)

    def is_op(self, *names: str) -> Mask:
        return self.op.where(lambda v: v in names)

    @cached_property
    def sound(self) -> Mask:
        """Edges whose ends exist."""
        count = len(self)
        mask: Mask = (self.source >= 0) & (self.source < count) & (self.target >= 0) & (self.target < count)
        return mask

    @cached_property
    def flow(self) -> tuple[Ints, Ints]:
        """Sources and targets of the edges that carry something, not only an order."""
        kept = self.sound & (self.edge != ORDER)
        return self.source[kept], self.target[kept]

    @cached_property
    def trip(self) -> Ints:
        """Number of (step, micro-batch, chunk, layer): the same for all nodes of one layer in one trip."""
        return self.key(self.step, self.microbatch, self.chunk, self.layer)

    @cached_property
    def call(self) -> Ints:
        """Number of (name, trip): the same for the shards of one node."""
        return self.key(self.name.codes, self.trip)

    @staticmethod
    def key(*columns: NDArray[Any]) -> Ints:
        """Equal numbers for rows that are equal in all columns."""
        number = np.zeros(len(columns[0]), dtype=np.int64)
        for column in columns:
            _, code = np.unique(column, return_inverse=True)
            code = code.reshape(-1)
            _, number = np.unique(number * (int(code.max(initial=0)) + 1) + code, return_inverse=True)
            number = number.reshape(-1)
        return number.astype(np.int64)

    @cached_property
    def incidence(self) -> tuple[Ints, Ints]:
        """(node, rank) for every rank of every node, node by node."""
        width = self.devices.number(len)
        ranks = [np.array(v, dtype=np.int64) for v in self.devices.values]
        start = np.concatenate([[0], np.cumsum([len(r) for r in ranks])]).astype(np.int64)
        flat = np.concatenate(ranks) if ranks else np.zeros(0, dtype=np.int64)
        node = np.repeat(np.arange(len(self), dtype=np.int64), width)
        first = np.cumsum(width) - width
        within = np.arange(len(node), dtype=np.int64) - np.repeat(first, width)
        return node, flat[np.repeat(start[self.devices.codes], width) + within]

    def degree_in(self, wanted: Mask, same: Sequence[NDArray[Any]] = ()) -> Ints:
        """Per node, edges of the flow into it from nodes that are wanted and equal to it in the columns of ``same``."""
        source, target = self.flow
        kept = wanted[source]
        for column in same:
            kept &= column[source] == column[target]
        return np.bincount(target[kept], minlength=len(self)).astype(np.int64)

    # --- telling ----------------------------------------------------------------------------------------------------

    def at(self, node: int) -> str:
        """A node in words."""
        node = int(node)
        where = [f"node {node} `{self.name[node]}`"]
        if self.layer[node] >= 0:
            where.append(f"layer {self.layer[node]}")
        where.append(f"step {self.step[node]}, micro-batch {self.microbatch[node]}")
        return ", ".join(where)

    def tell(
        self, code: str, nodes: Ints | Mask, message: str | Callable[[int], str], expected: str | None = None
    ) -> Iterator[Diagnostic]:
        """A finding for each of the first nodes (numbers or a mask), and how many there are."""
        found = np.flatnonzero(nodes) if nodes.dtype == np.bool_ else nodes
        for count, node in enumerate(found[:MAX_TOLD].tolist(), start=1):
            text = message if isinstance(message, str) else message(node)
            rest = f" (and {len(found) - MAX_TOLD} more)" if count == MAX_TOLD < len(found) else ""
            yield Diagnostic(code, f"{self.at(node)}: {text}{rest}", None, expected)


def columns_of(graph: FlatGraph | LoadedGraph) -> Columns:
    """The columns of a flat graph or of a document."""
    return _of_flat(graph) if isinstance(graph, FlatGraph) else _of_loaded(graph)


def _table(values: Iterable[Hashable]) -> Table:
    """A table from one value per row."""
    known: dict[Hashable, int] = {}
    codes = np.array([known.setdefault(v, len(known)) for v in values], dtype=np.int64)
    return Table(list(known), codes)


def _merged(column: Column, of: Callable[[Any], Hashable]) -> Table:
    """The column seen through a function; values that look alike become one."""
    small = _table([of(v) for v in column.values])
    codes = small.codes[column.codes] if len(small.codes) else np.zeros(len(column.codes), dtype=np.int64)
    return Table(small.values, codes)


_TRIP = ("step", "microbatch", "chunk")


def _of_loaded(graph: LoadedGraph) -> Columns:
    nodes, edges, header = graph.nodes, graph.edges, graph.header
    plain = {key: _merged(getattr(nodes, key), lambda v: v) for key in ("op", "name", "kind", "module", "transfer")}
    coords = Table(nodes.coords.values, nodes.coords.codes.astype(np.int64))
    detail = Table(nodes.detail.values, nodes.detail.codes.astype(np.int64))
    return Columns(
        phase=header.phase,
        mesh=_mesh(header, nodes.devices.values),
        layers=header.model.layers.count,
        tokens=header.workload.input,
        gpus=header.cluster.gpus,
        **plain,
        phases=_merged(nodes.phase, lambda v: v),
        place=_merged(nodes.coords, lambda v: tuple(sorted((k, c) for k, c in v.items() if k not in _TRIP))),
        group=_merged(nodes.group, tuple),
        devices=_merged(nodes.devices, tuple),
        detail=detail,
        has_output=detail.where(lambda v: bool(v["outputs"])),
        stage=nodes.stage.astype(np.int64),
        layer=nodes.layer.astype(np.int64),
        step=coords.number(lambda v: v.get("step", 0)),
        microbatch=coords.number(lambda v: v.get("microbatch", 0)),
        chunk=coords.number(lambda v: v.get("chunk", 0)),
        source=edges.source.astype(np.int64),
        target=edges.target.astype(np.int64),
        edge=edges.kind.astype(np.int64),
    )


def _mesh(header: Any, devices: Sequence[Sequence[int]]) -> Mesh | None:
    """The mesh of a document's strategy; None where it gives none.

    Decode ranks may follow prefill ranks, so there the first rank is the lowest that occurs.
    """
    if header.strategy is None:
        return None
    degrees = degrees_of(header.strategy, is_moe=header.model.moe is not None)
    if not degrees.fits():
        return None
    first = 0
    if header.phase == "decode":
        first = min((min(d) for d in devices if d), default=0)
    try:
        return mesh_of(degrees, header.model, header.strategy, first)
    except (AxesDoNotNest, KeyError, StopIteration):
        return None


def _of_flat(flat: FlatGraph) -> Columns:
    calls = flat.unrolled
    graph = calls.graph
    template = flat.column("template").astype(np.int64)
    rules = [(f"{b.name}.{n.name}", n, operator(n)) for b, n in calls.templates]
    step = flat.column("step").astype(np.int64)
    item = flat.column("item").astype(np.int64)
    stage = flat.column("stage").astype(np.int64)
    microbatch = np.array([i.microbatch for i in graph.items], dtype=np.int64)
    chunk = np.array([i.chunk for i in graph.items], dtype=np.int64)
    source, target = flat.edges()

    def column(values: Iterable[Hashable]) -> Table:
        small = _table(list(values))
        return Table(small.values, small.codes[template])

    place, devices = _places(flat, template, stage)
    return Columns(
        phase=graph.phase,
        mesh=graph.mesh,
        layers=graph.layers,
        tokens=None,
        gpus=None,
        op=column(r.public for _, _, r in rules),
        name=column(name for name, _, _ in rules),
        kind=column(r.kind.value for _, _, r in rules),
        module=column(n.module for _, n, _ in rules),
        phases=column(graph.phase for _ in rules),
        place=place,
        group=column(_group(flat, number) for number in range(len(rules))),
        devices=devices,
        transfer=column(n.attrs.get("transfer") for _, n, _ in rules),
        detail=None,
        has_output=np.array([bool(n.outputs) for _, n, _ in rules], dtype=np.bool_)[template],
        stage=stage,
        layer=flat.column("layer").astype(np.int64),
        step=step,
        microbatch=microbatch[item],
        chunk=chunk[item],
        source=source.astype(np.int64),
        target=target.astype(np.int64),
        edge=flat.kinds.astype(np.int64),
    )


def _group(flat: FlatGraph, template: int) -> tuple[str, ...]:
    node = flat.unrolled.templates[template][1]
    mesh = flat.unrolled.graph.mesh
    spread = set(flat.expanded[template])
    return mesh.ordered(node.attrs.get("axes") or (a.name for a in mesh.axes if a.name not in spread))


def _places(flat: FlatGraph, template: Ints, stage: Ints) -> tuple[Table, Table]:
    """Coordinates and ranks of every node, made once per (axes, shard) and stage."""
    shapes = sorted(set(flat.expanded))
    shape = np.array([shapes.index(e) for e in flat.expanded], dtype=np.int64)[template]
    shard = flat.shard.astype(np.int64)
    most = int(shard.max(initial=0)) + 1
    stages = int(stage.max(initial=0)) + 1
    spots, spot = np.unique((shape * stages + stage) * most + shard, return_inverse=True)
    places, ranks = [], []
    first = {shapes.index(e): number for number, e in enumerate(flat.expanded)}
    for value in spots.tolist():
        rest, one = divmod(value, most)
        which, at = divmod(rest, stages)
        coords = flat.atom_coords(first[which], one)
        places.append(tuple(sorted(coords.items())))
        ranks.append(tuple(flat.devices(at, coords)))
    spot = spot.reshape(-1)
    return _indirect(places, spot), _indirect(ranks, spot)


def _indirect(values: list[Any], codes: Ints) -> Table:
    small = _table(values)
    return Table(small.values, small.codes[codes])
