"""Communication: bytes and busy seconds per kind of node, mesh axis and link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...compiler.cost import Hardware, NodeCost
from ...compiler.cost.network import ranks_in_domain
from ...compiler.cost.nodes import node_crosses
from ...compiler.ir.graph import Block, Graph, Node
from ...compiler.ir.ops import CostClass, operator
from ...compiler.ir.types import Number
from .transfer import SendCost
from .unroll import node_mask

LINKS = ("none", "scale_up", "scale_out", "both")
"""What bytes go over; hierarchical collectives and exchanges may use both."""


@dataclass(frozen=True)
class Traffic:
    """Traffic of one kind over one set of axes.

    Attributes:
        op: Public operator name.
        axes: The axes in the user's words, or ``pp``.
        link: scale_up, scale_out, or both for a hierarchical collective.
        bytes: Bytes on the wire, all ranks of one replica, all steps.
        seconds: Time of one rank.
        count: Collectives or messages of one rank.
    """

    op: str
    axes: str
    link: str
    bytes: float
    seconds: float
    count: int


def analyse_communication(
    graph: Graph,
    costs: Mapping[tuple[str, str], NodeCost],
    hardware: Hardware,
    sends: Mapping[tuple[str, str], SendCost] | None = None,
) -> tuple[Traffic, ...]:
    """Traffic of a lowered graph, one row per operator, axes and link, in a stable order.

    Args:
        graph: The graph.
        costs: Cost of each (block, node).
        hardware: The links.
        sends: KV sends whose transfer is planned: their ranks need not send equally much.
    """
    planned = sends or {}
    rows: dict[tuple[str, str, str], list[float]] = {}
    for block, node in graph.nodes():
        if operator(node).cost_class is not CostClass.NETWORK or node.op in ("recv", "kv_recv"):
            continue
        cost = costs[block.name, node.name]
        repetitions = max(1, len(block.layers))
        shape = (graph.steps, len(graph.items), repetitions)
        mask = np.broadcast_to(node_mask(graph, node)[..., None], shape)
        send = planned.get((block.name, node.name))
        each = cost.wire_bytes * graph.mesh.stage_ranks if send is None else send.total
        sent = float(np.where(mask, each, 0).sum())
        # A layer's ranks are one stage's: seconds add up over a stage's own layers only.
        seconds = float(np.where(mask, cost.time, 0).sum())
        link = send.link if send else _link(graph, node, hardware)
        row = rows.setdefault((operator(node).public, _axes(graph, node), link), [0.0, 0.0, 0])
        row[0] += sent
        row[1] += seconds
        row[2] += int(mask.sum())
    return tuple(Traffic(*key, row[0], row[1], int(row[2])) for key, row in sorted(rows.items()))


def bytes_by_kind(traffic: tuple[Traffic, ...]) -> dict[str, float]:
    """Bytes on the wire per operator."""
    totals: dict[str, float] = {}
    for row in traffic:
        totals[row.op] = totals.get(row.op, 0.0) + row.bytes
    return totals


def node_links(graph: Graph, block: Block, node: Node, hardware: Hardware, traffic: Sequence[Traffic]) -> Number:
    """Links that a node's bytes go over, as indices into :data:`LINKS`; one, or by (1, 1, repetition).

    Args:
        graph: A lowered graph.
        block: The node's block.
        node: Any node.
        hardware: The links.
        traffic: Traffic of the graph, which knows the links of planned KV transfers.
    """
    if operator(node).cost_class is not CostClass.NETWORK or node.op in ("recv", "kv_recv"):
        return LINKS.index("none")
    if node.op == "kv_send":
        links = {row.link for row in traffic if row.op == operator(node).public}
        return LINKS.index(links.pop() if len(links) == 1 else "both")
    if "axes" not in node.attrs:
        crosses = np.asarray(node_crosses(graph, block, node, hardware), dtype=bool).reshape(1, 1, -1)
        return np.where(crosses, LINKS.index("scale_out"), LINKS.index("scale_up"))
    return LINKS.index(_link(graph, node, hardware) if graph.mesh.size(node.attrs["axes"]) > 1 else "none")


def _axes(graph: Graph, node: Node) -> str:
    return graph.mesh.describe(node.attrs["axes"]) if "axes" in node.attrs else "pp"


def _link(graph: Graph, node: Node, hardware: Hardware) -> str:
    if "axes" not in node.attrs:
        return "scale_up" if graph.mesh.gpus <= hardware.domain else "scale_out"
    ranks = graph.mesh.size(node.attrs["axes"])
    inside = int(ranks_in_domain(graph.mesh, node.attrs["axes"], hardware.domain))
    return "scale_up" if inside == ranks else "scale_out" if inside == 1 else "both"
