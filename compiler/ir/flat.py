"""The flat DAG: struct of arrays, node ids topological and sorted by level, edges as CSR by target.

Nodes of one call (one node at one step, item and layer) are its shards and have consecutive ids, so most columns are
stored once per call and repeated on demand: a million nodes cost a few bytes each, and no Python object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .graph import Block, Node
from .mesh import ATTENTION_VIEW, EXPERT_VIEW
from .ops import operator
from .unrolled import EDGE_KINDS, Unrolled

if TYPE_CHECKING:
    import networkx

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NodeView:
    """One node of a flat graph, looked at."""

    id: int
    node: Node
    block: Block
    step: int
    item: int
    layer: int
    stage: int
    coords: dict[str, int]
    devices: list[int]
    duration: float


@dataclass(frozen=True)
class FlatGraph:
    """A lowered graph as columns.

    Attributes:
        unrolled: The calls.
        expanded: Per template, the mesh axes over which its shards are spread, outermost first.
        first: Per call, id of its first node; one entry more than calls.
        indptr: Per node, where its in-edges begin in ``sources``; one entry more than nodes.
        sources: Source ids of all edges, grouped by target.
        kinds: Edge kind of each edge, index into ``EDGE_KINDS``.
        call_duration: Seconds of each call.
    """

    unrolled: Unrolled
    expanded: tuple[tuple[str, ...], ...]
    first: Ints
    indptr: Ints
    sources: Ints
    kinds: NDArray[np.int8]
    call_duration: Floats

    @property
    def node_count(self) -> int:
        return int(self.first[-1])

    @property
    def edge_count(self) -> int:
        return len(self.sources)

    @cached_property
    def width(self) -> Ints:
        """Shards of each call."""
        return np.diff(self.first)

    @cached_property
    def call(self) -> Ints:
        """Call of each node."""
        return np.repeat(np.arange(len(self.unrolled), dtype=np.int32), self.width)

    @property
    def shard(self) -> Ints:
        """Shard number of each node within its call."""
        return np.arange(self.node_count, dtype=np.int32) - np.repeat(self.first[:-1], self.width)

    @property
    def duration(self) -> Floats:
        """Seconds of each node."""
        return np.repeat(self.call_duration, self.width)

    def column(self, name: str) -> NDArray[Any]:
        """A call column (template, step, item, layer, stage, level) per node."""
        return np.repeat(getattr(self.unrolled, name), self.width)

    def node(self, number: int) -> NodeView:
        """A view of one node.

        Raises:
            IndexError: no such node.
        """
        if not 0 <= number < self.node_count:
            raise IndexError(number)
        u = self.unrolled
        call = int(np.searchsorted(self.first, number, side="right")) - 1
        block, node = u.templates[u.template[call]]
        shard = number - int(self.first[call])
        stage = int(u.stage[call])
        atoms = self.atom_coords(int(u.template[call]), shard)
        return NodeView(
            id=number,
            node=node,
            block=block,
            step=int(u.step[call]),
            item=int(u.item[call]),
            layer=int(u.layer[call]),
            stage=stage,
            coords=self.named_coords(int(u.template[call]), atoms),
            devices=self.devices(stage, atoms),
            duration=float(self.call_duration[call]),
        )

    def atom_coords(self, template: int, shard: int) -> dict[str, int]:
        """Coordinates of a shard on the atomic axes over which its template is expanded."""
        mesh = self.unrolled.graph.mesh
        coords: dict[str, int] = {}
        for name in reversed(self.expanded[template]):
            shard, coords[name] = divmod(shard, mesh.axis(name).size)
        return coords

    def named_coords(self, template: int, atoms: dict[str, int]) -> dict[str, int]:
        """Coordinates on the named axes of the node's view that the shard determines."""
        mesh = self.unrolled.graph.mesh
        node = self.unrolled.templates[template][1]
        named: dict[str, int] = {}
        for view in EXPERT_VIEW if node.view == "expert" else ATTENTION_VIEW:
            axes = mesh.view(view)
            if axes and all(a in atoms for a in axes):
                value = 0
                for a in axes:
                    value = value * mesh.axis(a).size + atoms[a]
                named[view] = value
        return named

    def devices(self, stage: int, atoms: dict[str, int]) -> list[int]:
        """Global ranks of a node of replica 0."""
        mesh = self.unrolled.graph.mesh
        varying = [a.name for a in mesh.axes if a.name not in atoms]
        return sorted(mesh.ranks(stage, atoms, varying))

    def predecessors(self, number: int) -> Ints:
        return self.sources[self.indptr[number] : self.indptr[number + 1]]

    def edges(self) -> tuple[Ints, Ints]:
        """Sources and targets of all edges."""
        targets = np.repeat(np.arange(self.node_count, dtype=np.int32), np.diff(self.indptr))
        return self.sources, targets

    def to_networkx(self) -> networkx.DiGraph:
        """A networkx graph with op, layer, stage and duration on nodes, kind on edges. For small graphs."""
        import networkx as nx

        graph: nx.DiGraph = nx.DiGraph()
        names = [operator(node).public for _, node in self.unrolled.templates]
        template, layer, stage = (self.column(c).tolist() for c in ("template", "layer", "stage"))
        for number, duration in enumerate(self.duration.tolist()):
            graph.add_node(
                number, op=names[template[number]], layer=layer[number], stage=stage[number], duration=duration
            )
        sources, targets = self.edges()
        for a, b, kind in zip(sources.tolist(), targets.tolist(), self.kinds.tolist(), strict=True):
            graph.add_edge(a, b, kind=EDGE_KINDS[kind])
        return graph
