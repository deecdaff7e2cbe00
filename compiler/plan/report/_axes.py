"""Which axis lies on which link, how the orders of axes and the splits of layers compare, and what no figure tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ....passes.validation import balanced
from ...build import needs_transfer
from ...cost.network import ranks_in_domain
from ...ir.mesh import ATTENTION_VIEW, EXPERT_VIEW, Mesh
from ...spec.catalog import accelerator
from ..arrangement import shares_weights
from ..orders import USUAL, Compared, Order, PhaseOrders, aligned, orders
from ..splits import SplitTimes, admitted, neighbours
from ._facts import Facts, PhaseFacts
from ._format import counted, folded, percent, seconds, size, table

MOST_ORDERS = 8
"""Rows of a table of orders; the slower ones are counted."""


def axes(facts: Facts, phase: PhaseFacts) -> list[str]:
    """Axis to GPUs, link and traffic, and the orders of axes."""
    return [*_axis_table(facts, phase), *_orders(facts, phase)]


# --- axes on links ------------------------------------------------------------------------------------------------


def _axis_table(facts: Facts, phase: PhaseFacts) -> list[str]:
    mesh, domain = phase.graph.mesh, facts.hardware.domain
    rows = [_axis_row(phase, names, key, domain) for key, names in _axis_names(phase).items()]
    if not rows:
        return ["Axes to links: no axis has a degree above 1; nothing is communicated inside a replica.", ""]
    unit = "batch" if phase.phase == "prefill" else "step"
    columns = ("axis", "degree", "GPUs of the first group", "link", f"collectives, bytes and time per {unit}")
    dp = f"The {mesh.dp} replicas exchange nothing with each other. " if mesh.dp > 1 else ""
    text = f"Axes to links, with scale-up domains of {counted(domain, 'GPU')}; bytes of all GPUs of a replica, time"
    return [f"{dp}{text} of one GPU:", "", *table(columns, rows, right=("degree",)), *_astride(phase, domain)]


def _astride(phase: PhaseFacts, domain: int) -> list[str]:
    """That figures of groups across the borders of domains are too good, where there are such groups."""
    mesh = phase.graph.mesh
    keys = {t.axes for t in phase.traffic if t.op != "KVTransfer" and t.axes != "pp"}
    across = sorted(key for key in keys if not aligned(mesh, _atoms(mesh, key), domain))
    if not across:
        return []
    return [
        f"Groups of {', '.join(across)} begin inside a domain and reach into the next. The cost model takes groups to "
        "begin where domains begin, so their time here is too short.",
        "",
    ]


def _axis_names(phase: PhaseFacts) -> dict[str, list[str]]:
    """Groups of GPUs that communicate or have a name: how traffic calls them to the axes that span them."""
    mesh = phase.graph.mesh
    has_experts = any(n.module == "moe" for _, n in phase.graph.nodes())
    named = [*ATTENTION_VIEW, *(EXPERT_VIEW if has_experts else ())]
    found: dict[str, list[str]] = {"pp": ["pp"]} if mesh.pp > 1 else {}
    for name in named:
        if mesh.degree(name) > 1:
            found.setdefault(mesh.describe(mesh.view(name)), []).append(name)
    for row in phase.traffic:
        if row.op != "KVTransfer" and row.axes != "pp":
            found.setdefault(row.axes, [row.axes])
    return found


def _axis_row(phase: PhaseFacts, names: Sequence[str], key: str, domain: int) -> tuple[str, ...]:
    mesh = phase.graph.mesh
    traffic = [t for t in phase.traffic if t.axes == key and t.op != "KVTransfer"]
    if key == "pp":
        group = [mesh.first_rank + stage * mesh.pp_stride for stage in range(mesh.pp)]
        domains = len({gpu // domain for gpu in group})
        link = "scale-up" if domains == 1 else f"both: {domains} domains"
    else:
        atoms = _atoms(mesh, key)
        group, link = mesh.ranks(0, {}, atoms), _link(mesh, atoms, domain)
    said = "; ".join(f"{t.op} {size(t.bytes)} in {seconds(t.seconds)}" for t in traffic)
    return " = ".join(names), str(len(group)), folded(group), link, said or "none of its own"


def _atoms(mesh: Mesh, key: str) -> tuple[str, ...]:
    """Atomic axes of a group as traffic calls it: named axes and atoms joined by ``+``."""
    names = key.split("+")
    return mesh.ordered(a for name in names for a in (mesh.view(name) or (name,)))


def _link(mesh: Mesh, atoms: Sequence[str], domain: int) -> str:
    """Links that groups over some axes use, from the GPU numbers of all groups of all stages and replicas."""
    others = [a.name for a in mesh.axes if a.name not in atoms]
    ranks = np.array([mesh.ranks(stage, {}, [*others, *atoms]) for stage in range(mesh.pp)])
    every = ranks.reshape(1, -1, mesh.size(atoms)) + (np.arange(mesh.dp) * mesh.replica_ranks)[:, None, None]
    domains = np.sort(every.reshape(-1, mesh.size(atoms)) // domain, axis=1)
    parted = 1 + (np.diff(domains, axis=1) > 0).sum(axis=1)
    if parted.max() == 1:
        return "scale-up"
    if parted.min() == mesh.size(atoms):
        return "scale-out"
    if parted.min() == parted.max():
        whole = mesh.size(atoms) % int(parted[0]) == 0
        each = f"{mesh.size(atoms) // int(parted[0])} GPUs in each of" if whole else f"{mesh.size(atoms)} GPUs over"
        return f"both: {each} {parted[0]} domains"
    return f"both in {(parted > 1).sum()} of {counted(len(parted), 'group')}, scale-up in the others"


# --- orders -------------------------------------------------------------------------------------------------------


def _orders(facts: Facts, phase: PhaseFacts) -> list[str]:
    mesh, domain = phase.graph.mesh, facts.hardware.domain
    if len(orders(mesh, domain)) == 1:
        present = [n for n in ATTENTION_VIEW if mesh.degree(n) > 1] + ["pp"] * (mesh.pp > 1)
        why = (
            "less than two axes have a degree above 1"
            if len(present) < 2
            else f"every replica lies inside one scale-up domain of {counted(domain, 'GPU')}"
        )
        return [f"Order of axes: nothing to choose, since {why}.", ""]
    found = PhaseOrders(facts.spec, phase.graph, facts.hardware)
    compared = found.compare(whole=True)
    assert compared is not None
    own = _own(phase, compared)
    name = _figure(facts, phase)
    ranked = sorted(compared.distinct, key=lambda order: (compared.latency[order], order != own))
    rows = [
        (
            f"`{' '.join(order)}`" + (" (chosen)" if order == own else ""),
            str(sum(compared.latency[o] == compared.latency[order] for o in compared.latency)),
            seconds(compared.latency[order]),
            percent(compared.latency[order] / compared.latency[own] - 1, signed=True),
        )
        for order in ranked[:MOST_ORDERS]
    ]
    left = len(orders(mesh, domain)) - len(compared.latency)
    lines = ["Orders of axes, from the outermost to the innermost (neighbouring GPUs):", ""]
    lines += table(("order", "orders like it", name, "against the choice"), rows, right=("orders like it", name))
    if len(ranked) > MOST_ORDERS:
        lines += [f"and {len(ranked) - MOST_ORDERS} slower ones.", ""]
    if left:
        lines += [f"{counted(left, 'order')} more would have groups across the borders of domains: not compared.", ""]
    return [*lines, " ".join(_why(facts, found, compared, own, name)), ""]


def _own(phase: PhaseFacts, compared: Compared) -> Order:
    """The order that stands for the strategy's among the distinct ones."""
    order = phase.strategy.placement or USUAL
    latency = compared.latency.get(order, compared.latency[USUAL])
    return next((o for o in compared.distinct if o == order), None) or next(
        o for o in compared.distinct if compared.latency[o] == latency
    )


def _why(facts: Facts, found: PhaseOrders, compared: Compared, own: Order, name: str) -> Iterator[str]:
    others = [o for o in compared.distinct if o != own]
    if not others:
        yield "All orders send everything over the same links, so the usual one stays."
        return
    best = min(others, key=lambda o: compared.latency[o])
    more = compared.latency[best] / compared.latency[own] - 1
    if more > 0:
        yield f"`{' '.join(own)}` has the smallest {name}; the next order takes {percent(more)} longer."
    elif more == 0:
        yield f"`{' '.join(own)}` is as fast as any."
    else:
        yield f"`{' '.join(best)}` would be {percent(-more)} faster in this phase alone."
    domain = facts.hardware.domain
    one, two = found.mesh(own), found.mesh(best)
    for view in (*ATTENTION_VIEW, "ep"):
        atoms = one.view(view)
        mine, theirs = (int(ranks_in_domain(m, atoms, domain)) for m in (one, two))
        if one.size(atoms) > 1 and mine != theirs:
            yield f"It has {mine} of the {one.size(atoms)} GPUs of {view} in one domain, that one {theirs}."
    if len(facts.phases) == 2 and not needs_transfer(facts.spec):
        yield "Both phases have the same order: the cache would move otherwise."
    elif shares_weights(facts.spec):
        yield "Both phases use the same weights, which another order in one of them would lay out twice."


def _figure(facts: Facts, phase: PhaseFacts) -> str:
    """What the seconds of a phase's schedule are called; in a continuous batch they are a part of TTFT or TPOT."""
    if facts.continuous:
        return "prefill step" if phase.phase == "prefill" else "decode step"
    return "TTFT" if phase.phase == "prefill" else "TPOT"


# --- splits -------------------------------------------------------------------------------------------------------


def splits(facts: Facts, phase: PhaseFacts) -> list[str]:
    """The split of layers beside the balanced one and its best neighbours."""
    graph, model = phase.graph, facts.spec.model
    if len(graph.stages) == 1:
        return []
    times = SplitTimes(graph, phase.costs)
    even = balanced(model, len(graph.stages))
    near = [s for s in neighbours(graph.stages, times.slowest(graph.stages)) if admitted(model, s)]
    tried = list(dict.fromkeys([graph.stages, even, *sorted(near, key=lambda s: (times.latency(s), s))[:2]]))
    name = _figure(facts, phase)
    rows = []
    for split in tried:
        busy = times.seconds(split)
        marks = [m for m, is_so in (("chosen", split == graph.stages), ("balanced by bytes", split == even)) if is_so]
        shown = " ".join(map(str, split)) + (f" ({', '.join(marks)})" if marks else "")
        rows.append((shown, seconds(float(busy.max())), seconds(float(busy.mean())), seconds(times.latency(split))))
    columns = ("layers of the stages", "slowest stage", "mean", name)
    why = "the balanced split stays: no neighbour is better for the deployment"
    if graph.stages != even:
        why = "layers were moved, one at a time, to where the deployment gains by it"
    return [f"Splits of layers, by seconds of the stages; {why}:", "", *table(columns, rows, right=columns[1:])]


# --- what no figure tells -----------------------------------------------------------------------------------------


def machine(facts: Facts) -> list[str]:
    """The host link and NUMA: what uses them, and what is not known."""
    cluster = facts.spec.cluster
    host = f" ({cluster.host.bandwidth / 1e9:.4g} GB/s)" if cluster.host.bandwidth else ""
    text = (
        f"Host link{host}: nothing in these figures uses it; weights and KV cache stay in GPU memory, and no "
        "offloading is planned. NUMA: the cluster description has no figure for sockets or host bridges, so no group "
        "is matched to them."
    )
    chip = cluster.accelerator
    entry = accelerator(chip.catalog, facts.spec.pack) if chip.catalog else None
    if entry is not None and entry.scale_up.name.startswith("PCIe"):
        shared = facts.hardware.calibration.collective("all_reduce").contention
        text += f" Scale-up is {entry.scale_up.name}, a bus that the GPUs of a host share"
        if shared > 0.01:
            left = ", ".join(f"{percent((n / 2) ** -shared)} for {n}" for n in (4, 8))
            text += (
                f": fitted all-reduces leave each GPU of a group a share of the link's rate that falls with the "
                f"group ({left}). Whether a group spans two sockets is in that figure, but not told apart from the "
                "bus"
            )
        text += "."
    return [text, ""]
