"""Statements to nodes, edges and clusters, with the attributes that are in force at each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from ._dot_actions import (
    Assignment,
    Attribute,
    Defaults,
    EdgeChain,
    Endpoint,
    GraphText,
    NodeText,
    Statements,
    Subgraph,
)
from ._dot_model import Cluster, DotEdge, DotGraph, DotNode, Place
from ._dot_report import Report

__all__ = ["build_graph"]

_MAX_ITEMS = 200_000
"""Nodes, and edges, of one graph. An edge between two subgraphs stands for many."""
_MAX_ATTRIBUTES = 256
"""Attributes of one element; Graphviz knows fewer than 200."""


@dataclass
class _Scope:
    """What holds inside one body."""

    node: Mapping[str, str]
    edge: Mapping[str, str]
    cluster: Cluster | None
    attributes: dict[str, str]
    """Of the graph or cluster itself."""


def build_graph(text: GraphText, report: Report) -> DotGraph:
    """The graph that the statements describe."""
    return _Builder(text, report).graph


class _Builder:
    def __init__(self, text: GraphText, report: Report) -> None:
        self.report = report
        self.graph = DotGraph(text.name, text.directed, text.strict, text.place)
        self.full = False
        self._body(text.statements, _Scope({}, {}, None, self.graph.attributes))

    def _body(self, statements: Statements, scope: _Scope) -> dict[str, None]:
        """Every node that the body names, in order."""
        names: dict[str, None] = {}
        for statement in statements:
            if isinstance(statement, Assignment):
                _put(scope.attributes, [(statement.key, statement.value)])
            elif isinstance(statement, Defaults):
                self._defaults(statement, scope)
            elif isinstance(statement, NodeText):
                names |= self._node(statement, scope)
            elif isinstance(statement, EdgeChain):
                names |= self._edges(statement, scope)
        return names

    def _defaults(self, statement: Defaults, scope: _Scope) -> None:
        if statement.target == "graph":
            _put(scope.attributes, statement.attributes)
            return
        # a copy, for the nodes so far keep what they had
        changed = dict(scope.node if statement.target == "node" else scope.edge)
        _put(changed, statement.attributes)
        if statement.target == "node":
            scope.node = changed
        else:
            scope.edge = changed

    def _node(self, statement: NodeText, scope: _Scope) -> dict[str, None]:
        end = statement.node
        if isinstance(end, Subgraph):
            return self._subgraph(end, scope)
        node = self._named(end.text, statement.place, scope, declared=True)
        if node is not None:
            _put(node.own, statement.attributes)
            label = next((v for k, v in reversed(statement.attributes) if k == "label"), None)
            if label is not None and len(node.labels) < _MAX_ATTRIBUTES:
                node.labels.append((label, statement.place))
        return {end.text: None}

    def _edges(self, chain: EdgeChain, scope: _Scope) -> dict[str, None]:
        attributes: dict[str, str] = {}
        _put(attributes, chain.attributes)
        ends = [self._end(end, scope) for end in chain.ends]
        for operator in chain.operators:
            if (operator == "->") != self.graph.directed:
                place = (operator.start_pos or 0, operator.end_pos or 0)
                kind = "digraph" if self.graph.directed else "graph"
                self.report.add(
                    "PD701",
                    "edge operator",
                    place,
                    f"`{operator}` in a {kind}",
                    f"write `{'->' if self.graph.directed else '--'}`",
                )
        for (sources, place), (targets, _) in pairwise(ends):
            for source in sources:
                for target in targets:
                    if len(self.graph.edges) >= _MAX_ITEMS:
                        self._overfull(place)
                        break
                    self.graph.edges.append(DotEdge(source, target, place, attributes, scope.edge))
                if self.full:
                    break
        names: dict[str, None] = {}
        for found, _ in ends:
            names |= found
        return names

    def _end(self, end: Endpoint, scope: _Scope) -> tuple[dict[str, None], Place]:
        if isinstance(end, Subgraph):
            return self._subgraph(end, scope), end.place
        self._named(end.text, end.place, scope, declared=False)
        return {end.text: None}, end.place

    def _named(self, name: str, place: Place, scope: _Scope, *, declared: bool) -> DotNode | None:
        node = self.graph.nodes.get(name)
        if node is None:
            if len(self.graph.nodes) >= _MAX_ITEMS:
                self._overfull(place)
                return None
            node = self.graph.nodes[name] = DotNode(name, place, {}, scope.node, False, [], scope.cluster)
        if declared and not node.declared:
            node.declared, node.place = True, place
        if scope.cluster is not None and (node.cluster is None or node.cluster in scope.cluster.outward()):
            node.cluster = scope.cluster
        return node

    def _subgraph(self, text: Subgraph, scope: _Scope) -> dict[str, None]:
        cluster = scope.cluster
        attributes: dict[str, str] = {}
        if text.name.startswith("cluster"):
            cluster = Cluster(text.name, text.place, scope.cluster, attributes)
            self.graph.clusters.append(cluster)
        return self._body(text.statements, _Scope(scope.node, scope.edge, cluster, attributes))

    def _overfull(self, place: Place) -> None:
        if not self.full:
            self.full = True
            self.report.add("PD706", "size", place, f"reading stopped here: more than {_MAX_ITEMS:,} nodes or edges")


def _put(into: dict[str, str], attributes: list[Attribute]) -> None:
    for key, value in attributes:
        if len(into) < _MAX_ATTRIBUTES or key in into:
            into[key] = value
