"""Orders of a phase's axes: which of them lie on neighbouring GPUs, and what that makes of the latency.

Which nodes a lowered graph has, their shapes and the memory do not depend on the order; only the links that collectives
and messages go over do. So one lowering serves all orders: each gives the mesh other strides, and the network nodes
are costed anew. Orders that send everything over the same links are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...passes.analysis.stage_times import busiest_each, phase_latency, phase_servers, server_times
from ..build import mesh_of, phase_degrees
from ..cost import Hardware, Terms, graph_extents, node_terms
from ..cost.network import boundary_crosses, ranks_in_domain, ring_crosses
from ..ir.graph import Block, Graph, Node
from ..ir.mesh import ATTENTION_VIEW, Mesh
from ..ir.ops import CostClass, operator
from ..spec import Spec
from ..spec.strategy import Phase

Floats = NDArray[np.float64]
Order = tuple[str, ...]
"""Axes from outermost to innermost, as `placement` says it."""

_EVEN = 1e-9
"""Relative distance below which latencies are the same but for rounding."""

USUAL: Order = ("pp", *ATTENTION_VIEW)
"""The order where a strategy says none."""


def orders(mesh: Mesh, domain: int) -> list[Order]:
    """All orders of the axes that have a degree above 1, the usual one first.

    Where no replica leaves a scale-up domain, or less than two axes can change places, the usual one is all there is.
    Axes of degree 1 keep their places.
    """
    starts = mesh.first_rank + np.arange(mesh.dp) * mesh.replica_ranks
    inside = (starts // domain == (starts + mesh.replica_ranks - 1) // domain).all()
    present = [name for name in USUAL if (mesh.pp if name == "pp" else mesh.degree(name)) > 1]
    if inside or len(present) < 2:
        return [USUAL]
    found = []
    for moved in permutations(present):
        names = iter(moved)
        found.append(tuple(next(names) if name in present else name for name in USUAL))
    return found


@dataclass(frozen=True)
class Compared:
    """The orders of a phase.

    Attributes:
        latency: TTFT or TPOT by order, the usual one first; orders over the same links have the same.
        each: Seconds of the busiest stage or send per sequence, alike.
        distinct: One order for each way of using the links, the usual one first.
    """

    latency: Mapping[Order, float]
    each: Mapping[Order, float]
    distinct: tuple[Order, ...]

    @property
    def best(self) -> Order:
        """The order of the smallest latency; the usual one where that differs by rounding only."""
        least = min(self.distinct, key=lambda order: self.latency[order])
        return least if self.latency[least] < self.latency[USUAL] * (1 - _EVEN) else USUAL


class PhaseOrders:
    """Latency of a phase's strategy under other orders of its axes.

    Args:
        spec: The request with strategies and batch.
        graph: Lowered graph of the phase.
        hardware: The links.
    """

    def __init__(self, spec: Spec, graph: Graph, hardware: Hardware) -> None:
        self.spec, self.graph, self.hardware = spec, graph, hardware
        self._network = [(b, n) for b, n in graph.nodes() if _is_network(n)]
        self.ways = 1
        """Ways of using the links that were compared."""

    @property
    def phase(self) -> Phase:
        return self.graph.phase

    @cached_property
    def _others(self) -> Floats:
        """Seconds of the servers with everything but the network."""
        kept, costs = self._some(self.graph, [(b, n) for b, n in self.graph.nodes() if not _is_network(n)])
        return np.asarray(server_times(kept, costs)[0])

    def _network_servers(self, mesh: Mesh) -> Floats:
        """Seconds of the servers with the network alone, on a mesh."""
        return phase_servers(*self._some(replace(self.graph, mesh=mesh), self._network))

    def _some(self, graph: Graph, nodes: Iterable[tuple[Block, Node]]) -> tuple[Graph, dict[tuple[str, str], Terms]]:
        """The graph with some of its nodes only, and their costs."""
        costs: dict[tuple[str, str], Terms] = {}
        extents = graph_extents(graph)
        kept: dict[str, list[Node]] = {}
        for block, node in nodes:
            costs[block.name, node.name] = node_terms(graph, block, node, self.hardware, extents)
            kept.setdefault(block.name, []).append(node)
        return graph.map_blocks(lambda b: replace(b, nodes=tuple(kept.get(b.name, ())))), costs

    def compare(self, *, whole: bool = False) -> Compared | None:
        """The orders and their latencies; None where no order can be better than the usual one.

        Args:
            whole: Tell all orders also where the usual one is seen to be the best at once.
        """
        meshes = {order: self.mesh(order) for order in orders(self.graph.mesh, self.hardware.domain)}
        kinds: dict[tuple[Any, ...], list[Order]] = {}
        for order, mesh in meshes.items():
            if order == USUAL or self.aligned(mesh):
                kinds.setdefault(self._links(mesh), []).append(order)
        self.ways = len(kinds)
        if len(kinds) < 2 and not whole:
            return None
        distinct = [alike[0] for alike in kinds.values()]
        network = {o: self._network_servers(meshes[o]) for o in distinct}
        usual = network[USUAL]
        if not whole and all((usual <= other).all() for other in network.values()):
            return None
        times = {order: self._others + network[alike[0]] for alike in kinds.values() for order in alike}
        told = [order for order in meshes if order in times]
        latency = {order: phase_latency(self.graph, times[order]) for order in told}
        return Compared(latency, {o: busiest_each(self.graph, times[o]) for o in told}, tuple(distinct))

    def mesh(self, order: Order) -> Mesh:
        """The ranks of the phase in an order."""
        strategy = self.spec.strategy(self.phase)
        assert strategy is not None
        placed = strategy.model_copy(update={"placement": order})
        return mesh_of(phase_degrees(self.spec, self.phase), self.spec.model, placed, self.graph.mesh.first_rank)

    def _links(self, mesh: Mesh) -> tuple[Any, ...]:
        """What the costs see of an order: of each group its ranks in a domain, and which messages cross."""
        domain, stages = self.hardware.domain, len(self.graph.stages)
        found: list[Any] = [int(ranks_in_domain(mesh, axes, domain)) for axes in self._groups]
        for _, node in self._network:
            if node.op == "ring_shift":
                found.append(ring_crosses(mesh, node.attrs["axes"], node.attrs["hops"], domain))
        if stages > 1:
            found += [boundary_crosses(mesh, s, (s + 1) % stages, domain) for s in range(stages)]
        return tuple(found)

    @cached_property
    def _groups(self) -> list[tuple[str, ...]]:
        """Axes that some collective goes over, each once."""
        return list(dict.fromkeys(tuple(n.attrs["axes"]) for _, n in self._network if "axes" in n.attrs))

    def aligned(self, mesh: Mesh) -> bool:
        """Whether groups lie in domains as the cost model takes them to lie, on all stages and replicas.

        It takes groups to begin where domains begin. Where they do not, its figure is too good, and an order that is
        written for it must not be.
        """
        return all(aligned(mesh, axes, self.hardware.domain) for axes in self._groups)


def aligned(mesh: Mesh, axes: Sequence[str], domain: int) -> bool:
    """Whether each group over the axes has so many ranks in each of its domains as the cost model takes it to have."""
    size, inside = mesh.size(axes), int(ranks_in_domain(mesh, axes, domain))
    if size % inside:
        return False
    others = [a.name for a in mesh.axes if a.name not in axes]
    ranks = np.array([mesh.ranks(stage, {}, [*others, *axes]) for stage in range(mesh.pp)]).reshape(-1, size)
    shifts = np.unique(np.arange(mesh.dp) * mesh.replica_ranks % domain)
    domains = np.sort((ranks[None] + shifts[:, None, None]) // domain, axis=-1)
    parts = domains.reshape(-1, size // inside, inside)
    return bool((parts[..., 0] == parts[..., -1]).all())


def _is_network(node: Node) -> bool:
    return operator(node).cost_class is CostClass.NETWORK
