"""The DOT reader: the language, and what it makes of damaged text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.grammar.dot_reader import Drawing, Html, read_dot


def read(text: str) -> Drawing:
    return read_dot(text, "x.dot")


def codes(drawing: Drawing) -> list[str]:
    return [d.code for d in drawing.findings]


def edges(drawing: Drawing) -> list[tuple[str, str]]:
    return [(e.source, e.target) for e in drawing.graphs[0].edges]


WHOLE = r"""
// a title
strict digraph "my graph" {
    /* a
       comment */
    graph [rankdir=TB; label="the whole"]
    node [shape=box, color=red] edge [style=dashed]
# a line of a preprocessor
    a [label="A\nGPU: 0"]
    b [label=<<B>bold</B><BR/>x &lt; y>, shape=ellipse]
    subgraph cluster_0 {
        label = "outer" node [shape=circle]
        c
        subgraph cluster_1 { label="inner"; d:port:n -> e [label="joined \
line" + " and more"] }
    }
    a -> {b c} -> d
    f; 12 -> -.5; "with \"quotes\"" [label="\N"]
}
"""


def test_the_whole_language() -> None:
    drawing = read(WHOLE)
    assert codes(drawing) == []
    (graph,) = drawing.graphs
    assert (graph.name, graph.directed, graph.strict, graph.label) == ("my graph", True, True, "the whole")
    assert list(graph.nodes) == ["a", "b", "c", "d", "e", "f", "12", "-.5", 'with "quotes"']
    assert edges(drawing) == [("d", "e"), ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("12", "-.5")]
    nodes = graph.nodes
    assert nodes["a"].label == "A\nGPU: 0"
    assert isinstance(nodes["b"].own["label"], Html)
    assert nodes["b"].label == "bold\nx < y"
    assert [nodes[n].attribute("shape") for n in "abcf"] == ["box", "ellipse", "circle", "box"]
    assert nodes["a"].attribute("color") == "red"
    assert [c.name for c in nodes["d"].cluster.outward()] == ["cluster_1", "cluster_0"]  # type: ignore[union-attr]
    assert nodes["c"].cluster.label == "outer"  # type: ignore[union-attr]
    assert nodes['with "quotes"'].label == 'with "quotes"'
    assert graph.edges[0].label == "joined line and more"
    assert graph.edges[1].attribute("style") == "dashed"
    assert nodes["a"].declared and not nodes["12"].declared
    assert graph.comments[0] == "// a title"
    span = drawing.span(nodes["a"].place)
    assert (span.line, span.column, span.end_column) == (9, 5, 6)


def test_keywords_in_any_case_and_undirected_graphs() -> None:
    drawing = read("GRAPH { Node [shape=box] a -- b }")
    assert not drawing.graphs[0].directed
    assert drawing.graphs[0].nodes["a"].attribute("shape") == "box"
    assert codes(drawing) == []


def test_edges_between_subgraphs_are_spread_out() -> None:
    drawing = read("digraph { {a b} -> subgraph s {c; d} }")
    assert edges(drawing) == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]


def test_defaults_hold_from_their_statement_on() -> None:
    graph = read("digraph { a; node [color=red]; b; { node [color=blue]; c } d }").graphs[0]
    assert [graph.nodes[n].attribute("color") for n in "abcd"] == ["", "red", "blue", "red"]


DAMAGED = {
    "fence": ("```dot\ndigraph { a -> b }\n```\n", "PD702", [("a", "b")]),
    "prose": ("Here it is:\n\ndigraph { a -> b }\nThat is all.", "PD702", [("a", "b")]),
    "no end": ("digraph { subgraph cluster_x { a -> b", "PD703", [("a", "b")]),
    "end in a string": ('digraph { a -> b\n c [label="x', "PD703", [("a", "b")]),
    "end in a list": ("digraph { a -> b\n c [label=", "PD703", [("a", "b")]),
    "end in a comment": ("digraph { a -> b /* and", "PD703", [("a", "b")]),
    "open list": ("digraph {\n a [label=x\n b [label=y]\n a -> b\n}", "PD701", [("a", "b")]),
    "open string": ('digraph {\n a [label="x];\n b [label="y"];\n a -> b\n}', "PD701", [("a", "b")]),
    "bare list": ("digraph {\n style=rounded,filled;\n a -> b\n}", "PD701", [("a", "b")]),
    "bare name": ("digraph Llama-3 {\n a -> b\n}", "PD701", [("a", "b")]),
    "no target": ("digraph {\n a -> \n b -> c\n d -> ;\n}", "PD701", [("a", "b"), ("b", "c")]),
    "ellipsis": ("digraph { a -> {b ... c} }", "PD701", [("a", "b"), ("a", "c")]),
    "early end": ("digraph {\n a -> b\n}\n b -> c\n}", "PD701", [("a", "b"), ("b", "c")]),
    "html": ("digraph { a [label=<x -> y>, color=red]\n a -> b }", "PD701", [("a", "b")]),
    "operator": ("digraph { a -- b }", "PD701", [("a", "b")]),
    "loop": ("digraph {\n for (i = 0; i < 4; i++) {\n a -> b\n }\n}", "PD704", [("a", "b")]),
    "template": (
        "f.write('''digraph {\n''')\nf.write(f'''\n a_{i} [label=x]\n a_{i} -> b\n}''')",
        "PD704",
        [("a_{i}", "b")],
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named_and_the_rest_is_read(name: str) -> None:
    text, code, expected = DAMAGED[name]
    drawing = read(text)
    assert code in codes(drawing)
    assert edges(drawing) == expected


def test_damage_leaves_neighbours_alone() -> None:
    drawing = read('digraph {\n a [label="x];\n b [label="y, z"];\n}')
    assert drawing.graphs[0].nodes["b"].label == "y, z"
    assert drawing.findings[0].span.line == 2  # type: ignore[union-attr]


def test_many_places_are_one_finding() -> None:
    drawing = read("digraph {\n" + "a = b , c\n" * 200 + "}")
    assert codes(drawing) == ["PD701"]
    assert "200 times" in drawing.findings[0].message


def test_several_graphs_are_kept_apart() -> None:
    drawing = read("digraph prefill { a -> b }\n// next\ndigraph decode { a }")
    assert [g.name for g in drawing.graphs] == ["prefill", "decode"]
    assert codes(drawing) == ["PD705"]


@pytest.mark.parametrize("text", ["", "hello", "graph", "// digraph {}", "{}"])
def test_no_drawing(text: str) -> None:
    assert codes(read(text)) == ["PD707"]


def test_too_large() -> None:
    assert codes(read(" " * (4 * 2**20 + 1))) == ["PD002"]


def test_too_deep_and_too_many_edges() -> None:
    assert "PD706" in codes(read("digraph {" + "{" * 500))
    many = " ".join(f"n{i}" for i in range(600))
    drawing = read(f"digraph {{ {{{many}}} -> {{{many}}} }}")
    assert "PD706" in codes(drawing)
    assert len(drawing.graphs[0].edges) == 200_000


@pytest.mark.parametrize(
    "piece", ["a -> b;\n", 'a [label="x"', "<", '"', '\\"', "{{}}", "a[b=\n", "}", "for (", "digraph {}\n"]
)
def test_time_is_linear(piece: str) -> None:
    def seconds(length: int) -> float:
        text = "digraph {" + piece * (length // len(piece))
        # of this process alone: a busy machine must not hide a square, nor show one
        began = time.process_time()
        read(text)
        return time.process_time() - began

    seconds(1_000)
    assert seconds(48_000) < 12 * seconds(6_000) + 0.3


SEEDS = [WHOLE, *(text for text, _, _ in DAMAGED.values())]
PIECES = [
    "{",
    "}",
    "[",
    "]",
    '"',
    "<",
    ">",
    "->",
    "--",
    ";",
    ",",
    "=",
    "\\",
    "\n",
    "/*",
    "//",
    "subgraph ",
    "node ",
    "digraph ",
    "...",
    "```",
    ":",
    "+",
    "é",
    "\x00",
]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.integers(0, 6)))
        text = text[:at] + draw(st.sampled_from([*PIECES, ""])) + text[end:]
    return text


@settings(max_examples=150)
@given(mutated())
def test_mutations_never_raise(text: str) -> None:
    drawing = read(text)
    for graph in drawing.graphs:
        for edge in graph.edges:
            assert edge.source in graph.nodes and edge.target in graph.nodes
        for node in graph.nodes.values():
            assert isinstance(node.label, str)
            drawing.span(node.place)


@settings(max_examples=100)
@given(st.text(max_size=200))
def test_any_text_in_a_graph_never_raises(text: str) -> None:
    read("digraph {" + text)
    read(text)
