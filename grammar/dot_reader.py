"""Graphviz text to a :class:`Drawing`: what is wrong with the text is a finding, and the rest is read on."""

from __future__ import annotations

import re

from ..compiler.diagnostics import Diagnostic, Span
from ._dot_build import build_graph
from ._dot_model import Cluster, DotEdge, DotGraph, DotNode, Drawing, Html, Place
from ._dot_parse import GraphParser
from ._dot_report import Report
from ._dot_scan import HEAD, Scanner
from ._source import MAX_BYTES

__all__ = ["Cluster", "DotEdge", "DotGraph", "DotNode", "Drawing", "Html", "Place", "read_dot"]

_MAX_GRAPHS = 50
_FENCE = re.compile(r"(?m)^[^\S\n]*(?:```|~~~)[^\n]*$")
_COMMENT = re.compile(r"//[^\n]*|/\*[\s\S]*?\*/|(?m:^#[^\n]*)")


def read_dot(text: str, file: str) -> Drawing:
    """Read Graphviz text.

    Args:
        text: The text; also with Markdown fences or prose around it, several graphs, or an end that is missing.
        file: The name that spans carry.

    Returns:
        The graphs of the file, with the faults of the text itself (PD70x) in ``findings``. Nothing is raised.
    """
    drawing = Drawing(file, text)
    if len(text) > MAX_BYTES:
        message = f"`{file}` has {len(text):,} characters"
        drawing.findings.append(Diagnostic("PD002", message, Span(file, 1, 1, 1, 2), f"at most {MAX_BYTES:,}"))
        return drawing
    report = Report()
    at = 0
    while (head := _next_head(text, at)) is not None:
        _around(text, at, head, report)
        if len(drawing.graphs) >= _MAX_GRAPHS:
            report.add("PD706", "graphs", (head, head + 1), f"reading stopped here: more than {_MAX_GRAPHS} graphs")
            break
        scanner = Scanner(text, report)
        parser = GraphParser(scanner, report, head)
        graph = build_graph(parser.read(), report)
        lead = [m.group() for m in _COMMENT.finditer(text, at, head)]
        graph.comments = (lead + scanner.comments)[:20]
        drawing.graphs.append(graph)
        at = parser.end
    else:
        if drawing.graphs:
            _around(text, at, len(text), report)
        else:
            report.add(
                "PD707",
                "none",
                (0, 1),
                "no drawing: neither `digraph {` nor `graph {` in the text",
                "begin with `digraph {`",
            )
    if len(drawing.graphs) > 1:
        place = drawing.graphs[1].place
        report.add("PD705", "several", place, f"{len(drawing.graphs)} graphs in one file; each is checked by itself")
    drawing.findings += report.diagnostics(drawing)
    return drawing


def _next_head(text: str, start: int) -> int | None:
    """Where the next graph begins, outside of comments."""
    at = start
    while (head := HEAD.search(text, at)) is not None:
        line = text[text.rfind("\n", 0, head.start()) + 1 : head.start()]
        if "//" not in line and not line.lstrip().startswith("#"):
            return head.start()
        at = head.end()
    return None


def _around(text: str, start: int, end: int, report: Report) -> None:
    """Report what stands outside of the graphs and is no comment."""
    rest = _COMMENT.sub(lambda m: " " * len(m.group()), text[start:end])
    fence = _FENCE.search(rest)
    if fence is not None:
        place = (start + fence.start(), start + fence.end())
        report.add("PD702", "fence", place, "a Markdown fence around the drawing", "keep the drawing alone in its file")
        rest = _FENCE.sub(lambda m: " " * len(m.group()), rest)
    words = re.search(r"[^\s;]+", rest)
    if words is None:
        return
    place = (start + words.start(), start + words.end())
    report.add(
        "PD702",
        "prose",
        place,
        "text outside of the drawing",
        "keep the drawing alone in its file, or make it a comment",
    )
