"""Memory of each GPU: weights, KV cache, activations by liveness, communication buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...compiler.ir.graph import Block, Graph, Node
from ...compiler.ir.ops import ATTENTION_OPS, CostClass, operator

_CACHE_OPS = ("kv_write", "kv_read", "kv_recv")


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU."""

    weights: float
    kv_cache: float
    activations: float
    buffers: float

    @property
    def total(self) -> float:
        return self.weights + self.kv_cache + self.activations + self.buffers


@dataclass(frozen=True)
class MemoryReport:
    """Memory of the fullest rank of every stage, and the GPU's capacity, in bytes."""

    stages: tuple[Memory, ...]
    capacity: float

    @property
    def fullest(self) -> Memory:
        return max(self.stages, key=lambda m: m.total)

    @property
    def headroom(self) -> float:
        return self.capacity - self.fullest.total


def analyse_memory(graph: Graph, capacity: float, context: int, *, other_weights: float = 0.0) -> MemoryReport:
    """Memory per stage.

    Args:
        graph: A lowered graph.
        capacity: Bytes of a GPU.
        context: Tokens per sequence that the cache must hold in the end (input + output).
        other_weights: Bytes of a second copy of weights that the same GPUs hold for the other phase.
    """
    stages = range(len(graph.stages))
    weights = [other_weights + own for own in weight_bytes(graph)]
    cache = [0.0] * len(stages)
    for block, node in graph.nodes():
        kept = _cache_bytes(graph, block, node, context)
        for stage in graph.stages_of(block, node):
            cache[stage] += kept
    reports = []
    for stage in stages:
        blocks = [b for b in graph.blocks if any(stage in graph.stages_of(b, n) for n in b.nodes)]
        activations = max((peak_activations(graph, b) for b in blocks), default=0.0)
        buffers = max((_buffer_bytes(graph, b, n) for b in blocks for n in b.nodes), default=0.0)
        reports.append(Memory(weights[stage], cache[stage], activations, buffers))
    return MemoryReport(tuple(reports), capacity)


def weight_bytes(graph: Graph) -> list[float]:
    """Weight bytes of the fullest rank of each stage."""
    weights = [0.0] * len(graph.stages)
    for block, node in graph.nodes():
        local = _weight_bytes(graph, node)
        for stage in graph.stages_of(block, node):
            weights[stage] += local
    return weights


def _weight_bytes(graph: Graph, node: Node) -> float:
    """Bytes of a node's weights on the fullest rank. A tied LM head on the embedding's stage shares its table.

    The hops of a ring that work with the weights of another node hold none of their own.
    """
    if "weights_of" in node.attrs or (node.attrs.get("tied") and len(graph.stages) == 1):
        return 0.0
    extents: Mapping[str, Any] = {}
    return float(sum(p.type.local_bytes(extents, graph.mesh) for p in node.params if not p.const))


def _cache_bytes(graph: Graph, block: Block, node: Node, context: int) -> float:
    """Bytes of a layer's cache on the fullest rank, all micro-batches in flight; a sliding layer keeps its window."""
    if node.op != "kv_write":
        return 0.0
    window = next((n.attrs.get("window") for n in block.nodes if n.op in ATTENTION_OPS), None)
    length = min(context, window) if window else context
    kind = node.outputs[0].type
    total = 0.0
    for item in graph.items:
        if item.first:
            extents = {"batch": item.batch, "new": length, "context": length}
            total += float(kind.local_bytes(extents, graph.mesh))
    return total


def peak_activations(graph: Graph, block: Block) -> float:
    """Largest sum of live values over the nodes of a block in program order, on the fullest rank and item."""
    extents = _largest_extents(graph)
    sizes = {name: float(np.max(t.local_bytes(extents, graph.mesh))) for name, t in block.types.items()}
    for node in block.nodes:
        if node.op in _CACHE_OPS or operator(node).cost_class is CostClass.FREE:
            # The cache is counted apart; a slice or a phase node is a view.
            sizes.update((v.name, 0.0) for v in node.outputs)
    for arg in block.args:
        if arg.carry != "layer":
            sizes[arg.value.name] = 0.0
    last_use = {name: index for index, node in enumerate(block.nodes) for name in node.inputs}
    last_use[block.result] = len(block.nodes)
    live = {a.value.name for a in block.args}
    peak = 0.0
    for index, node in enumerate(block.nodes):
        live |= {v.name for v in node.outputs}
        peak = max(peak, sum(sizes[name] for name in live))
        live = {name for name in live if last_use.get(name, -1) > index}
    return peak


def _buffer_bytes(graph: Graph, block: Block, node: Node) -> float:
    """Staging buffer of a collective or a receive: a copy of what it sends or gets."""
    if operator(node).cost_class is not CostClass.NETWORK or not node.inputs:
        return 0.0
    extents = _largest_extents(graph)
    return float(sum(np.max(block.types[i].local_bytes(extents, graph.mesh)) for i in node.inputs))


def _largest_extents(graph: Graph) -> dict[str, Any]:
    """Extents of every item at the last step."""
    return {name: values[-1] for name, values in graph.extents().items()}
