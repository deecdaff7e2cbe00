"""Checks on where things run: devices of nodes, participants of communication, crossings from GPU to GPU."""

from __future__ import annotations

import re

from ....compiler.diagnostics import Diagnostic
from ....grammar.dot_reader import Place
from ._gather import gathered
from ._labels import Facts, Kind, edge_communicates
from ._view import View

__all__ = ["check_communication", "check_crossings", "check_devices", "stated_gpus"]

_WORKING = (Kind.COMPUTE, Kind.EXPERT, Kind.ROUTER)
_GPUS = re.compile(
    r"(?<![\w.,])(\d{1,3}(?:,\d{3})+|\d{1,6})\s*(?:[x\u00d7]\s*)?(?:NVIDIA\s+|AMD\s+)?(?:[HABL]\d{2,3}S?\s+|"
    r"MI\d{3}X?\s+)?-?\s?(?:GPU|NPU|device)s?\b(?!\s*(?:per|each|/|\d|group))",
    re.I,
)


def check_devices(view: View) -> list[Diagnostic]:
    """Every compute node on devices with numbers, none of them beyond the stated count."""
    missing: list[tuple[str, Place]] = []
    vague: list[tuple[str, Place]] = []
    for name, facts in view.facts.items():
        if facts.devices.vague is not None and facts.devices.numbers is None:
            vague.append((facts.devices.vague, facts.node.place))
        elif not facts.devices.stated and facts.kind in _WORKING:
            missing.append((name, facts.node.place))
    count = stated_gpus(view)
    beyond: list[tuple[str, Place]] = []
    if count:
        numbered = [(f, f.devices.numbers) for f in view.facts.values() if f.devices.numbers]
        # numbers from 1 on are as good
        first = min((min(n) for _, n in numbered), default=0)
        beyond = [(f"GPU {max(n)}", f.node.place) for f, n in numbered if max(n) >= count + (first == 1)]
    drawing = view.drawing
    return [
        *gathered(
            drawing,
            "PD720",
            missing,
            "compute node without a device",
            "compute nodes without a device",
            "the numbers of the GPUs that a node runs on",
            "write `GPU: 3` or `GPUs: 0-7` into its label",
        ),
        *gathered(
            drawing, "PD721", vague, "vague device", "vague devices", "GPU numbers", "name the GPUs: `GPUs: 0-7`"
        ),
        *gathered(
            drawing,
            "PD722",
            beyond,
            f"GPU number beyond the {count} GPUs stated",
            f"GPU numbers beyond the {count} GPUs stated",
            f"numbers 0 to {(count or 1) - 1}",
        ),
    ]


def stated_gpus(view: View) -> int | None:
    """The largest number of GPUs that the drawing states for itself, if any."""
    counts = [int(n.replace(",", "")) for n in _GPUS.findall(view.about)]
    return max(counts, default=0) or None


def check_communication(view: View) -> list[Diagnostic]:
    """Communication needs two sides, and a collective at least two participants."""
    alone: list[tuple[str, Place]] = []
    loose: list[tuple[str, Place]] = []
    for name, facts in view.facts.items():
        if facts.kind not in (Kind.COLLECTIVE, Kind.TRANSFER):
            continue
        before, after = view.before[name], view.after[name]
        if not before or not after:
            title = f"{facts.title} {name}"
            ends = not before and after and re.search(r"recv|receive|from", title, re.I)
            ends = ends or (before and not after and re.search(r"\bsend|output|kv", title, re.I))
            if not ends:
                loose.append((name, facts.node.place))
            continue
        if facts.kind is Kind.COLLECTIVE and _one_participant(view, facts, before, after):
            alone.append((name, facts.node.place))
    drawing = view.drawing
    return [
        *gathered(
            drawing,
            "PD723",
            alone,
            "collective with one participant",
            "collectives with one participant",
            "two GPUs or more",
            "remove it, or name the GPUs of its group",
        ),
        *gathered(
            drawing,
            "PD724",
            loose,
            "communication with nothing on one side",
            "communication nodes with nothing on one side",
            "edges in and out",
            "connect what it takes and what it gives",
        ),
    ]


def _one_participant(view: View, facts: Facts, before: list[str], after: list[str]) -> bool:
    """Whether it and its neighbours, all with known devices, are on one GPU. Drawn once per rank, it is not."""
    taking_part: set[int] = set(facts.devices.numbers or ())
    for name in (*before, *after):
        numbers = view.facts[name].devices.numbers
        if numbers is None:
            return False
        taking_part |= numbers
    return len(taking_part) == 1


def check_crossings(view: View) -> list[Diagnostic]:
    """Data does not move from GPU to GPU by itself."""
    found: list[tuple[str, Place]] = []
    for edge in view.edges:
        source, target = view.facts[edge.source], view.facts[edge.target]
        if (
            source.kind not in _WORKING
            or target.kind not in _WORKING
            or target.kind is Kind.EXPERT
            or source.kind is Kind.EXPERT
        ):
            continue  # what surrounds experts has rules of its own
        here, there = source.devices.numbers, target.devices.numbers
        if (
            not here
            or not there
            or here & there
            or source.mentions_communication
            or target.mentions_communication
            or edge_communicates(edge)
        ):
            continue
        found.append((f"{edge.source} -> {edge.target}", edge.place))
    return gathered(
        view.drawing,
        "PD725",
        found,
        "compute on one GPU feeds compute on another with no communication between",
        "edges lead from compute on one GPU to compute on another with no communication between",
        "a send and receive, or a collective",
        "insert the communication node",
    )
