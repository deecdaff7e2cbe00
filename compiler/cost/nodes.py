"""Cost of every node of a lowered graph: FLOPs, bytes, time and what binds it.

All figures are those of the fullest rank, as arrays that broadcast over (steps, items, repetitions); sizes of mesh
axes may be arrays too, so that one graph costs many strategies of the same structure at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..ir.graph import Block, Graph, Node
from ..ir.ops import CostClass, Kind, Operator, Work, operator
from ..ir.ops.moe import GROUP
from ..ir.types import Number, Rows
from ..spec.dtypes import ACTIVATION_DTYPE, DTYPES
from ..spec.dtypes import dtype as lookup_dtype
from ._terms import Terms
from .attention import decode_attention_time, prefill_attention_time
from .experts import Load, experts_time, skewed_load, uniform_load
from .gemm import gemm_time
from .hardware import Hardware
from .network import (
    EXCHANGES,
    boundary_crosses,
    collective_time,
    exchange_time,
    ranks_in_domain,
    ring_crosses,
    transfer_time,
    wire_bytes,
)
from .streaming import streaming_time

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
        bound: Index into :data:`BOUNDS`: the largest cause.
        efficiency: Share of the datasheet peak of the binding resource that the node reaches; of the busiest resource
            where latency binds; 0 where nothing is done.
    """

    flops: Number
    hbm_bytes: Number
    wire_bytes: Number
    time: Number
    bound: Number
    efficiency: Number = 0.0


_NOTHING = NodeCost(0, 0, 0, 0.0, 0)
_RECEIVES = ("recv", "kv_recv")
"""They take no time of their own."""
_Figures: TypeAlias = tuple[Terms, Number, Number, Number, tuple[Number, Number, Number]]
"""Seconds by cause, FLOPs, HBM bytes, wire bytes, and seconds of compute, memory and network at datasheet peaks."""


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
        extents = graph_extents(graph)
    return {(block.name, node.name): node_cost(graph, block, node, hardware, extents) for block, node in graph.nodes()}


def graph_extents(graph: Graph) -> Rows:
    """``batch``, ``new`` and ``context`` of a graph's items and steps, shaped (steps, items, 1)."""
    return Rows(**{name: value[..., None] for name, value in graph.extents().items()})


def node_times(graph: Graph, hardware: Hardware) -> dict[tuple[str, str], Terms]:
    """Seconds of all nodes by cause: what :func:`node_costs` sums up, for whoever wants no more."""
    extents = graph_extents(graph)
    return {(block.name, node.name): node_terms(graph, block, node, hardware, extents) for block, node in graph.nodes()}


def node_cost(graph: Graph, block: Block, node: Node, hardware: Hardware, extents: Mapping[str, Number]) -> NodeCost:
    """Cost of one node."""
    rule = operator(node)
    if node.op in _RECEIVES:
        return _NOTHING
    if rule.cost_class is CostClass.FREE:
        return NodeCost(0, rule.hbm_bytes(node_work(graph, block, node, extents)), 0, 0.0, 0)
    return _cost(*_figures(graph, block, node, hardware, extents))


def node_work(graph: Graph, block: Block, node: Node, extents: Mapping[str, Number]) -> Work:
    """Local shapes of a node."""
    return Work(node, [block.types[i] for i in node.inputs], graph.mesh, extents)


def node_terms(graph: Graph, block: Block, node: Node, hardware: Hardware, extents: Mapping[str, Number]) -> Terms:
    """Seconds of one node by cause: what :func:`node_cost` sums up."""
    if node.op in _RECEIVES or operator(node).cost_class is CostClass.FREE:
        return Terms(0.0)
    return _figures(graph, block, node, hardware, extents)[0]


def _figures(graph: Graph, block: Block, node: Node, hardware: Hardware, extents: Mapping[str, Number]) -> _Figures:
    """Arguments of :func:`_cost`."""
    rule, work = operator(node), node_work(graph, block, node, extents)
    if rule.kind is Kind.P2P or node.op == "ring_shift":
        return _transfer(graph, block, work, hardware)
    if rule.cost_class is CostClass.NETWORK:
        return _collective(work, hardware)
    flops, moved = rule.flops(work), rule.hbm_bytes(work)
    dtype = compute_dtype(rule, node)
    terms = _stated(_kernel(rule, work, graph.phase, dtype, flops, moved, hardware), dtype, flops, moved, hardware)
    return terms, flops, moved, 0, (flops / hardware.peaks[dtype], moved / hardware.bandwidth, 0.0)


def compute_dtype(rule: Operator, node: Node) -> str:
    """Format whose unit does the arithmetic: the weights' format for projections and experts, else the activations'."""
    if rule.cost_class in (CostClass.GEMM, CostClass.GROUPED_GEMM):
        return next((p.type.dtype for p in node.params if p.type.dtype in DTYPES and not p.const), ACTIVATION_DTYPE)
    return ACTIVATION_DTYPE


def _cost(terms: Terms, flops: Number, moved: Number, wire: Number, ideal: tuple[Number, Number, Number]) -> NodeCost:
    """The figures of a node; ``ideal`` is seconds of compute, memory and network at datasheet peaks."""
    causes: Any = np.broadcast_arrays(terms.compute, terms.memory, terms.network, terms.latency)
    bound: Any = np.argmax(np.stack(causes), axis=0)
    time = np.asarray(terms.time, dtype=float)
    busiest = np.maximum(np.maximum(ideal[0], ideal[1]), ideal[2])
    reached: Any = np.select([bound == 0, bound == 1, bound == 2], ideal, busiest)
    some = time > 0
    efficiency = np.where(some, reached / np.where(some, time, 1.0), 0.0)
    return NodeCost(flops, moved, wire, time, np.where(some, bound + 1, 0), efficiency)


def _stated(terms: Terms, dtype: str, flops: Number, moved: Number, hardware: Hardware) -> Terms:
    """The terms under the efficiencies that the file states, which replace everything fitted but the latency.

    Where it states none, time is charged to memory if the FLOPs take less than the bytes at datasheet peaks. Also the
    time that the host needs to issue the kernel where no graph is captured.
    """
    compute, memory = hardware.compute_efficiency, hardware.bandwidth_efficiency
    if compute is not None:
        terms = terms._replace(compute=flops / (hardware.peaks[dtype] * compute))
    if memory is not None:
        terms = terms._replace(memory=moved / (hardware.bandwidth * memory))
    if compute is not None or memory is not None:
        terms = terms._replace(time=terms.latency + np.maximum(terms.compute, terms.memory))
    else:
        # tiles that do not fill the chip: what such a kernel waits for is memory
        starved = flops / hardware.peaks[dtype] < moved / hardware.bandwidth
        terms = terms._replace(
            compute=np.where(starved, 0.0, terms.compute),
            memory=np.where(starved, np.maximum(terms.compute, terms.memory), terms.memory),
        )
    return terms._replace(time=np.maximum(terms.time, hardware.issue)) if hardware.issue else terms


def _kernel(
    rule: Operator, work: Work, phase: str, dtype: str, flops: Number, moved: Number, hardware: Hardware
) -> Terms:
    """Seconds of a compute node, by its class."""
    if rule.cost_class is CostClass.GEMM:
        depth = rule.depth(work)
        weights = local_weights(work)
        return gemm_time(
            flops / (2 * np.maximum(weights, 1)), weights / np.maximum(depth, 1), depth, moved,
            peak=hardware.peaks[dtype], bandwidth=hardware.bandwidth, units=hardware.units,
            parameters=hardware.calibration.gemm(hardware.variant(dtype)), eager=not hardware.graphs,
        )  # fmt: skip
    if rule.cost_class is CostClass.ATTENTION:
        return _attention(work, phase, moved, hardware)
    if rule.cost_class is CostClass.GROUPED_GEMM:
        return _experts(work, expert_load(work, hardware.skew), dtype, hardware)
    return streaming_time(moved, bandwidth=hardware.bandwidth, parameters=hardware.calibration.streaming)


def _experts(work: Work, load: Load, dtype: str, hardware: Hardware) -> Terms:
    weight = next(p.type for p in work.node.params if p.name == "gate")
    return experts_time(
        load, work.param("gate")["hidden"], work.param("gate")["expert_ffn"], lookup_dtype(weight.dtype).bytes,
        peak=hardware.peaks[dtype], bandwidth=hardware.bandwidth, units=hardware.units,
        parameters=hardware.calibration.experts(hardware.variant(dtype)),
    )  # fmt: skip


def loaded_seconds(graph: Graph, block: Block, node: Node, hardware: Hardware, load: Load) -> Number:
    """Seconds of an expert node under a load of its own instead of the uniform one.

    Args:
        graph: A lowered graph.
        block: The node's block.
        node: An expert node.
        hardware: The GPU.
        load: Rows of the rank's slots.
    """
    work = node_work(graph, block, node, {})
    dtype = compute_dtype(operator(node), node)
    gate = work.param("gate")
    weights, rows, hit = 3 * gate["hidden"] * gate["expert_ffn"], load.total, load.experts.sum(axis=-1)
    bytes_of = lookup_dtype(next(p.type.dtype for p in node.params if p.name == "gate")).bytes
    moved = hit * weights * bytes_of + rows * 2 * gate["hidden"] * lookup_dtype(ACTIVATION_DTYPE).bytes
    return _stated(_experts(work, load, dtype, hardware), dtype, 2 * rows * weights, moved, hardware).time


def routed_tokens(graph: Graph, block: Block, node: Node, extents: Mapping[str, Number]) -> Number:
    """Tokens whose rows reach the group of a rank with an expert node."""
    return _tokens(node_work(graph, block, node, extents))


def quantizing_time(
    graph: Graph, block: Block, node: Node, hardware: Hardware, extents: Mapping[str, Number]
) -> Number:
    """Seconds of a product's cost in which its input is brought to the format of its weights.

    Measured products of narrow formats include that kernel. What an empty call takes longer than one in bf16 is its
    launch; the preparing passes over the input are its bytes.
    """
    rule, work = operator(node), node_work(graph, block, node, extents)
    fitted = hardware.calibration
    own, plain = fitted.gemm(hardware.variant(compute_dtype(rule, node))), fitted.gemm(ACTIVATION_DTYPE)
    rows = rule.flops(work) / (2 * np.maximum(local_weights(work), 1))
    passes = own.prepare * 3 * rows * rule.depth(work) / hardware.bandwidth + own.row_s * rows
    return max(own.latency_s - plain.latency_s, 0.0) + passes


def local_weights(work: Work) -> Number:
    """Elements of the weights of a product on one rank, biases left out."""
    biases = {"bias", *work.attrs.get("biases", ())}
    return sum(
        p.type.local_elements(work.extents, work.mesh) for p in work.node.params if not p.const and p.name not in biases
    )


def _attention(work: Work, phase: str, moved: Number, hardware: Hardware) -> Terms:
    query, cache = work.input(0), work.input(1)
    latent = bool(work.attrs.get("latent"))
    qk_dim = query["head_dim" if "head_dim" in query else "latent"]
    v_dim = work.attrs["v_dim"]
    # keys and values of unequal width are those of MLA, expanded
    mla = latent or (isinstance(qk_dim, int) and qk_dim != v_dim)
    variant = "fp8" if work.input_types[1].dtype == "fp8" else "bf16"
    chip = {"peak": hardware.peaks[ACTIVATION_DTYPE], "bandwidth": hardware.bandwidth, "units": hardware.units}
    if phase == "decode":
        return decode_attention_time(
            query["batch"], cache["context"], query["heads"], cache.get("kv_heads", 1), qk_dim, v_dim, moved,
            parameters=hardware.calibration.decode(variant, mla=mla, mha=_own_heads(work)), **chip,
        )  # fmt: skip
    new, context = work.extents["new"], work.extents["context"]
    return prefill_attention_time(
        query["batch"], new, context - new, query["heads"], qk_dim, v_dim, moved,
        work.input_types[1].local_bytes(work.extents, work.mesh),
        window=work.attrs.get("window") or np.inf, kv_heads=cache.get("kv_heads", 1), share=attended_share(work),
        parameters=hardware.calibration.prefill(variant, mla=mla), **chip,
    )  # fmt: skip


def attended_share(work: Work) -> Number:
    """Share of an item's (query, key) pairs that one rank computes: its queries, and the keys of its block."""
    share = work.input(0)["seq"] / work.extents["new"]
    if work.node.op != "attention_partial":
        return share
    keys = 1 / work.attrs["ring"] if "ring" in work.attrs else work.input(1)["context"] / work.extents["context"]
    return share * keys


def _own_heads(work: Work) -> bool:
    """Whether every query head has a KV head of its own (MHA), over all ranks."""
    query, cache = work.input_types[:2]
    if not cache.has("kv_heads"):
        return False
    return query.dims[query.index("heads")].size == cache.dims[cache.index("kv_heads")].size


def expert_load(work: Work, skew: float) -> Load:
    """Rows of the local slots of an expert node: uniform, or on the rank that holds the heaviest slot."""
    routed = work.input_types[0]
    slots = routed.dims[routed.index("slot")].size
    rows, tokens = work.input(0), _tokens(work)
    top_k = routed.density * slots  # type: ignore[operator]
    if skew:
        return skewed_load(tokens, top_k, slots, rows["slot"], skew)
    return uniform_load(tokens, top_k, slots, rows["slot"])


def _tokens(work: Work) -> Number:
    """Tokens of the group whose rows an expert node gets."""
    rows = work.input(0)
    tokens: Number = rows["rows"]
    for dim, size in rows.items():
        if dim.startswith(GROUP):
            tokens = tokens * size
    return tokens


def _collective(work: Work, hardware: Hardware) -> _Figures:
    op, axes = work.node.op, work.attrs["axes"]
    ranks = work.mesh.size(axes)
    payload = work.input_bytes()
    inside = ranks_in_domain(work.mesh, axes, hardware.domain)
    if op in EXCHANGES:
        top_k = routed_top_k(work)
        terms = exchange_time(op, payload, ranks, inside, hardware, top_k=top_k)
    else:
        terms = collective_time(op, payload, ranks, inside, hardware)
    return terms, 0, 0, wire_bytes(op, payload, ranks), (0.0, 0.0, terms.ideal)


def routed_top_k(work: Work) -> Number:
    """Expected rows of one token among the routed ones."""
    routed = work.input_types[0]
    slots = routed.dims[routed.index("slot")].size
    return np.maximum(routed.density * slots, 1.0)  # type: ignore[operator]


def _transfer(graph: Graph, block: Block, work: Work, hardware: Hardware) -> _Figures:
    """Sends carry the cost. In a hop of a ring every rank sends its block at once, and the slowest link decides."""
    payload: Any = work.input_bytes() if work.node.inputs else work.output_bytes()
    terms = transfer_time(payload, node_crosses(graph, block, work.node, hardware), hardware)
    return terms, 0, 0, payload, (0.0, 0.0, terms.ideal)


def node_crosses(graph: Graph, block: Block, node: Node, hardware: Hardware) -> Number:
    """Whether the message leaves its scale-up domain, per repetition of the node; of a ring, any rank's message.

    ``crosses`` and ``ring_crosses`` in the graph's ``meta`` answer for all: a mesh of arrays has no ranks to look at.
    """
    if node.op == "ring_shift" and "ring_crosses" in graph.meta:
        return graph.meta["ring_crosses"]
    if "crosses" in graph.meta:
        return bool(graph.meta["crosses"])
    if node.op == "ring_shift":
        return ring_crosses(graph.mesh, node.attrs["axes"], node.attrs["hops"], hardware.domain)
    if node.op == "kv_send":
        # The pools are apart unless everything fits one domain.
        return bool(graph.meta.get("pool_gpus", graph.mesh.gpus) > hardware.domain)
    if block.role == "boundary":
        stages = graph.stages_of(block, node)
        return np.array([boundary_crosses(graph.mesh, int(s), int(s) + 1, hardware.domain) for s in stages])
    return boundary_crosses(graph.mesh, len(graph.stages) - 1, 0, hardware.domain)
