"""The KV transfer from prefill to decode: who sends what to whom, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...compiler.cost import Hardware, NodeCost
from ...compiler.ir.graph import Block, Graph, Node, Phase
from ...compiler.ir.ops import ATTENTION_OPS
from ...compiler.ir.overlap import CacheLayout, MicroBatch, Overlap, overlap
from ...compiler.ir.types import TensorType
from ...compiler.spec.dtypes import dtype

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Exchange:
    """The transfers of one layer as a cost, one entry per micro-batch of prefill.

    Attributes:
        bytes: Bytes that the busiest rank sends.
        total: Bytes that all ranks of replica 0 send.
        seconds: Until the busiest rank, sender or receiver, is through; 0 where nothing moves.
        latency: The part of ``seconds`` that is hop latency and launch.
        ideal: Seconds that its bytes take at the links' datasheet bandwidth.
    """

    bytes: Floats
    total: Floats
    seconds: Floats
    latency: Floats
    ideal: Floats


@dataclass(frozen=True)
class Route:
    """The caches of layers that move alike: same cache type, same stage before and after.

    Attributes:
        layers: The layers.
        overlap: Elements from shard to shard, for each of the layers.
        element_bytes: Bytes of an element.
    """

    layers: tuple[int, ...]
    overlap: Overlap
    element_bytes: float

    @property
    def stages(self) -> tuple[int, int]:
        """Stage that sends, stage that receives."""
        return self.overlap.have.stage, self.overlap.want.stage

    @property
    def layer_bytes(self) -> float:
        """Bytes that one layer moves between GPUs."""
        return float(self.overlap.moved.sum()) * self.element_bytes

    def peers(self, phase: Phase, microbatch: int, devices: Sequence[int]) -> dict[int, float]:
        """Bytes of one layer that a group of ranks exchanges with each other rank, ascending by rank.

        Args:
            phase: Whose micro-batch and ranks: prefill asks for targets, decode for sources.
            microbatch: Micro-batch of that phase.
            devices: Global ranks.
        """
        sends = phase == "prefill"
        layout = self.overlap.have if sends else self.overlap.want
        shards = microbatch * layout.mesh.gpus + np.asarray(devices, dtype=np.int64) - layout.mesh.first_rank
        entries = self.overlap.entries_from(shards) if sends else self.overlap.entries_to(shards)
        others = (self.overlap.target_devices if sends else self.overlap.source_devices)[entries]
        moved = self.overlap.moved[entries]
        ranks, which = np.unique(others[moved > 0], return_inverse=True)
        sizes = np.bincount(which, weights=moved[moved > 0], minlength=len(ranks)) * self.element_bytes
        return dict(zip(ranks.tolist(), sizes.tolist(), strict=True))

    def exchange(self, hardware: Hardware) -> Exchange:
        """What one layer's transfer costs, per micro-batch of prefill.

        Both links of a rank, and both directions of a link, work at the same time.
        """
        flow = self.overlap
        count = len(flow.have.microbatches)
        sent, received = (np.zeros((2, count)) for _ in range(2))
        sizes = np.multiply(flow.moved, self.element_bytes, dtype=np.float64)
        crosses = flow.crosses(hardware.domain)
        for link, used in enumerate((~crosses, crosses)):
            mine: Floats = np.where(used, sizes, 0.0)
            sent[link] = _busiest(flow.source_microbatches, flow.source_devices, mine, count)
            received[link] = _busiest(flow.source_microbatches, flow.target_devices, mine, count)
        links = (hardware.scale_up, hardware.scale_out)
        bandwidth = np.array([[link.bandwidth] for link in links])
        hops = np.array([[link.latency] for link in links])
        busy = (np.maximum(sent, received) / bandwidth).max(axis=0)
        latency = np.where(sent > 0, hops, 0.0).max(axis=0) + np.where(busy > 0, hardware.launch, 0.0)
        own = (flow.source_devices - flow.have.mesh.first_rank) < flow.have.mesh.replica_ranks
        return Exchange(
            bytes=_busiest(flow.source_microbatches, flow.source_devices, sizes, count),
            total=_sums(flow.source_microbatches, np.where(own, sizes, 0.0), count),
            seconds=busy + latency,
            latency=latency,
            ideal=(np.maximum(sent, received) / np.array([[link.peak] for link in links])).max(axis=0),
        )


def _busiest(microbatch: Ints, device: Ints, sizes: Floats, count: int) -> Floats:
    """Per micro-batch, the largest sum of sizes over the devices."""
    width = int(device.max(initial=0)) + 1
    busiest: Floats = _sums(microbatch * width + device, sizes, count * width).reshape(count, width).max(axis=1)
    return busiest


def _sums(group: Ints, sizes: Floats, count: int) -> Floats:
    return np.asarray(np.bincount(group, weights=sizes, minlength=count), dtype=np.float64)


@dataclass(frozen=True)
class TransferPlan:
    """How the KV cache gets from the prefill layout into the decode layout, all replicas of both.

    Attributes:
        routes: Layers that move alike, in the order of their first layer.
    """

    routes: tuple[Route, ...]

    @cached_property
    def of_layer(self) -> dict[int, Route]:
        """Route of each layer."""
        return {layer: route for route in self.routes for layer in route.layers}

    @property
    def total_bytes(self) -> float:
        """Bytes that move between GPUs, all layers."""
        return sum(r.layer_bytes * len(r.layers) for r in self.routes)

    @cached_property
    def sent(self) -> dict[int, float]:
        """Bytes that each rank sends to others, all layers and micro-batches; ranks that send none are left out."""
        return self._per_rank("source_devices")

    @cached_property
    def received(self) -> dict[int, float]:
        """Bytes that each rank gets from others, all layers and micro-batches; ranks that get none are left out."""
        return self._per_rank("target_devices")

    def _per_rank(self, end: str) -> dict[int, float]:
        totals: dict[int, float] = {}
        for route in self.routes:
            sizes = np.bincount(getattr(route.overlap, end), weights=route.overlap.moved)
            for rank in np.flatnonzero(sizes).tolist():
                totals[rank] = totals.get(rank, 0.0) + float(sizes[rank]) * route.element_bytes * len(route.layers)
        return dict(sorted(totals.items()))


def plan_transfer(prefill: Graph, decode: Graph, sequences: int | None = None) -> TransferPlan:
    """Match every layer's ``kv_send`` with its ``kv_recv``.

    Sequences are numbered over the whole batch in the order of micro-batches on both sides. A sliding layer moves the
    tokens of its window only, which is what decode keeps. A layer that lacks either node has no route.

    Args:
        prefill: Lowered prefill graph.
        decode: Lowered decode graph of the same model and workload.
        sequences: Sequences of the batch over all replicas; default as many as both graphs have room for.
    """
    chunks: dict[int, list[int]] = {}
    for item in prefill.items:
        chunks.setdefault(item.microbatch, []).append(item.new)
    prompt = sum(chunks[0])
    firsts = [i for i in prefill.items if i.first]
    written = tuple(MicroBatch(i.batch, tuple(chunks[i.microbatch])) for i in firsts)
    wanted = tuple(MicroBatch(i.batch, (prompt,)) for i in decode.items)
    sends, receives = _ends(prefill, "kv_send"), _ends(decode, "kv_recv")
    routes: dict[tuple[Any, ...], list[int]] = {}
    for layer in sorted(sends.keys() & receives.keys()):
        stages = prefill.stage_of_layer[layer], decode.stage_of_layer[layer]
        routes.setdefault((*sends[layer], *receives[layer], *stages), []).append(layer)
    order = str(prefill.meta.get("token_order", "contiguous"))
    made = []
    for (have, _, want, window, before, after), layers in routes.items():
        source = CacheLayout(have, prefill.mesh, before, written, order)
        target = CacheLayout(want, decode.mesh, after, wanted)
        tokens = range(max(0, prompt - window) if window else 0, prompt)
        made.append(Route(tuple(layers), overlap(source, target, tokens, sequences), dtype(want.dtype).bytes))
    return TransferPlan(tuple(made))


def _ends(graph: Graph, op: str) -> dict[int, tuple[TensorType, int | None]]:
    """Type of the cache that each layer's transfer moves, and the window of its attention."""
    ends: dict[int, tuple[TensorType, int | None]] = {}
    for block in graph.with_role("layer"):
        node = next((n for n in block.nodes if n.op == op), None)
        if node is not None:
            kind = block.types[node.inputs[0]] if node.inputs else node.outputs[0].type
            window = next((n.attrs.get("window") for n in block.nodes if n.op in ATTENTION_OPS), None)
            ends.update(dict.fromkeys(block.layers, (kind, window)))
    return ends


@dataclass(frozen=True)
class SendCost:
    """Cost of a ``kv_send`` node as planned.

    Attributes:
        cost: The busiest rank's.
        total: Bytes that all ranks of replica 0 send, shaped like the cost's figures.
        link: scale_up, scale_out, or both where ranks use either.
    """

    cost: NodeCost
    total: Floats
    link: str


def send_costs(plan: TransferPlan, graph: Graph, hardware: Hardware) -> dict[tuple[str, str], SendCost]:
    """Costs of the ``kv_send`` nodes of a prefill graph as planned, shaped (1, items, repetitions)."""
    exchanges = {id(route): route.exchange(hardware) for route in plan.routes}
    microbatches = np.array([i.microbatch for i in graph.items])
    result: dict[tuple[str, str], SendCost] = {}
    for block, node in _planned(plan, graph):
        each = [exchanges[id(plan.of_layer[layer])] for layer in block.layers]
        sent, total, seconds, latency, ideal = (
            np.stack([getattr(e, name)[microbatches] for e in each], axis=-1)[None]
            for name in ("bytes", "total", "seconds", "latency", "ideal")
        )
        efficiency = np.divide(ideal, seconds, out=np.zeros_like(ideal), where=seconds > 0)
        bound = np.where(seconds == 0, 0, np.where(seconds - latency >= latency, 3, 4))
        link = _link([plan.of_layer[layer] for layer in block.layers], hardware.domain)
        result[block.name, node.name] = SendCost(NodeCost(0, 0, sent, seconds, bound, efficiency), total, link)
    return result


def _link(routes: Sequence[Route], domain: int) -> str:
    """The links that transfers over any of the routes use; scale_up where nothing moves."""
    crossing = {bool(c) for r in routes for c in np.unique(r.overlap.crosses(domain)[r.overlap.moved > 0])}
    return "both" if len(crossing) > 1 else "scale_out" if True in crossing else "scale_up"


def _planned(plan: TransferPlan, graph: Graph) -> list[tuple[Block, Node]]:
    return [
        (block, node)
        for block, node in graph.nodes()
        if node.op == "kv_send" and all(layer in plan.of_layer for layer in block.layers)
    ]
