"""Which GPU holds what: layers, experts and KV cache, with GPU numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from ...ir.mesh import Mesh
from ...ir.types import chunk_bounds
from ._axes import axes, machine, splits
from ._facts import Facts, PhaseFacts
from ._format import folded, gpus_text, percent, seconds, size, table
from ._load import loaded_experts
from ._locality import transfers

MOST_ROWS = 64
"""Rows of a table of ranks; the rest follows the same rule and is counted."""


def mapping(facts: Facts) -> list[str]:
    """Layer to stage, expert to rank, KV to GPU, for each phase."""
    lines = ["## 7. Mapping to GPUs", ""]
    if not facts.phases:
        return [*lines, "Nothing to map: no strategy fits into memory.", ""]
    if facts.subject is not None and len(facts.phases) == 2:
        shared = "Each phase has GPUs of its own; decode's follow prefill's."
        lines += [shared if facts.subject.separate else "Both phases run on the same GPUs.", ""]
    for phase in facts.phases.values():
        lines += [f"### {phase.phase.capitalize()}", "", *_replicas(phase.graph.mesh), *axes(facts, phase)]
        lines += [*_stages(phase), *splits(facts, phase), *_experts(facts, phase), *loaded_experts(facts, phase)]
        lines += _cache(facts, phase)
    return [*lines, *transfers(facts), *machine(facts)]


def _replicas(mesh: Mesh) -> list[str]:
    whole = range(mesh.first_rank, mesh.first_rank + mesh.gpus)
    text = f"{gpus_text(whole)}: {mesh.dp} x {mesh.pp} x {mesh.stage_ranks} (replicas x stages x GPUs of a stage)."
    if mesh.dp > 1:
        text += (
            f" The tables show replica 0; replica k has the same on GPUs that are k x {mesh.replica_ranks} higher, for "
            f"k = {folded(range(1, mesh.dp))}."
        )
    return [text, ""]


def stage_ranks(mesh: Mesh, stage: int) -> list[int]:
    """GPU numbers of a stage of replica 0."""
    return mesh.ranks(stage, {}, [a.name for a in mesh.axes])


def _stages(phase: PhaseFacts) -> list[str]:
    graph = phase.graph
    busy, longest = phase.stage_seconds(), float(phase.stage_seconds().max())
    rows = []
    for stage, (first, count) in enumerate(zip(graph.stage_starts, graph.stages, strict=True)):
        ends = (["embedding"] if stage == 0 else []) + (["LM head"] if stage == len(graph.stages) - 1 else [])
        rows.append(
            (
                str(stage),
                f"{folded(range(first, first + count))} ({count})",
                ", ".join(ends) or "-",
                folded(stage_ranks(graph.mesh, stage)),
                size(phase.memory.stages[stage].weights),
                seconds(float(busy[stage])),
                percent(float(busy[stage]) / longest) if longest else "-",
            )
        )
    columns = ("stage", "layers", "with", "GPUs", "weights of a GPU", "busy", "of the slowest")
    return ["Layers to stages:", "", *table(columns, rows, right=columns[4:])]


def _experts(facts: Facts, phase: PhaseFacts) -> list[str]:
    mesh = phase.graph.mesh
    moe, degrees = facts.spec.model.moe, phase.degrees
    if moe is None:
        return []
    slots = moe.experts + degrees.redundant
    order = "in order" if facts.plan.experts is None else "in order as in layers without a load"
    lines = [
        f"Experts to ranks: {slots} expert slots over ep {degrees.ep}, each expert cut into etp {degrees.etp}, "
        f"edp {degrees.edp} copies, {order}"
        + (" (stage 0; stage s adds " + _shift(mesh) + ")." if mesh.pp > 1 else "."),
        "",
    ]
    atoms = mesh.view("ep")
    others = [a.name for a in mesh.axes if a.name not in atoms]
    rows = []
    for fixed in _coordinates(mesh, atoms):
        low, high = chunk_bounds(slots, _cuts(mesh, atoms, fixed))
        rows.append((folded(range(low, high)), str(high - low), folded(mesh.ranks(0, fixed, others))))
    return [*lines, *_shortened(("slots" if degrees.redundant else "experts", "count", "GPUs"), rows)]


def _shift(mesh: Mesh) -> str:
    return f"s x {mesh.pp_stride} to the GPU numbers"


def _cache(facts: Facts, phase: PhaseFacts) -> list[str]:
    """KV heads, requests and tokens of every group of GPUs that hold the same, from the placement of the cache."""
    mesh = phase.graph.mesh
    kind = next(n for _, n in phase.graph.nodes() if n.op == "kv_write").outputs[0].type
    on_requests, on_tokens = kind.axes_of("batch"), kind.axes_of("context")
    on_heads = kind.axes_of("kv_heads") if kind.has("kv_heads") else ()
    cut = mesh.ordered({*on_requests, *on_tokens, *on_heads})
    others = [a.name for a in mesh.axes if a.name not in cut]
    rows = []
    for fixed in _coordinates(mesh, cut):
        heads = "latent, whole"
        if kind.has("kv_heads"):
            low, high = chunk_bounds(facts.spec.model.attention.kv_heads, _cuts(mesh, on_heads, fixed))
            heads = folded(range(low, high))
        groups = _group(mesh, on_requests, fixed), _group(mesh, on_tokens, fixed)
        rows.append((*groups, heads, folded(mesh.ranks(0, fixed, others))))
    each = size(max(m.kv_cache for m in phase.memory.stages))
    stages = f" (stage 0 shown; stage s adds {_shift(mesh)})" if mesh.pp > 1 else ""
    text = f"KV cache to GPUs: {each} on the fullest GPU. A stage keeps the cache of its own layers{stages}."
    if on_requests:
        text += f" The requests of a micro-batch are dealt to {mesh.size(on_requests)} groups, in order."
    if on_tokens:
        text += f" The tokens of a sequence lie over {mesh.size(on_tokens)} shards."
    if (copies := mesh.size(others)) > 1:
        text += f" {copies} GPUs hold the same shard."
    return [text, "", *_shortened(("request group", "token shard", "KV heads", "GPUs"), rows)]


def _cuts(mesh: Mesh, atoms: Sequence[str], fixed: Mapping[str, int]) -> list[tuple[int, int]]:
    """(size, coordinate) of axes that cut a dimension."""
    return [(mesh.axis(a).size, fixed[a]) for a in atoms]


def _group(mesh: Mesh, atoms: Sequence[str], fixed: Mapping[str, int]) -> str:
    """Number of a group along a named axis."""
    if not atoms or mesh.size(atoms) == 1:
        return "all"
    number = 0
    for name in atoms:
        number = number * mesh.axis(name).size + fixed[name]
    return str(number)


def _coordinates(mesh: Mesh, atoms: Sequence[str]) -> Iterator[dict[str, int]]:
    for values in product(*(range(mesh.axis(a).size) for a in atoms)):
        yield dict(zip(atoms, values, strict=True))


def _shortened(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    shown = table(columns, rows[:MOST_ROWS])
    left = len(rows) - MOST_ROWS
    return [*shown, f"and {left} more rows by the same rule.", ""] if left > 0 else shown
