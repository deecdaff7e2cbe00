"""Checks on what a drawing contains: layers, dimensions, experts, phases, KV cache."""

from __future__ import annotations

import re
from math import prod

from ....compiler.diagnostics import Diagnostic
from ....grammar.dot_reader import Place
from ._gather import gathered
from ._labels import Facts, Kind, edge_communicates, layers_of
from ._view import View

__all__ = ["check_dimensions", "check_experts", "check_layers", "check_phases"]

_COUNT = re.compile(
    r"(?<![\w.])(\d{1,4})[\s-]*(?:total |transformer |decoder |model |moe |dense |"
    r"identical )*layers?\b(?!\s*(?:per|each|/|\d|in each|of each)|\s+on )",
    re.I,
)
_FOLDED = re.compile(
    r"[x\u00d7*]\s?\d+\s?layers?|\d+\s?[x\u00d7]\s?layer|same (?:structure|pattern)|repeat|similar|"
    r"layers? \d+ ?(?:-|\u2013|to) ?\d+|remaining",
    re.I,
)
_PREFILL = re.compile(r"pre-?fill", re.I)
_DECODE = re.compile(r"\bdecod(?:e|ing)\b(?![- ]only)", re.I)
_MOVES = (Kind.COLLECTIVE, Kind.TRANSFER, Kind.MOVE)


def check_layers(view: View) -> list[Diagnostic]:
    """Layer numbers without gaps, and as many as the drawing says there are."""
    drawn: set[int] = set()
    folded = any(_FOLDED.search(e.label) for e in view.edges if e.label)
    for facts in view.facts.values():
        drawn |= facts.layers
        folded = folded or (facts.folded and bool(_FOLDED.search(facts.node.label)))
    for cluster in view.graph.clusters:
        drawn |= layers_of(cluster.label)
        folded = folded or bool(_FOLDED.search(cluster.label))
    if not drawn:
        return []
    drawing, found = view.drawing, []
    spread = set(range(min(drawn), max(drawn) + 1)) - drawn
    if spread and len(drawn) > 1 and not folded:
        gaps = ", ".join(map(str, sorted(spread)[:8])) + (", ..." if len(spread) > 8 else "")
        text = f"layers {min(drawn)} to {max(drawn)} are drawn, but not {gaps}"
        found.append(
            Diagnostic(
                "PD730",
                text,
                drawing.span(view.graph.place),
                "every layer, or a node that stands for several and says so",
            )
        )
    stated = max((int(n) for n in _COUNT.findall(view.about)), default=0)
    covered = len(drawn)
    if stated > covered and not folded and covered < max(drawn) + 2:
        text = f"the drawing speaks of {stated} layers and shows {covered}"
        help_ = f"draw all {stated}, or fold identical layers into one labelled `x {stated}`"
        found.append(Diagnostic("PD731", text, drawing.span(view.graph.place), f"{stated} layers", help_))
    return found


def check_dimensions(view: View) -> list[Diagnostic]:
    """Every compute node with its dimensions, and what one gives another takes."""
    missing = [
        (n, f.node.place) for n, f in view.facts.items() if f.kind in (Kind.COMPUTE, Kind.EXPERT) and not f.has_dims
    ]
    found: list[tuple[str, Place]] = []
    for edge in view.edges:
        source, target = view.facts[edge.source], view.facts[edge.target]
        if _disagree(source, target) and len(view.before[edge.target]) == 1:
            gives, takes = (", ".join(map(str, s)) for s in (source.outputs[0], target.inputs[0]))
            found.append((f"{edge.source} -> {edge.target}: [{gives}] into [{takes}]", edge.place))
    drawing = view.drawing
    return [
        *gathered(
            drawing,
            "PD740",
            missing,
            "compute node without dimensions",
            "compute nodes without dimensions",
            "`Input: [...]` and `Output: [...]`",
            "write both into the label",
        ),
        *gathered(
            drawing,
            "PD741",
            found,
            "a node takes another number of elements than its only predecessor gives",
            "nodes take another number of elements than their only predecessor gives",
            "equal numbers of elements",
            "insert the split or the collective, or correct the dimensions",
        ),
    ]


def _disagree(source: Facts, target: Facts) -> bool:
    """Whether both sides are plain numbers of different size. Splits and communication change sizes rightly."""
    kinds = (Kind.COMPUTE, Kind.EXPERT)
    if (
        source.kind not in kinds
        or target.kind not in kinds
        or source.mentions_communication
        or target.mentions_communication
    ):
        return False
    if len(source.outputs) != 1 or len(target.inputs) != 1:
        return False
    gives, takes = prod(source.outputs[0]), prod(target.inputs[0])
    # a part of what is there is a local slice, and needs no communication
    return takes > gives or (takes > 0 and gives % takes != 0)


def check_experts(view: View) -> list[Diagnostic]:
    """Experts on several GPUs take tokens by a dispatch and give them back by a combine; route edges are dashed."""
    experts = {n: f for n, f in view.facts.items() if f.kind is Kind.EXPERT}
    places = {frozenset(f.devices.numbers) for f in experts.values() if f.devices.numbers}
    drawing, found = view.drawing, []
    if len(places) > 1:
        for code, toward, side, word in (
            ("PD742", view.after, view.before, "dispatch"),
            ("PD743", view.before, view.after, "combine"),
        ):
            reached = _reached(view, toward, dispatch=code == "PD742")
            without = [
                (n, f.node.place)
                for n, f in experts.items()
                if n not in reached and side[n] and not f.mentions_communication
            ]
            between = "router and experts" if word == "dispatch" else "experts and the weighted sum"
            help_ = f"insert the {word} (all-to-all) between {between}"
            found += gathered(
                drawing,
                code,
                without,
                f"expert without {word}",
                f"experts without {word}",
                f"a {word} node, for the experts lie on several GPUs",
                help_,
            )
    dashed = {e.source for e in view.edges if "dashed" in e.attribute("style") or "dotted" in e.attribute("style")}
    solid = [
        (n, f.node.place)
        for n, f in view.facts.items()
        if f.kind is Kind.ROUTER and view.after[n] and n not in dashed and "dashed" not in f.node.attribute("style")
    ]
    found += gathered(
        drawing,
        "PD744",
        solid,
        "router whose choice is not drawn dashed",
        "routers whose choice is not drawn dashed",
        "a dashed edge from the router to what it selects",
        "add `[style=dashed]`",
    )
    return found


def _reached(view: View, along: dict[str, list[str]], *, dispatch: bool) -> set[str]:
    """Experts that communication or a split leads to, through other expert nodes."""
    experts = {n for n, f in view.facts.items() if f.kind is Kind.EXPERT}
    reached = {
        far
        for n, f in view.facts.items()
        if f.kind in _MOVES or f.mentions_communication
        for far in along[n]
        if far in experts
    }
    # an endpoint or something unknown may be either: nothing is said of it
    reached |= {
        far
        for n, f in view.facts.items()
        if f.kind in (Kind.UNKNOWN, Kind.ENDPOINT)
        for far in along[n]
        if far in experts
    }
    for edge in view.edges:
        end = edge.target if dispatch else edge.source
        if end in experts and edge_communicates(edge):
            reached.add(end)
    queue = list(reached)
    while queue:
        for far in along[queue.pop()]:
            if far in experts and far not in reached:
                reached.add(far)
                queue.append(far)
    return reached


def check_phases(view: View) -> list[Diagnostic]:
    """Prefill and decode are two DAGs joined by phase nodes; decode has a KV cache."""
    prefill: list[Place] = []
    decode: list[Place] = []
    caches = phase_nodes = 0
    for name, facts in view.facts.items():
        text = f"{name.replace('_', ' ')} {facts.title}"
        clusters = (
            " ".join(f"{c.name.replace('_', ' ')} {c.label}" for c in facts.node.cluster.outward())
            if facts.node.cluster
            else ""
        )
        if _PREFILL.search(text) or _PREFILL.search(clusters):
            prefill.append(facts.node.place)
        if _DECODE.search(text) or _DECODE.search(clusters):
            decode.append(facts.node.place)
        phase_nodes += facts.kind is Kind.PHASE
        caches += facts.kind is Kind.CACHE or re.search(r"\bkv\b|cache", facts.node.label, re.I) is not None
    drawing, found = view.drawing, []
    if prefill and decode and not phase_nodes:
        both = sorted([prefill[0], decode[0]])
        text = f"prefill ({len(prefill)} nodes) and decode ({len(decode)} nodes) in one graph without phase nodes"
        found.append(
            Diagnostic(
                "PD745",
                text,
                drawing.span(both[1]),
                "two DAGs with PrefillBegin, PrefillEnd, DecodeStepBegin, DecodeStepEnd",
                "separate them; only the KV cache passes from one to the other",
            )
        )
    name = f"{view.graph.name.replace('_', ' ')} {view.graph.attributes.get('label', '')}"
    is_decode = bool(decode) or (_DECODE.search(name) is not None and not _PREFILL.search(name))
    if is_decode and not caches and any(f.kind is Kind.COMPUTE for f in view.facts.values()):
        place = decode[0] if decode else view.graph.place
        found.append(
            Diagnostic(
                "PD746",
                "a decode drawing in which no node reads or writes a KV cache",
                drawing.span(place),
                "KV read and write nodes beside attention",
                "draw the cache that attention reads",
            )
        )
    return found
