"""How the KV cache gets from prefill to decode: between which GPUs, over which link, and how it could move less far."""

from __future__ import annotations

from collections.abc import Iterator

from ...ir.mesh import Mesh
from ..locality import Flow, Locality, analyse_locality
from ._facts import Facts
from ._format import counted, folded, gpus_text, percent, size, table

MOST_FLOWS = 24
"""Rows of a table of replicas."""


def transfers(facts: Facts) -> list[str]:
    """The cache's way from prefill to decode, where both are planned."""
    if facts.subject is None or len(facts.phases) < 2:
        return []
    if facts.transfer is None:
        return [
            "The KV cache stays where prefill wrote it: both phases lay it out alike, so the ranks and layers of the "
            "tables above hold a sequence from its first token to its last.",
            "",
        ]
    sent, received = facts.transfer.sent, facts.transfer.received
    if not sent:
        return ["The KV cache stays on its GPUs: decode finds every shard where prefill wrote it.", ""]
    lines = [
        f"KV cache from prefill to decode: {size(facts.transfer.total_bytes)} move between GPUs per batch; "
        f"{gpus_text(sent)} send (at most {size(max(sent.values(), default=0.0))} each), {gpus_text(received)} receive "
        f"(at most {size(max(received.values(), default=0.0))} each).",
        "",
    ]
    prefill, decode = (facts.phases[p].graph.mesh for p in ("prefill", "decode"))
    found = analyse_locality(facts.transfer, prefill, decode, facts.hardware.domain)
    return [*lines, *_flow_table(found, prefill, decode), " ".join(_choices(facts, found, decode)), ""]


def _flow_table(found: Locality, prefill: Mesh, decode: Mesh) -> list[str]:
    def row(flow: Flow) -> tuple[str, ...]:
        link = "scale-up" if flow.inside == flow.bytes else "both" if flow.inside else "scale-out"
        ends = ((flow.source, prefill), (flow.target, decode))
        named = (f"{number}: {gpus_text(_replica(mesh, number))}" for number, mesh in ends)
        return *named, size(flow.bytes), link, percent(flow.inside / flow.bytes)

    columns = ("prefill replica", "decode replica", "bytes", "link", "inside a domain")
    lines = table(columns, map(row, found.flows[:MOST_FLOWS]), right=("bytes", "inside a domain"))
    left = len(found.flows) - MOST_FLOWS
    return [*lines, f"and {counted(left, 'more pair')} of replicas.", ""] if left > 0 else lines


def _replica(mesh: Mesh, number: int) -> range:
    first = mesh.first_rank + number * mesh.replica_ranks
    return range(first, first + mesh.replica_ranks)


def _choices(facts: Facts, found: Locality, decode: Mesh) -> Iterator[str]:
    domain = facts.hardware.domain
    yield (
        f"{size(found.inside)} of {size(found.bytes)} ({percent(found.inside / found.bytes)}) stay inside a scale-up "
        f"domain of {counted(domain, 'GPU')}."
    )
    if found.inside == found.bytes:
        return
    moved = {r: place for r, place in enumerate(found.assignment) if r != place}
    if moved:
        places = ", ".join(f"{r} on {folded(_replica(decode, place))}" for r, place in moved.items())
        yield (
            f"Requests of decode replicas served elsewhere ({places}; a matter of the request router, which no "
            f"strategy says) would keep {percent(found.assigned_inside / found.bytes)} inside."
        )
    elif len(found.assignment) > 1:
        yield "No other assignment of requests to decode replicas keeps more inside."
    if found.swapped_inside is not None:
        more = found.swapped_inside > found.inside * (1 + 1e-9)
        what = f"would keep {percent(found.swapped_inside / found.bytes)} inside" if more else "would keep no more"
        yield f"With decode's GPUs before prefill's the transfer {what}; the language puts decode's behind."
