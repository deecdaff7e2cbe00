"""Utilization of a phase: how much of the machine it uses, what every rank does meanwhile, how even the load is.

Everything is over the phase's *latency*: the makespan of prefill, or the steady interval between two decode steps, in
which every stage runs each micro-batch once. What a rank does meanwhile is read off the calls of the flat graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...compiler.cost import Hardware, node_cost
from ...compiler.cost.network import EXCHANGES, exchange_sent, link_shares, ranks_in_domain
from ...compiler.cost.nodes import compute_dtype, node_crosses, node_work, routed_top_k
from ...compiler.ir.graph import Block, Graph, Node
from ...compiler.ir.mesh import Mesh
from ...compiler.ir.ops import GROUP, CostClass, operator
from ...compiler.ir.types import chunk_bounds
from ...compiler.ir.unrolled import STREAMS
from .schedule import stream_of
from .stage_times import step_servers
from .unroll import node_mask

if TYPE_CHECKING:
    from .phase import PhaseAnalysis

Floats = NDArray[np.float64]

_ROUNDING = 1e-12


@dataclass(frozen=True)
class StageWork:
    """Work of one replica's stages in the latency: [stages] each.

    Attributes:
        model_flops: FLOPs of the model itself, over all ranks: nothing counts twice where ranks compute the same, and
            uneven shards count what they hold.
        ideal_s: GPU seconds of those FLOPs at the datasheet peak of each node's own number format.
        hbm_bytes: Memory traffic of the fullest rank.
        scale_up_bytes, scale_out_bytes: Bytes sent over each link, all ranks.
    """

    model_flops: Floats
    ideal_s: Floats
    hbm_bytes: Floats
    scale_up_bytes: Floats
    scale_out_bytes: Floats


@dataclass(frozen=True)
class RankTime:
    """What ranks of one stage with the same share of the work do during the latency, in seconds.

    Attributes:
        stage: Their stage.
        ranks: Global ranks of replica 0, ascending.
        compute_s: Kernels.
        communication_s: Collectives, which share the stream of the kernels.
        imbalance_s: Waiting for ranks of the same stage that hold more.
        bubble_s: Nothing to run: the pipeline fills, drains, or the stage waits for another.
        send_s: Sends, on a stream of their own beside all that.
    """

    stage: int
    ranks: tuple[int, ...]
    compute_s: float
    communication_s: float
    imbalance_s: float
    bubble_s: float
    send_s: float

    @property
    def busy_s(self) -> float:
        return self.compute_s + self.communication_s

    @property
    def idle_s(self) -> float:
        return self.imbalance_s + self.bubble_s


@dataclass(frozen=True)
class Utilization:
    """Utilization of one phase. Shares are of 1; GPUs are those of one replica, replicas being alike.

    Attributes:
        latency_s: The phase's latency without queue. Busy and idle time of every rank add up to it.
        work: Work per stage.
        stage_gpus: GPUs of a stage.
        capacity: Memory per stage: share of the fullest GPU's that is taken.
        ranks: Times of all ranks, equal ones together.
        hardware: Peaks and links.
    """

    latency_s: float
    work: StageWork
    stage_gpus: int
    capacity: tuple[float, ...]
    ranks: tuple[RankTime, ...]
    hardware: Hardware

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: model FLOPs / (latency x datasheet peak x GPUs)."""
        return self._share(float(self.work.ideal_s.sum()))

    @property
    def mbu(self) -> float:
        """Memory bandwidth utilization: bytes moved / (latency x datasheet bandwidth), mean over the stages."""
        return self._share(float(self.work.hbm_bytes.sum()) * self.stage_gpus / self.hardware.bandwidth)

    @property
    def scale_up(self) -> float:
        """Bytes over links inside domains / (latency x datasheet bandwidth x GPUs)."""
        return self._share(float(self.work.scale_up_bytes.sum()) / self.hardware.scale_up.peak)

    @property
    def scale_out(self) -> float:
        """Bytes over links between domains / (latency x datasheet bandwidth x GPUs)."""
        return self._share(float(self.work.scale_out_bytes.sum()) / self.hardware.scale_out.peak)

    @property
    def memory(self) -> float:
        """Share of the fullest GPU's memory that is taken."""
        return max(self.capacity)

    @property
    def busy(self) -> float:
        """Share of the time that ranks compute or communicate, mean over the ranks."""
        return _ratio(self._mean("busy_s"), self.latency_s)

    @property
    def bubble(self) -> float:
        """Share of the time that ranks wait for the pipeline, mean over the ranks."""
        return _ratio(self._mean("bubble_s"), self.latency_s)

    @property
    def rank_balance(self) -> float:
        """Busy time of the busiest rank over the mean of all: 1 is even."""
        return _balance(max(r.busy_s for r in self.ranks), self._mean("busy_s"))

    @property
    def stage_balance(self) -> float:
        """Busy time of the busiest stage (its fullest rank) over the mean of the stages."""
        stages = {r.stage for r in self.ranks}
        each = [max(r.busy_s for r in self.ranks if r.stage == s) for s in stages]
        return _balance(max(each), sum(each) / len(each))

    def stage_mfu(self, stage: int) -> float:
        """:attr:`mfu` of one stage's GPUs."""
        return _ratio(float(self.work.ideal_s[stage]), self.latency_s * self.stage_gpus)

    def stage_mbu(self, stage: int) -> float:
        """:attr:`mbu` of one stage's GPUs."""
        return _ratio(float(self.work.hbm_bytes[stage]), self.latency_s * self.hardware.bandwidth)

    def _share(self, gpu_seconds: float) -> float:
        return _ratio(gpu_seconds, self.latency_s * self.stage_gpus * len(self.capacity))

    def _mean(self, name: str) -> float:
        total = sum(getattr(r, name) * len(r.ranks) for r in self.ranks)
        return float(total) / sum(len(r.ranks) for r in self.ranks)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _balance(largest: float, mean: float) -> float:
    return largest / mean if mean > 0 else 1.0


def analyse_utilization(analysis: PhaseAnalysis) -> Utilization:
    """Utilization of an analysed phase; decode counts the work of its first step."""
    graph = analysis.graph
    return Utilization(
        latency_s=analysis.latency,
        work=_stage_work(analysis),
        stage_gpus=graph.mesh.stage_ranks,
        capacity=tuple(m.total / analysis.memory.capacity for m in analysis.memory.stages),
        ranks=_rank_times(analysis),
        hardware=analysis.hardware,
    )


# --- work -------------------------------------------------------------------------------------------------------------


def _stage_work(analysis: PhaseAnalysis) -> StageWork:
    graph, hardware = analysis.graph, analysis.hardware
    whole = replace(graph, mesh=_one_rank(graph.mesh))
    found = {name: np.zeros(len(graph.stages)) for name in StageWork.__annotations__}
    extents = {name: value[:1, :, None] for name, value in graph.extents().items()}
    for block, node in graph.nodes():
        rule = operator(node)
        if rule.cost_class is CostClass.FREE:
            continue
        if rule.cost_class is CostClass.NETWORK:
            near, far = _sent(analysis, block, node)
            figures = {"scale_up_bytes": near, "scale_out_bytes": far}
        else:
            flops = 0.0
            if not _is_for_the_ring(node):
                flops = rule.flops(node_work(whole, block, node, extents)) / _groups(block, node)
            figures = {
                "model_flops": flops,
                "ideal_s": flops / hardware.peaks[compute_dtype(rule, node)],
                "hbm_bytes": analysis.costs[block.name, node.name].hbm_bytes,
            }
        for name, values in figures.items():
            np.add.at(found[name], graph.stages_of(block, node), _per_repetition(graph, block, node, values))
    return StageWork(**found)


def _is_for_the_ring(node: Node) -> bool:
    """Work that the model on one GPU does not have: states merged, and a latent block expanded again at each hop."""
    return node.op == "attention_merge" or "weights_of" in node.attrs


def _per_repetition(graph: Graph, block: Block, node: Node, values: Any) -> Floats:
    """Sums over the items of the first step, per repetition of the node."""
    figures = np.asarray(values, dtype=np.float64)
    figures = figures[:1] if figures.ndim == 3 else figures
    full = np.broadcast_to(figures, (1, len(graph.items), max(1, len(block.layers))))
    total: Floats = np.where(node_mask(graph, node)[:1, :, None], full, 0.0).sum(axis=(0, 1))
    return total


def _one_rank(mesh: Mesh) -> Mesh:
    """The mesh with every axis of size 1, on which local sizes are whole ones."""
    return replace(mesh, axes=tuple(replace(axis, size=1) for axis in mesh.axes))


def _groups(block: Block, node: Node) -> int:
    """Routing groups that a node's operand has: on one rank each would hold all tokens."""
    groups = [prod(d.size for d in block.types[i].dims if d.name.startswith(GROUP)) for i in node.inputs]  # type: ignore[misc]
    return max(groups, default=1)


def _sent(analysis: PhaseAnalysis, block: Block, node: Node) -> tuple[Any, Any]:
    """Bytes that all ranks of a stage send over (scale-up, scale-out) links for a node."""
    graph, hardware = analysis.graph, analysis.hardware
    cost = analysis.costs[block.name, node.name]
    each = np.asarray(cost.wire_bytes, dtype=np.float64) * graph.mesh.stage_ranks
    if "axes" in node.attrs:
        ranks = graph.mesh.size(node.attrs["axes"])
        inside = ranks_in_domain(graph.mesh, node.attrs["axes"], hardware.domain)
        if node.op in EXCHANGES:
            # the modes of an exchange send a token to a rank once, or once per expert there
            extents = {name: value[:1, :, None] for name, value in graph.extents().items()}
            work = node_work(graph, block, node, extents)
            sent = exchange_sent(node.op, work.input_bytes(), ranks, inside, hardware, routed_top_k(work))
            near, far = (part * graph.mesh.stage_ranks for part in sent)
            return near, far
        near, far = link_shares(node.op, ranks, inside)
        return each * near, each * far
    if node.op == "kv_send":
        # Bytes of all ranks as the transfer is planned; over both links they count as scale-out.
        return _kv_sent(analysis, block, node, each)
    crosses = np.asarray(node_crosses(graph, block, node, hardware), dtype=bool)
    return np.where(crosses, 0.0, each), np.where(crosses, each, 0.0)


def _kv_sent(analysis: PhaseAnalysis, block: Block, node: Node, busiest: Floats) -> tuple[Any, Any]:
    """The same for KV sends: their planned total, spread over the nodes as the busiest ranks' bytes are."""
    graph = analysis.graph
    rows = [t for t in analysis.traffic if t.op == operator(node).public]
    wire = {(b.name, n.name): analysis.costs[b.name, n.name].wire_bytes for b, n in graph.nodes() if n.op == node.op}
    most = sum(_per_repetition(graph, b, n, wire[b.name, n.name]).sum() for b, n in graph.nodes() if n.op == node.op)
    share = sum(t.bytes for t in rows) / (most * graph.mesh.stage_ranks) if most > 0 else 0.0
    inside = all(t.link == "scale_up" for t in rows)
    return (busiest * share, 0.0) if inside else (0.0, busiest * share)


# --- time -------------------------------------------------------------------------------------------------------------


def _streams(analysis: PhaseAnalysis) -> NDArray[np.int64]:
    """Stream of every call."""
    calls = analysis.flat.unrolled
    return np.array([stream_of(node) for _, node in calls.templates], dtype=np.int64)[calls.template]


def _rank_times(analysis: PhaseAnalysis) -> tuple[RankTime, ...]:
    graph, calls = analysis.graph, analysis.flat.unrolled
    streams, duration = _streams(analysis), analysis.flat.call_duration
    network = np.array([operator(n).cost_class is CostClass.NETWORK for _, n in calls.templates])[calls.template]
    first = calls.step == 0
    main = first & (streams == STREAMS.index("main"))

    def per_stage(which: NDArray[np.bool_], seconds: Floats = duration) -> Floats:
        return np.bincount(calls.stage[which], weights=seconds[which], minlength=len(graph.stages)).astype(np.float64)

    compute, exchanged = per_stage(main & ~network), per_stage(main & network)
    servers = step_servers(graph, analysis.costs).sum(axis=0)
    sends = np.append(servers[1::2], 0.0)[: len(graph.stages)]
    rows = []
    for positions, fewer in _shares(analysis):
        lacking = np.zeros(len(graph.stages)) if fewer is None else per_stage(main & ~network, fewer)
        for stage in range(len(graph.stages)):
            rows.append(
                RankTime(
                    stage=stage,
                    ranks=tuple(sorted(r for p in positions for r in _ranks(graph.mesh, stage, p))),
                    compute_s=float(compute[stage] - lacking[stage]),
                    communication_s=float(exchanged[stage]),
                    imbalance_s=float(lacking[stage]),
                    bubble_s=_positive(float(analysis.latency - compute[stage] - exchanged[stage]), analysis.latency),
                    send_s=float(sends[stage]),
                )
            )
    return tuple(sorted(rows, key=lambda r: (r.stage, r.ranks)))


def _positive(difference: float, of: float) -> float:
    """A difference of sums of many times, 0 where it is below their rounding."""
    return difference if difference > _ROUNDING * of else 0.0


def _ranks(mesh: Mesh, stage: int, position: dict[str, int]) -> list[int]:
    """Global ranks at a position on the attention-DP axes."""
    return mesh.ranks(stage, position, [a.name for a in mesh.axes if a.name not in position])


def _shares(analysis: PhaseAnalysis) -> list[tuple[list[dict[str, int]], Floats | None]]:
    """Positions on the attention-DP axes by the sequences that they hold, and what their calls lack of the fullest's.

    Only what works on a group's own sequences is shorter where it has fewer of them; experts serve the tokens of all.
    """
    graph, calls = analysis.graph, analysis.flat.unrolled
    axes = [graph.mesh.axis(a) for a in graph.mesh.view("adp")]
    sizes = [a.size for a in axes]
    total = prod(sizes)
    coordinates = [dict(zip([a.name for a in axes], map(int, c), strict=True)) for c in np.ndindex(*sizes)]
    held: dict[tuple[int, ...], list[dict[str, int]]] = {}
    for position in coordinates:
        cuts = list(zip(sizes, position.values(), strict=True))
        bounds = [chunk_bounds(item.batch, cuts) for item in graph.items]
        held.setdefault(tuple(high - low for low, high in bounds), []).append(position)
    fullest = tuple(max(counts) for counts in zip(*held, strict=True))
    found: list[tuple[list[dict[str, int]], Floats | None]] = []
    for counts, positions in held.items():
        if counts == fullest:
            found.append((positions, None))
            continue
        own = _times_with(analysis, np.array(counts, dtype=np.int64) * total)
        found.append((positions, analysis.flat.call_duration - calls.gather(own)))
    return found


def _times_with(analysis: PhaseAnalysis, batch: NDArray[np.int64]) -> list[Any]:
    """Times per template where the items hold ``batch`` sequences; a group without any does nothing."""
    graph, hardware = analysis.graph, analysis.hardware
    extents = {name: value[..., None] for name, value in graph.extents().items()}
    shape = extents["batch"].shape
    extents["batch"] = np.broadcast_to(np.maximum(batch, 1)[None, :, None], shape)
    empty = (batch == 0)[None, :, None]
    cut = set(graph.mesh.view("adp"))
    times: list[Any] = []
    for block, node in analysis.flat.unrolled.templates:
        full = analysis.costs[block.name, node.name].time
        if operator(node).cost_class in (CostClass.NETWORK, CostClass.FREE) or not _cut_by(block, node, cut):
            times.append(full)
            continue
        own = np.minimum(node_cost(graph, block, node, hardware, extents).time, full)
        times.append(np.where(empty, 0.0, own))
    return times


def _cut_by(block: Block, node: Node, axes: set[str]) -> bool:
    """Whether a node works on sequences that the axes split."""
    kinds = [block.types[i] for i in node.inputs] + [v.type for v in node.outputs]
    return any(
        dim.name == "batch" and axes & set(cut)
        for kind in kinds
        for dim, cut in zip(kind.dims, kind.placement.shards, strict=True)
    )
