"""A foreign graph with what its labels say, and its adjacency, computed once for all checks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ....grammar.dot_reader import DotEdge, DotGraph, DotNode, Drawing
from ._labels import Facts, facts_of

__all__ = ["View"]

_LEGEND_SHAPES = frozenset({"plaintext", "plain", "none", "note", "underline", "point", "tab"})
_LEGEND = re.compile(
    r"^title$|legend|summary|statistic|overview|\bnotes?\b|parameters\b|specification|comparison|analysis|"
    r"\bmetrics\b|key facts",
    re.I,
)


@dataclass
class View:
    """One graph of a drawing, without its legend."""

    drawing: Drawing
    graph: DotGraph
    facts: dict[str, Facts] = field(default_factory=dict)
    legend: list[DotNode] = field(default_factory=list)
    edges: list[DotEdge] = field(default_factory=list)
    before: dict[str, list[str]] = field(default_factory=dict)
    after: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, drawing: Drawing, graph: DotGraph) -> View:
        view = cls(drawing, graph)
        for name, node in graph.nodes.items():
            if is_legend(node):
                view.legend.append(node)
            else:
                view.facts[name] = facts_of(graph, node)
                view.before[name], view.after[name] = [], []
        for edge in graph.edges:
            if edge.source in view.facts and edge.target in view.facts and edge.attribute("style") != "invis":
                view.edges.append(edge)
                view.after[edge.source].append(edge.target)
                view.before[edge.target].append(edge.source)
        return view

    @property
    def about(self) -> str:
        """What the file says of the drawing as a whole: name, title, first comments, legend."""
        texts = [
            self.graph.name.replace("_", " "),
            self.graph.label,
            *self.graph.comments,
            *(n.label for n in self.legend),
        ]
        return "\n".join(texts)[:20_000]


def is_legend(node: DotNode) -> bool:
    """Whether the node explains the drawing instead of being part of it."""
    if "invis" in node.attribute("style") or node.attribute("shape") in _LEGEND_SHAPES:
        return True
    if _LEGEND.search(node.name.replace("_", " ")):
        return True
    return node.cluster is not None and any(
        _LEGEND.search(f"{c.name.replace('_', ' ')} {c.label}") for c in node.cluster.outward()
    )
