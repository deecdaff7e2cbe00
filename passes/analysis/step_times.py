"""Stage times of one lowered phase for arrays of (batch, new tokens, context): one evaluation, no lowering per point.

A serving engine runs steps of ever other sizes. The graph of a strategy does not depend on them, so the costs of its
nodes are evaluated once with arrays as extents, and summed per server (stage, send, token return) and per part of the
model. The parts are apart because a mixed step runs them on different tokens: projections, experts and collectives
on the tokens of prompt chunks and decodes together, attention on each kind alone, the head on last tokens only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...compiler.cost import Hardware, node_cost, node_costs
from ...compiler.cost.nodes import compute_dtype, quantizing_time
from ...compiler.ir.graph import Block, Graph, Node
from ...compiler.ir.ops import CostClass, operator
from ...compiler.ir.unrolled import STREAMS
from .schedule import stream_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PartTimes:
    """Seconds per server, [points, servers], by the tokens that a node works on.

    Attributes:
        body: Nodes over the new tokens: projections, norms, experts, collectives, sends.
        attention: Nodes over a sequence's context: attention, its cache, the expansion of a latent cache.
        head: Nodes over one token per sequence: final norm, LM head, sampling.
    """

    body: Floats
    attention: Floats
    head: Floats

    @property
    def total(self) -> Floats:
        """All parts together: the servers' times of a step of this phase alone."""
        return self.body + self.attention + self.head


class StepTimes:
    """Step times of a lowered phase on given hardware, over arrays.

    The servers are those of :func:`.stage_times.server_times`: stage 0, send 0, stage 1, ..., last stage, and in
    decode the token return; one server where there is one stage.
    """

    def __init__(
        self,
        graph: Graph,
        hardware: Hardware,
        *,
        experts: Graph | None = None,
        fused: Collection[str] = (),
        within: Collection[str] = (),
        quantizing: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        """Times of ``graph`` on ``hardware``.

        Args:
            graph: A lowered phase.
            hardware: GPU and links.
            experts: The same phase with the experts laid out otherwise; its expert nodes stand in for those of
                ``graph``. So can expert parallelism be costed that does without a dispatch: every rank sees all
                tokens, works on its own experts, and the graph's all-reduce adds the results.
            fused: Operators that the kernels before or after them do along: they move their bytes, without a launch.
            within: Operators whose time is part of a neighbour's measured one; they take none.
            quantizing: By format, operators that hand their result to a product in that format, so that it need not
                be brought there by a kernel of its own.
        """
        self.graph = graph
        self.hardware = hardware
        self.experts = experts
        self.fused = frozenset(fused)
        self.within = frozenset(within)
        self.quantizing = quantizing

    @property
    def groups(self) -> int:
        """Attention-DP groups of a stage, over which the sequences of a step are split."""
        mesh = self.graph.mesh
        return int(mesh.size(mesh.view("adp")))

    def parts(self, batch: ArrayLike, new: ArrayLike, context: ArrayLike) -> PartTimes:
        """Times of steps of ``batch`` sequences with ``new`` tokens each, ``context`` tokens after the step.

        Args:
            batch: Sequences of one replica, over all attention-DP groups. All arguments broadcast to [points].
            new: New tokens per sequence.
            context: Tokens per sequence after the step, the new ones included.
        """
        flat = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=np.int64)) for v in (batch, new, context)))
        extents = {name: v[:, None] for name, v in zip(("batch", "new", "context"), flat, strict=True)}
        costs = node_costs(self.graph, self.hardware, extents)
        if self.experts is not None:
            others = ((b, n) for b, n in self.experts.nodes() if n.op == "expert")
            costs |= {(b.name, n.name): node_cost(self.experts, b, n, self.hardware, extents) for b, n in others}
        points = len(flat[0])
        times = {part: np.zeros((points, self._servers)) for part in ("body", "attention", "head")}
        for block, node, part, servers in self._placed:
            time = np.asarray(costs[block.name, node.name].time, dtype=np.float64)
            if node.op in self.fused:
                time = np.maximum(time - self.hardware.launch, 0.0)
            if (block.name, node.name) in self._fed:
                spared = quantizing_time(self.graph, block, node, self.hardware, extents)
                time = np.maximum(time - spared, self.hardware.launch)
            full = np.broadcast_to(time, (points, len(servers)))
            for repetition, server in enumerate(servers):
                times[part][:, server] += full[:, repetition]
        return PartTimes(**times)

    @cached_property
    def kernels(self) -> Floats:
        """[servers] kernels that a step launches: compute nodes and collectives that span several ranks."""
        counts = np.zeros(self._servers)
        for _, node, _, servers in self._placed:
            if operator(node).cost_class is CostClass.NETWORK and self.graph.mesh.size(node.attrs.get("axes", ())) == 1:
                continue
            if operator(node).cost_class is not CostClass.FREE and node.op not in self.fused:
                np.add.at(counts, servers, 1)
        return counts

    @cached_property
    def _fed(self) -> frozenset[tuple[str, str]]:
        """Products whose input comes in the format of their weights."""
        fed = set()
        for block, node in self.graph.nodes():
            if node.op == "linear":
                makers = {m.op for m in block.nodes for v in m.outputs if v.name == node.inputs[0]}
                format_ = self.hardware.variant(compute_dtype(operator(node), node))
                if makers & set(self.quantizing.get(format_, ())):
                    fed.add((block.name, node.name))
        return frozenset(fed)

    @property
    def _servers(self) -> int:
        stages = len(self.graph.stages)
        return 2 * stages - 1 + (1 if stages > 1 and self.graph.phase == "decode" else 0)

    @cached_property
    def _placed(self) -> list[tuple[Block, Node, str, NDArray[np.int64]]]:
        """Nodes that occupy a stage or a send stream, with their part and the server of each repetition."""
        placed = []
        for block, node in self.graph.nodes():
            stream = STREAMS[stream_of(node)]
            if stream in ("main", "send") and node.items != "early" and node.op not in self.within:
                servers = 2 * self.graph.stages_of(block, node).astype(np.int64) + (stream == "send")
                placed.append((block, node, _part(block, node), servers))
        return placed


def _part(block: Block, node: Node) -> str:
    if any(block.types[name].has("context") for name in (*node.inputs, *(v.name for v in node.outputs))):
        return "attention"
    return "head" if block.role == "epilogue" and node.op not in ("last_token", "send") else "body"
