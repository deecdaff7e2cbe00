"""Where the time of a phase goes: the latency by operator, the slowest nodes, and single nodes in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...compiler.cost import BOUNDS
from ...compiler.cost.derivation import Derivation, derive, planned
from ...compiler.diagnostics import Diagnostic, DiagnosticError
from ...compiler.ir.graph import Block, Node, Phase
from ...compiler.ir.ops import operator
from ...compiler.spec import ClusterSpec
from .communication import LINKS, node_links
from .latency_path import LatencyPath, latency_path

if TYPE_CHECKING:
    from .phase import PhaseAnalysis

Floats = NDArray[np.float64]

TOP = 10
"""Slowest nodes that are listed."""
_LONGEST_NAME = 64
"""Characters of a wanted name that are looked at for near ones."""


@dataclass(frozen=True)
class Group:
    """Calls of one operator in one module on the latency path.

    Attributes:
        op: Public operator name.
        module: Part of the model.
        count: Calls.
        seconds: Their time; the groups' sum is the latency.
        share: Of the latency.
        bound: What most of that time goes to.
        efficiency: Share of the binding peak that is reached, mean weighted by time.
    """

    op: str
    module: str
    count: int
    seconds: float
    share: float
    bound: str
    efficiency: float


@dataclass(frozen=True)
class NodeFigures:
    """One node of the flat graph and its cost, on its fullest rank.

    Attributes:
        id: Flat id: the one asked for, or the lowest of its shards.
        name: ``block.node``.
        op: Public operator name.
        module: Part of the model.
        stage, layer, step, microbatch, chunk: Where it stands; ``layer`` is None outside layers.
        count: Nodes of that name, over steps, micro-batches, chunks and layers, shards aside.
        flops, hbm_bytes, wire_bytes: Work.
        link: One of ``LINKS``.
        bound: One of ``BOUNDS``.
        efficiency: Share of the binding datasheet peak that is reached.
        seconds: Time.
    """

    id: int
    name: str
    op: str
    module: str
    stage: int
    layer: int | None
    step: int
    microbatch: int
    chunk: int
    count: int
    flops: float
    hbm_bytes: float
    wire_bytes: float
    link: str
    bound: str
    efficiency: float
    seconds: float


@dataclass(frozen=True)
class Top:
    """What the latency of a phase is made of.

    Attributes:
        path: What the latency is the sum of.
        latency: Seconds.
        groups: Longest first; their times add up to the latency.
        slowest: The slowest node of each name, slowest first, at most :data:`TOP`.
    """

    path: LatencyPath
    latency: float
    groups: tuple[Group, ...]
    slowest: tuple[NodeFigures, ...]


@dataclass(frozen=True)
class NodeExplanation:
    """One node and how its cost comes about."""

    phase: Phase
    figures: NodeFigures
    derivation: Derivation


def explain_top(analysis: PhaseAnalysis) -> Top:
    """The latency of a phase by operator and module, and its slowest nodes."""
    path = latency_path(analysis)
    templates = analysis.flat.unrolled.templates
    seconds, bound, efficiency = (path.figures(name) for name in ("time", "bound", "efficiency"))
    keys = [(operator(node).public, node.module) for _, node in templates]
    names = sorted({keys[t] for t in np.unique(path.template).tolist()})
    number = np.array([names.index(key) if key in names else -1 for key in keys])[path.template]
    groups = []
    for index, (op, module) in enumerate(names):
        mine = number == index
        total = float(seconds[mine].sum())
        by_bound = np.bincount(bound[mine].astype(np.int64), weights=seconds[mine], minlength=len(BOUNDS))
        reached = float((efficiency[mine] * seconds[mine]).sum()) / total if total > 0 else 0.0
        share = total / analysis.latency if analysis.latency > 0 else 0.0
        groups.append(Group(op, module, int(mine.sum()), total, share, BOUNDS[int(by_bound.argmax())], reached))
    groups.sort(key=lambda g: (-g.seconds, g.op, g.module))
    return Top(path, analysis.latency, tuple(g for g in groups if g.seconds > 0), _slowest(analysis))


def _slowest(analysis: PhaseAnalysis) -> tuple[NodeFigures, ...]:
    calls, duration = analysis.flat.unrolled, analysis.flat.call_duration
    order = np.lexsort((np.arange(len(calls)), -duration))
    _, first = np.unique(calls.template[order], return_index=True)
    found = [int(order[i]) for i in np.sort(first)[:TOP]]
    return tuple(_figures(analysis, int(analysis.flat.first[call])) for call in found if duration[call] > 0)


def explain_node(phases: Mapping[Phase, PhaseAnalysis], wanted: str, cluster: ClusterSpec) -> list[NodeExplanation]:
    """The nodes that ``wanted`` names, each with its derivation, phase by phase.

    Args:
        phases: Analysed phases.
        wanted: A flat id; or ``block.node``, the name of a node or operator, or a pattern of these with ``*`` and
            ``?``, regardless of case. Of all nodes of one name (layers, micro-batches, steps) the slowest is taken.
        cluster: What the file says of the machines.

    Raises:
        DiagnosticError: PD506, no phase has such a node.
    """
    found = [
        NodeExplanation(phase, _figures(analysis, node), _derivation(analysis, node, cluster))
        for phase, analysis in phases.items()
        for node in _nodes(analysis, wanted)
    ]
    if not found and phases:
        raise DiagnosticError([_unknown(phases, wanted)])
    return found


def _nodes(analysis: PhaseAnalysis, wanted: str) -> list[int]:
    """The id itself, or the slowest node of each name that fits."""
    flat, calls = analysis.flat, analysis.flat.unrolled
    if wanted.isascii() and wanted.isdigit():
        known = len(wanted) < 12 and int(wanted) < flat.node_count
        return [int(wanted)] if known else []
    pattern, found = wanted.lower(), []
    for number, (block, node) in enumerate(calls.templates):
        mine = np.flatnonzero(calls.template == number) if _fits(block, node, pattern) else ()
        if len(mine):
            found.append(int(flat.first[mine[flat.call_duration[mine].argmax()]]))
    return found


def _names(block: Block, node: Node) -> tuple[str, ...]:
    return f"{block.name}.{node.name}", node.name, node.op, operator(node).public


def _fits(block: Block, node: Node, pattern: str) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for name in _names(block, node))


def _unknown(phases: Mapping[Phase, PhaseAnalysis], wanted: str) -> Diagnostic:
    known = dict.fromkeys(name for a in phases.values() for b, n in a.flat.unrolled.templates for name in _names(b, n))
    near = get_close_matches(wanted[:_LONGEST_NAME].lower(), known, n=5, cutoff=0.5)
    ids = ", ".join(f"0 to {a.flat.node_count - 1} in {p}" for p, a in phases.items())
    return Diagnostic(
        "PD506",
        f"no node {wanted[:_LONGEST_NAME]!r} to explain",
        expected=f"`top`, an id ({ids}), or the name of a node or operator, `*` and `?` allowed",
        help=f"did you mean {' or '.join(near)}?" if near else "`--explain top` lists nodes by name",
    )


def _call(analysis: PhaseAnalysis, node: int) -> int:
    return int(np.searchsorted(analysis.flat.first, node, side="right")) - 1


def _figures(analysis: PhaseAnalysis, flat_id: int) -> NodeFigures:
    flat, calls, call = analysis.flat, analysis.flat.unrolled, _call(analysis, flat_id)
    number = int(calls.template[call])
    block, node = calls.templates[number]
    cost, item = analysis.costs[block.name, node.name], analysis.graph.items[int(calls.item[call])]

    def of(values: Any) -> float:
        return _at(analysis, call, values)

    layer = int(calls.layer[call])
    links = node_links(analysis.graph, block, node, analysis.hardware, analysis.traffic)
    return NodeFigures(
        id=flat_id,
        name=f"{block.name}.{node.name}",
        op=operator(node).public,
        module=node.module,
        stage=int(calls.stage[call]),
        layer=None if layer < 0 else layer,
        step=int(calls.step[call]),
        microbatch=item.microbatch,
        chunk=item.chunk,
        count=int((calls.template == number).sum()),
        flops=of(cost.flops),
        hbm_bytes=of(cost.hbm_bytes),
        wire_bytes=of(cost.wire_bytes),
        link=LINKS[int(of(links))],
        bound=BOUNDS[int(of(cost.bound))],
        efficiency=of(cost.efficiency),
        seconds=float(flat.call_duration[call]),
    )


def _at(analysis: PhaseAnalysis, call: int, values: Any) -> float:
    """A call's own value among those of its template."""
    calls, graph = analysis.flat.unrolled, analysis.graph
    block, _ = calls.templates[int(calls.template[call])]
    full = np.broadcast_to(values, (graph.steps, len(graph.items), max(1, len(block.layers))))
    return float(full[calls.step[call], calls.item[call], calls.repetition[call]])


def _derivation(analysis: PhaseAnalysis, flat_id: int, cluster: ClusterSpec) -> Derivation:
    calls, graph, call = analysis.flat.unrolled, analysis.graph, _call(analysis, flat_id)
    block, node = calls.templates[int(calls.template[call])]
    step, item = int(calls.step[call]), int(calls.item[call])
    extents = {name: int(values[step, item]) for name, values in graph.extents().items()}
    found = derive(graph, block, node, analysis.hardware, cluster, extents, int(calls.repetition[call]))
    if node.op != "kv_send":
        return found
    sent = _at(analysis, call, analysis.costs[block.name, node.name].wire_bytes)
    is_planned = abs(sum(found.terms.values()) - analysis.flat.call_duration[call]) > 1e-9 * sum(found.terms.values())
    return planned(found, sent) if is_planned else found
