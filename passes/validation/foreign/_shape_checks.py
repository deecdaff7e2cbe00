"""Checks on the form of a drawing: cycles, loose ends, undeclared and doubled nodes, shapes."""

from __future__ import annotations

import difflib
import re

import networkx as nx

from ....compiler.diagnostics import Diagnostic
from ....grammar.dot_reader import Place
from ._gather import gathered, some
from ._labels import Facts, Kind
from ._view import View

__all__ = ["check_cycles", "check_declarations", "check_directed", "check_loose_ends", "check_shapes"]

_SOURCE = re.compile(
    r"input|prompt|request|start|begin|source|token|embed|host|\bx\b|cache|weight|query|receive|recv|from", re.I
)
_SINK = re.compile(
    r"^(?!.*attention).*output|logits|lm[-_ ]?head|\bend\b|sink|sampl|result|response|predict|next token|"
    r"cache|\bsend\b|loss|final|vocab",
    re.I,
)
_BOX = frozenset({"box", "rect", "rectangle", "square", "record", "Mrecord", "box3d", "component"})
_PARALLELOGRAM = frozenset({"parallelogram", "trapezium", "invtrapezium", "diamond"})
_MAX_GUESSES = 2_000


def check_directed(view: View) -> list[Diagnostic]:
    """An execution order needs directed edges."""
    if view.graph.directed or not view.graph.edges:
        return []
    text = f"`graph {view.graph.name}` has no directions: nothing says what is executed first"
    return [Diagnostic("PD708", text, view.drawing.span(view.graph.place), "`digraph` with `->`")]


def check_cycles(view: View) -> list[Diagnostic]:
    """No node may wait for itself."""
    if not view.graph.directed:
        return []
    edges = nx.DiGraph()
    edges.add_edges_from((e.source, e.target) for e in view.edges if e.attribute("dir") not in ("back", "none"))
    found: list[tuple[str, Place]] = []
    for component in nx.strongly_connected_components(edges):
        some_node = next(iter(component))
        if len(component) > 1 or edges.has_edge(some_node, some_node):
            order = [n for n in view.facts if n in component]
            inside = edges.subgraph(component)
            cycle = [u for u, *_ in nx.find_cycle(inside, order[0])]
            path = " -> ".join([*cycle[:6], *(["..."] if len(cycle) > 6 else []), cycle[0]])
            place = next(e.place for e in view.edges if e.source == cycle[-1] and e.target == cycle[0])
            found.append((path, place))
    found.sort(key=lambda f: f[1])
    return gathered(
        view.drawing,
        "PD710",
        found,
        "cycle",
        "cycles",
        "an acyclic graph",
        "remove the edge that leads back, or draw the next step as nodes of its own",
    )


def check_loose_ends(view: View) -> list[Diagnostic]:
    """Every node has a predecessor and a successor, but for the inputs and the outputs."""
    isolated: list[tuple[str, Place]] = []
    no_before: list[tuple[str, Place]] = []
    no_after: list[tuple[str, Place]] = []
    for name, facts in view.facts.items():
        if facts.kind in (Kind.COLLECTIVE, Kind.TRANSFER, Kind.PHASE):
            continue
        place = facts.node.place
        if not view.before[name] and not view.after[name]:
            isolated.append((name, place))
        elif not view.before[name] and not _may_begin(facts):
            no_before.append((name, place))
        elif not view.after[name] and not _may_end(facts):
            no_after.append((name, place))
    drawing = view.drawing
    return [
        *gathered(
            drawing,
            "PD712",
            isolated,
            "node with no edge at all",
            "nodes with no edge at all",
            "nodes that take part in the execution",
            "connect or remove them",
        ),
        *gathered(
            drawing,
            "PD711",
            no_before,
            "node that nothing leads to",
            "nodes that nothing leads to",
            "a predecessor of every node but the inputs",
            "draw where its data comes from",
        ),
        *gathered(
            drawing,
            "PD711",
            no_after,
            "node that leads nowhere",
            "nodes that lead nowhere",
            "a successor of every node but the outputs",
            "draw where its result goes",
        ),
    ]


def _may_begin(facts: Facts) -> bool:
    return facts.kind in (Kind.ENDPOINT, Kind.CACHE) or _SOURCE.search(f"{facts.title} {facts.node.name}") is not None


def _may_end(facts: Facts) -> bool:
    return (
        facts.kind in (Kind.ENDPOINT, Kind.CACHE)
        or _SINK.search(facts.title) is not None
        or _SINK.search(facts.node.name) is not None
    )


def check_declarations(view: View) -> list[Diagnostic]:
    """Names that only an edge knows, and names with two labels."""
    nodes = view.graph.nodes
    implicit = [n for n in nodes.values() if not n.declared]
    found: list[Diagnostic] = []
    declared = [name for name, node in nodes.items() if node.declared]
    # a drawing that declares hardly any node does so on purpose
    if implicit and len(declared) * 2 >= len(nodes):
        guesses = []
        for node in implicit[:3]:
            close = difflib.get_close_matches(node.name, declared[:_MAX_GUESSES], 1, 0.8)
            guesses += [f"`{node.name}` for `{close[0]}`"] if close else []
        help_ = f"perhaps {', '.join(guesses)}" if guesses else "declare each node with its label"
        places = [(n.name, n.place) for n in implicit]
        found += gathered(
            view.drawing,
            "PD713",
            places,
            "an edge names an undeclared node",
            "undeclared nodes in edges",
            "nodes that a statement declares",
            help_,
        )
    doubled = [(n.name, n.labels[1][1]) for n in nodes.values() if len({text for text, _ in n.labels}) > 1]
    found += gathered(
        view.drawing,
        "PD714",
        doubled,
        "node with two labels",
        "nodes with two labels",
        "one definition per node",
        "Graphviz shows the last one; give the nodes different names",
    )
    return found


def check_shapes(view: View) -> list[Diagnostic]:
    """Reviewers read shapes: rectangle compute, ellipse communication, parallelogram routing and aggregation."""
    wrong: dict[str, list[tuple[str, Place]]] = {}
    for name, facts in view.facts.items():
        shape = facts.node.attribute("shape", "ellipse")
        if facts.kind in (Kind.COMPUTE, Kind.EXPERT) and shape not in _BOX:
            wrong.setdefault("compute in a rectangle", []).append((name, facts.node.place))
        elif facts.kind is Kind.COLLECTIVE and shape not in ("ellipse", "oval"):
            wrong.setdefault("communication in an ellipse", []).append((name, facts.node.place))
        elif facts.kind is Kind.ROUTER and shape not in _PARALLELOGRAM:
            wrong.setdefault("routing in a parallelogram", []).append((name, facts.node.place))
    if not wrong:
        return []
    every = sorted((w for found in wrong.values() for w in found), key=lambda w: w[1])
    text = f"{len(every)} node{'s' if len(every) > 1 else ''} not in the usual shape: {some([n for n, _ in every])}"
    return [Diagnostic("PD747", text, view.drawing.span(every[0][1]), "; ".join(wrong))]
