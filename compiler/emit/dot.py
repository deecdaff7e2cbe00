"""Graphviz source of a phase, by the conventions of diagram reviews.

One cluster per GPU group with concrete GPU numbers; rectangles compute, ellipses communicate, parallelograms route,
split and aggregate, cylinders keep KV; dashed edges follow a router's choice, dotted ones the KV state. Order edges are
scheduling and are not drawn. Identical layers, stages and shards are drawn once unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from types import MappingProxyType
from typing import Any

import graphviz

from ...passes.analysis import PhaseAnalysis
from ..diagnostics import Diagnostic, DiagnosticError, Severity
from ._compose import EXPANSIONS, compose, count_boxes
from ._scene import Box, Cluster, Link, Scene

WARN_NODES = 2_000
"""Larger drawings take seconds to lay out and are hard to read."""
MAX_NODES = 5_000
"""Larger drawings take Graphviz minutes: 500 nodes were laid out in 0.2 s, 3,700 in 13 s."""

_HOT = 0.1
"""Share of the busy time from which a box is marked."""


@dataclass(frozen=True)
class Palette:
    """All colours of the drawings."""

    fill: MappingProxyType[str, str] = field(
        default_factory=lambda: MappingProxyType(
            {"compute": "#e3eefa", "communication": "#fde6cb", "kv": "#dff0dc", "control": "#f1ecf7"}
        )
    )
    edge: MappingProxyType[str, str] = field(
        default_factory=lambda: MappingProxyType(
            {"data": "#3c4650", "pipeline": "#b45f06", "sync": "#8a8f94", "state": "#3d8b37", "route": "#7a4fa3"}
        )
    )
    frame: MappingProxyType[str, str] = field(
        default_factory=lambda: MappingProxyType({"stage": "#f7f8fa", "layer": "#ffffff", "group": "#fafafa"})
    )
    border: str = "#4a5560"
    off_path: str = "#a9b0b7"
    hot: str = "#c0392b"
    quiet: str = "#5b6570"


PALETTE = Palette()

_EDGE_STYLE = {"route": "dashed", "state": "dotted", "sync": "solid", "pipeline": "bold", "data": "solid"}

LEGEND = (
    "rectangle: compute | ellipse: communication | parallelogram: routing, split, aggregation | cylinder: KV cache | "
    "double frame: folded, drawn elsewhere",
    "solid edge: data | bold: pipeline | dashed: a router's choice | dotted: KV state | "
    "order edges (the schedule) are not drawn",
    "dimensions and bytes are those of one GPU, the fullest | % is the share of the GPU's busy time, red from 10 % | "
    "dark frame: on the critical path",
)


def render_dot(analysis: PhaseAnalysis, expand: frozenset[str] = frozenset()) -> str:
    """DOT source of a phase.

    Args:
        analysis: An analysed phase.
        expand: What to unfold: ``layers``, ``shards`` (adp, sp, edp, ep), ``ranks`` (these and tp, etp). Pipeline items
            and decode steps after the first stay folded, as the title says.

    Returns:
        The source, the same byte for byte for the same phase.

    Raises:
        DiagnosticError: PD603, more than :data:`MAX_NODES` nodes.
        ValueError: ``expand`` names something else.
    """
    found = check_drawing(analysis, expand)
    if found is not None and found.is_error:
        raise DiagnosticError([found])
    return scene_to_dot(compose(analysis, expand), f"{analysis.graph.name}.{analysis.graph.phase}")


def check_drawing(analysis: PhaseAnalysis, expand: frozenset[str] = frozenset()) -> Diagnostic | None:
    """PD603 where a drawing would be large: a warning above :data:`WARN_NODES`, an error above :data:`MAX_NODES`.

    Raises:
        ValueError: ``expand`` names something that cannot be unfolded.
    """
    if unknown := expand - EXPANSIONS:
        raise ValueError(f"cannot expand {sorted(unknown)}; known: {sorted(EXPANSIONS)}")
    nodes = count_boxes(analysis, expand)
    if nodes <= WARN_NODES:
        return None
    too_large = nodes > MAX_NODES
    return Diagnostic(
        "PD603",
        f"the {analysis.graph.phase} drawing has {nodes:,} nodes",
        expected=f"at most {MAX_NODES if too_large else WARN_NODES:,}",
        help=_smaller(analysis, expand),
        severity=Severity.ERROR if too_large else Severity.WARNING,
    )


def _smaller(analysis: PhaseAnalysis, expand: frozenset[str]) -> str:
    """Which expansions to drop, smallest loss first."""
    ways = sorted((expand - {w} for w in sorted(expand)), key=lambda e: (-len(e), count_boxes(analysis, e)))
    fitting = next((w for w in ways if count_boxes(analysis, w) <= WARN_NODES), frozenset())
    dropped = ", ".join(sorted(expand - fitting))
    left = f"leave {dropped} out of --expand ({count_boxes(analysis, fitting):,} nodes)"
    return f"{left if dropped else 'use fewer stages'}, or read the whole graph from --emit json or --emit columns"


def scene_to_dot(scene: Scene, name: str) -> str:
    """Graphviz source of a composed drawing."""
    graph = graphviz.Digraph(name=_plain(name))
    graph.attr(label=_title(scene.title), labelloc="t", labeljust="l", fontname="Helvetica", fontsize="12")
    graph.attr(rankdir="TB", nodesep="0.3", ranksep="0.3", pad="0.3", newrank="true", tooltip=_plain(scene.title[0]))
    graph.attr("node", fontname="Helvetica", fontsize="10", margin="0.12,0.06", style="filled", penwidth="1")
    graph.attr("edge", fontname="Helvetica", fontsize="9", arrowsize="0.7")
    for cluster in scene.clusters:
        _draw_cluster(graph, cluster)
    _draw_links(graph, scene.links)
    return str(graph.source)


def _draw_cluster(graph: Any, cluster: Cluster) -> None:
    with graph.subgraph(name=f"cluster_{cluster.id}") as frame:
        frame.attr(label=_plain(cluster.title), labeljust="l", fontsize="13" if cluster.level == "stage" else "11")
        frame.attr(style="filled,rounded", fillcolor=PALETTE.frame[cluster.level], color=PALETTE.off_path)
        frame.attr(fontcolor=PALETTE.border, tooltip=_plain(cluster.title))
        # Graphviz lays inner clusters that no edge constrains from right to left.
        frames = [c for c in cluster.children if isinstance(c, Cluster)]
        for child in cluster.children:
            if isinstance(child, Box):
                _draw_box(frame, child)
            else:
                _draw_cluster(frame, frames.pop())


def _draw_box(graph: Any, box: Box) -> None:
    hot = box.share >= _HOT and not box.folded
    border = PALETTE.hot if hot else PALETTE.border if box.critical else PALETTE.off_path
    extra = {"peripheries": "2"} if box.folded else {}
    if box.shape != "box":
        # Round and slanted shapes leave room around the text by themselves.
        extra["margin"] = "0.02,0.02"
    graph.node(
        box.id,
        label=_label(box),
        shape=box.shape,
        fillcolor=PALETTE.fill[box.look],
        color=border,
        **({"penwidth": "2"} if hot else {}),
        **({"tooltip": _plain(box.tooltip)} if box.tooltip else {}),
        **{"class": box.look},
        **extra,
    )


def _draw_links(graph: Any, links: Iterable[Link]) -> None:
    for link in links:
        attributes = {"color": PALETTE.edge[link.kind], "class": link.kind}
        if (style := _EDGE_STYLE[link.kind]) != "solid":
            attributes["style"] = style
        if link.label:
            attributes["label"] = _plain(link.label)
        if link.loose:
            attributes["constraint"] = "false"
        graph.edge(link.source, link.target, **attributes)


def _label(box: Box) -> str:
    """HTML-like label: the operator in bold, then the lines."""
    lines = [f"<b>{escape(box.title)}</b>", *(escape(line) for line in box.lines)]
    return f"<{'<br/>'.join(lines)}>"


def _title(lines: tuple[str, ...]) -> str:
    head, *rest = (escape(line) for line in lines)
    legend = (f'<font point-size="10" color="{PALETTE.quiet}">{escape(line)}</font>' for line in LEGEND)
    body = [f'<font point-size="18"><b>{head}</b></font>', *rest, *legend]
    return "<" + "".join(f'{line}<br align="left"/>' for line in body) + ">"


def _plain(text: str) -> str:
    """Text that is neither markup nor an escape sequence to Graphviz."""
    return str(graphviz.nohtml(graphviz.escape(text)))
