"""Memory of each GPU: weights, KV cache, activations by liveness, communication buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...compiler.ir.graph import Block, Graph, Node
from ...compiler.ir.mesh import Mesh
from ...compiler.ir.ops import ATTENTION_OPS, CostClass, Resharding, operator
from ...compiler.ir.types import Number, TensorType

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


def analyse_memory(
    graph: Graph,
    capacity: float,
    context: int,
    *,
    other_weights: float = 0.0,
    cached: Sequence[int] | None = None,
) -> MemoryReport:
    """Memory per stage.

    Args:
        graph: A lowered graph.
        capacity: Bytes of a GPU.
        context: Tokens per sequence that the cache must hold in the end (input + output).
        other_weights: Bytes of a second copy of weights that the same GPUs hold for the other phase.
        cached: Sequences of each micro-batch of a replica whose caches lie there at once; default the graph's.
    """
    stages = range(len(graph.stages))
    extents = _largest_extents(graph)
    batches = [item.batch for item in graph.items if item.first] if cached is None else cached
    weights = [other_weights + own for own in weight_bytes(graph)]
    cache = [0.0] * len(stages)
    for block, node in graph.nodes():
        if node.op == "kv_write":
            kept = sum(float(cache_bytes(graph, block, batch, context)) for batch in batches)
            for stage in graph.stages_of(block, node):
                cache[stage] += kept
    reports = []
    for stage in stages:
        blocks = [b for b in graph.blocks if any(stage in graph.stages_of(b, n) for n in b.nodes)]
        activations = max((float(peak_activations(graph, b, extents)) for b in blocks), default=0.0)
        buffers = max((float(buffer_bytes(graph, b, n, extents)) for b in blocks for n in b.nodes), default=0.0)
        reports.append(Memory(weights[stage], cache[stage], activations, buffers))
    return MemoryReport(tuple(reports), capacity)


def weight_bytes(graph: Graph) -> list[float]:
    """Weight bytes of the fullest rank of each stage."""
    weights = [0.0] * len(graph.stages)
    for block, node in graph.nodes():
        local = 0.0 if tied_away(node, len(graph.stages)) else float(param_bytes(graph, node))
        for stage in graph.stages_of(block, node):
            weights[stage] += local
    return weights


def tied_away(node: Node, stages: int) -> bool:
    """Whether the node has no weights of its own.

    A tied LM head on the embedding's stage shares its table; hops of a ring share those of another node.
    """
    return "weights_of" in node.attrs or (bool(node.attrs.get("tied")) and stages == 1)


def param_bytes(graph: Graph, node: Node) -> Number:
    """Bytes of a node's weights on the fullest rank, whoever shares them."""
    extents: Mapping[str, Any] = {}
    return sum(p.type.local_bytes(extents, graph.mesh) for p in node.params if not p.const)


def cache_bytes(graph: Graph, block: Block, batch: Number, context: int) -> Number:
    """Bytes of the cache of one layer and one micro-batch on the fullest rank; a sliding layer keeps its window.

    Args:
        graph: A lowered graph.
        block: A block that writes to the cache.
        batch: Sequences of the micro-batch over all attention-DP groups; a number or an array.
        context: Tokens per sequence that the cache must hold.
    """
    window = next((n.attrs.get("window") for n in block.nodes if n.op in ATTENTION_OPS), None)
    length = min(context, window) if window else context
    kind = next(n for n in block.nodes if n.op == "kv_write").outputs[0].type
    return kind.local_bytes({"batch": batch, "new": length, "context": length}, graph.mesh)


def peak_activations(graph: Graph, block: Block, extents: Mapping[str, Number]) -> Number:
    """Largest sum of live values over the nodes of a block in program order, on the fullest rank and item.

    Args:
        graph: A lowered graph.
        block: One of its blocks.
        extents: ``batch``, ``new`` and ``context`` as arrays whose first axis runs over the items; further axes, and
            sizes of mesh axes given as arrays, run over strategies. Resharding over a single rank is none: what it
            gives is what it takes.
    """
    sizes: dict[str, Number] = {name: _fullest(t, graph.mesh, extents) for name, t in block.types.items()}
    for node in block.nodes:
        if node.op in _CACHE_OPS or operator(node).cost_class is CostClass.FREE:
            # The cache is counted apart; a slice or a phase node is a view.
            sizes.update((v.name, 0.0) for v in node.outputs)
    for arg in block.args:
        if arg.carry != "layer":
            sizes[arg.value.name] = 0.0
    views = [(n.outputs[0].name, n.inputs[0], alone) for n in block.nodes if (alone := _alone(graph, n)) is not False]
    last_use = {name: index for index, node in enumerate(block.nodes) for name in node.inputs}
    last_use[block.result] = len(block.nodes)
    live = {a.value.name for a in block.args}
    peak: Number = 0.0
    for index, node in enumerate(block.nodes):
        live |= {v.name for v in node.outputs}
        peak = np.maximum(peak, _held(live, sizes, views))
        live = {name for name in live if last_use.get(name, -1) > index}
    return peak


def _held(live: set[str], sizes: Mapping[str, Number], views: Sequence[tuple[str, str, Number]]) -> Number:
    """Bytes of live values; one that is a mere view of another lives on in it."""
    if not views:
        return sum(sizes[name] for name in sorted(live))
    present: dict[str, Number] = dict.fromkeys(live, True)
    for name, source, alone in reversed(views):
        if name in present:
            shown = np.logical_and(present[name], alone)
            present[source] = np.logical_or(present.get(source, False), shown)
            present[name] = np.logical_and(present[name], np.logical_not(alone))
    return sum(np.where(here, sizes[name], 0.0) if here is not True else sizes[name] for name, here in present.items())


def buffer_bytes(graph: Graph, block: Block, node: Node, extents: Mapping[str, Number]) -> Number:
    """Staging buffer of a collective or a receive: a copy of what it sends or gets, on the fullest rank and item.

    ``extents`` as in :func:`peak_activations`.
    """
    if operator(node).cost_class is not CostClass.NETWORK or not node.inputs:
        return 0.0
    size = sum(_fullest(block.types[i], graph.mesh, extents) for i in node.inputs)
    alone = _alone(graph, node)
    return size if alone is False else np.where(alone, 0.0, size)


def _alone(graph: Graph, node: Node) -> Number:
    """Whether the node reshards over a single rank, which only a mesh of arrays has: False or an array."""
    if not isinstance(operator(node), Resharding):
        return False
    ranks = graph.mesh.size(node.attrs["axes"])
    return False if isinstance(ranks, int) else np.asarray(ranks) == 1


def _fullest(kind: TensorType, mesh: Mesh, extents: Mapping[str, Number]) -> Number:
    """Bytes of a value on the fullest rank and item; the first axis of the extents runs over the items."""
    local = np.asarray(kind.local_bytes(extents, mesh))
    whole = np.shape(extents["batch"])
    return local.max(axis=0) if local.ndim == len(whole) and local.ndim else local


def _largest_extents(graph: Graph) -> dict[str, Any]:
    """Extents of every item at the last step."""
    return {name: values[-1] for name, values in graph.extents().items()}
