"""Cost of every node of a lowered graph: FLOPs, bytes, time and what binds it.

All figures are those of the fullest rank, as arrays that broadcast over (steps, items, repetitions); sizes of mesh
axes may be arrays too, so that one graph costs many strategies of the same structure at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.graph import Block, Graph, Node
from ..ir.ops import CostClass, Kind, Operator, Work, operator
from ..ir.types import Number
from ..spec.dtypes import ACTIVATION_DTYPE, DTYPES
from .hardware import Hardware
from .network import boundary_crosses, collective_time, ranks_in_domain, ring_crosses, transfer_time, wire_bytes

BOUNDS = ("none", "compute", "memory", "network", "latency")
"""What a node's time goes to; :attr:`NodeCost.bound` indexes it."""


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node on its fullest rank.

    Attributes:
        flops: Floating-point operations.
        hbm_bytes: Bytes to and from memory (KVRead: bytes it names, which Attention streams).
        wire_bytes: Bytes sent over links by one rank.
        time: Seconds, launch overhead included.
        bound: Index into :data:`BOUNDS`.
    """

    flops: Number
    hbm_bytes: Number
    wire_bytes: Number
    time: Number
    bound: Number


def node_costs(
    graph: Graph, hardware: Hardware, extents: Mapping[str, Number] | None = None
) -> dict[tuple[str, str], NodeCost]:
    """Costs of all nodes by (block name, node name).

    Args:
        graph: A graph at any level (before ``tp`` the figures are those of the unfinished lowering).
        hardware: GPU and links.
        extents: ``batch``, ``new`` and ``context``; default those of the graph's items and steps, shaped
            (steps, items, 1) so that a node's repetitions may differ.
    """
    if extents is None:
        extents = {name: value[..., None] for name, value in graph.extents().items()}
    return {(block.name, node.name): node_cost(graph, block, node, hardware, extents) for block, node in graph.nodes()}


def node_cost(graph: Graph, block: Block, node: Node, hardware: Hardware, extents: Mapping[str, Number]) -> NodeCost:
    """Cost of one node."""
    rule = operator(node)
    work = Work(node, [block.types[i] for i in node.inputs], graph.mesh, extents)
    if node.op == "ring_shift":
        return _ring_shift(work, hardware)
    if rule.kind is Kind.P2P:
        return _transfer(graph, block, work, hardware)
    if rule.cost_class is CostClass.NETWORK:
        return _collective(work, hardware)
    flops, moved = rule.flops(work), rule.hbm_bytes(work)
    if rule.cost_class is CostClass.FREE:
        return NodeCost(0, moved, 0, 0.0, 0)
    compute = flops / hardware.flops(compute_dtype(rule, node))
    memory = moved / hardware.hbm
    busy = np.maximum(compute, memory)
    bound = np.where(compute >= memory, 1, 2)
    return NodeCost(flops, moved, 0, busy + hardware.launch, np.where(busy < hardware.launch, 4, bound))


def compute_dtype(rule: Operator, node: Node) -> str:
    """Format whose unit does the arithmetic: the weights' format for projections and experts, else the activations'."""
    if rule.cost_class in (CostClass.GEMM, CostClass.GROUPED_GEMM):
        return next((p.type.dtype for p in node.params if p.type.dtype in DTYPES and not p.const), ACTIVATION_DTYPE)
    return ACTIVATION_DTYPE


def _collective(work: Work, hardware: Hardware) -> NodeCost:
    axes = work.attrs["axes"]
    ranks = work.mesh.size(axes)
    payload = work.input_bytes()
    inside = ranks_in_domain(work.mesh, axes, hardware.domain)
    transfer, latency = collective_time(work.node.op, payload, ranks, inside, hardware)
    active = np.asarray(ranks) > 1
    time = np.where(active, transfer + latency + hardware.launch, 0.0)
    bound = np.where(active, np.where(transfer >= latency, 3, 4), 0)
    return NodeCost(0, 0, wire_bytes(work.node.op, payload, ranks), time, bound)


def _transfer(graph: Graph, block: Block, work: Work, hardware: Hardware) -> NodeCost:
    """Sends carry the cost; a receive takes no time of its own."""
    payload: Any = work.input_bytes() if work.node.inputs else work.output_bytes()
    if work.node.op in ("recv", "kv_recv"):
        return NodeCost(0, 0, 0, 0.0, 0)
    transfer, latency = transfer_time(payload, _crosses(graph, block, work.node, hardware), hardware)
    time = transfer + latency + hardware.launch
    return NodeCost(0, 0, payload, time, np.where(transfer >= latency, 3, 4))


def _ring_shift(work: Work, hardware: Hardware) -> NodeCost:
    """A hop: every rank sends its block at once; the slowest link of the ring decides."""
    axes, hops = work.attrs["axes"], work.attrs["hops"]
    payload = work.input_bytes()
    transfer, latency = transfer_time(payload, ring_crosses(work.mesh, axes, hops, hardware.domain), hardware)
    time = transfer + latency + hardware.launch
    return NodeCost(0, 0, payload, time, np.where(transfer >= latency, 3, 4))


def _crosses(graph: Graph, block: Block, node: Node, hardware: Hardware) -> Number:
    """Whether the message leaves its scale-up domain, per repetition of the node."""
    if node.op == "kv_send":
        # The pools are apart unless everything fits one domain.
        return bool(graph.meta.get("pool_gpus", graph.mesh.gpus) > hardware.domain)
    if block.role == "boundary":
        stages = graph.stages_of(block, node)
        return np.array([boundary_crosses(graph.mesh, int(s), int(s) + 1, hardware.domain) for s in stages])
    return boundary_crosses(graph.mesh, len(graph.stages) - 1, 0, hardware.domain)
