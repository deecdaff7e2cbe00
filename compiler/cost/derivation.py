"""How the cost of one node comes about: shapes, quantities, fitted figures and where each of them is from.

Made on demand for single nodes, by costing the node once more with a calibration that notes what is read of it; so a
derivation cannot tell another story than the cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..ir.graph import Block, Graph, Node
from ..ir.ops import GROUP, CostClass, Operator, Work, operator
from ..ir.types import Number, TensorType
from ..spec import ClusterSpec, LinkSpec
from ..spec.calibration import Calibration, Fit, Residual
from ..spec.catalog import CatalogLink, accelerator
from ._terms import Terms
from .hardware import Hardware, Link
from .network import EXCHANGES, link_shares, ranks_in_domain, wire_bytes
from .nodes import compute_dtype, expert_load, local_weights, node_crosses, node_terms, node_work

FORMULAS: Mapping[str, str] = {
    "gemm": "latency_s + max_p(compute, bytes / (HBM bandwidth_efficiency)) + prepare 3 m k / HBM + row_s m",
    "prefill": "latency_s + max_p(compute, bytes / (HBM bandwidth_efficiency)) + (prepare q + prepare_cache kv) / HBM",
    "decode": "latency_s + sequence_s sequences kv_heads + max_p(compute, memory)",
    "experts": "latency_s + expert_s visited + max_p(compute, bytes / (HBM bandwidth_efficiency)) + preparing passes",
    "streaming": "latency_s + bytes / (HBM bandwidth_efficiency)",
    "collective": "latency_s + hop_s (ceil(log2 ranks) - 1) + b + sqrt(pipeline_s b), b = wire / (link efficiency)",
    "exchange": "latency_s (+ network_latency_s) + max_p(scale-up bytes, scale-out bytes over their links)",
    "transfer": "latency + bytes / (link efficiency)",
    "planned": "launch + hop + bytes of the busiest rank / (link efficiency)",
    "free": "a view or a mark: takes no time",
    "receive": "takes no time: the send carries the cost",
}
"""Short forms of what docs/costs.md defines, by kind of node."""


@dataclass(frozen=True)
class Quantity:
    """A number that enters a cost: name, value, unit, and where it is from (empty: the shapes)."""

    name: str
    value: float
    unit: str
    source: str = ""


@dataclass(frozen=True)
class ParameterSet:
    """Fitted figures that a cost read.

    Attributes:
        kind: Operator class, as calibration files name it.
        variant: Number format or mode.
        parameters: Values by name.
        chip: Chip and engine that the figures are used for.
        inherited: Where they are taken from where that chip was not measured, or empty.
        residual: Error on measured rows that the fit has not seen; None where unknown.
        source: Of the measured rows.
    """

    kind: str
    variant: str
    parameters: Mapping[str, float]
    chip: str
    inherited: str
    residual: Residual | None
    source: str


@dataclass(frozen=True)
class Derivation:
    """One node's cost, taken apart.

    Attributes:
        formula: Short form of the formula.
        shapes: Local tensors on the fullest rank: role and name to sizes by dimension, with the number format.
        quantities: What enters the formula.
        parameters: Fitted figures that were read; of several modes or algorithms the fastest counts.
        terms: Seconds by cause; they overlap, so the time is at most their sum.
    """

    formula: str
    shapes: Mapping[str, str]
    quantities: tuple[Quantity, ...]
    parameters: tuple[ParameterSet, ...]
    terms: Mapping[str, float]


@dataclass(frozen=True)
class _Noting(Calibration):
    """A calibration that notes what is read of it."""

    read: dict[tuple[str, str], Fit] = field(default_factory=dict)

    def _get(self, kind: str, variant: str, cls: Any) -> Any:
        found = super()._get(kind, variant, cls)
        self.read[kind, variant] = self.fits[kind, variant]
        return found


def derive(
    graph: Graph,
    block: Block,
    node: Node,
    hardware: Hardware,
    cluster: ClusterSpec,
    extents: Mapping[str, int],
    repetition: int = 0,
) -> Derivation:
    """The derivation of one node's cost.

    Args:
        graph: A lowered graph.
        block: The node's block.
        node: The node.
        hardware: As the costs were made with.
        cluster: What the file says, which ``hardware`` was resolved from.
        extents: ``batch``, ``new`` and ``context`` of one item and step.
        repetition: Which of the block's layers.
    """
    rule, work = operator(node), node_work(graph, block, node, extents)
    noting = _Noting(**{k: getattr(hardware.calibration, k) for k in Calibration.__dataclass_fields__})
    terms = node_terms(graph, block, node, replace(hardware, calibration=noting), extents)
    quantities = [
        *_quantities(rule, work, graph.phase),
        *_machine(graph, block, work, hardware, cluster, repetition),
    ]
    return Derivation(
        formula=FORMULAS[_formula(rule, node, graph.phase)],
        shapes=_shapes(block, work),
        quantities=tuple(quantities),
        parameters=tuple(_set(noting, key, fit) for key, fit in noting.read.items()),
        terms=_seconds(terms, repetition),
    )


def planned(derivation: Derivation, sent: float) -> Derivation:
    """The derivation of a KV send whose busiest rank sends ``sent`` bytes, as the transfer is planned."""
    kept = [q for q in derivation.quantities if q.name not in ("payload", "wire bytes")]
    own = Quantity("wire bytes", sent, "B", "plan of the KV transfer: what the busiest rank sends")
    return replace(derivation, formula=FORMULAS["planned"], quantities=(own, *kept), terms={})


def _seconds(terms: Terms, repetition: int) -> dict[str, float]:
    named = {
        name: np.asarray(getattr(terms, name), dtype=float) for name in ("compute", "memory", "network", "latency")
    }
    found = {name: float(v.ravel()[repetition if v.size > 1 else 0]) for name, v in named.items()}
    return {name: seconds for name, seconds in found.items() if seconds > 0}


def _formula(rule: Operator, node: Node, phase: str) -> str:
    if node.op in ("recv", "kv_recv"):
        return "receive"
    if rule.cost_class is CostClass.ATTENTION:
        return "decode" if phase == "decode" else "prefill"
    if rule.cost_class is CostClass.NETWORK:
        return "exchange" if node.op in EXCHANGES else "collective" if "axes" in node.attrs else "transfer"
    known = {CostClass.GEMM: "gemm", CostClass.GROUPED_GEMM: "experts", CostClass.FREE: "free"}
    return known.get(rule.cost_class, "streaming")


# --- shapes -----------------------------------------------------------------------------------------------------------


def _shapes(block: Block, work: Work) -> dict[str, str]:
    node = work.node
    kinds = {f"input {name}": block.types[name] for name in node.inputs}
    kinds |= {f"output {value.name}": value.type for value in node.outputs}
    kinds |= {f"weight {p.name}": p.type for p in node.params if not p.const}
    return {name: _shape(kind, work) for name, kind in kinds.items()}


def _shape(kind: TensorType, work: Work) -> str:
    """``bf16 [batch=4, hidden=4096]``, groups of routed tokens in one dimension."""
    sizes: dict[str, Number] = {}
    for name, size in kind.local_dims(work.extents, work.mesh).items():
        key = "groups" if name.startswith(GROUP) else name
        sizes[key] = sizes.get(key, 1) * size
    return f"{kind.dtype} [{', '.join(f'{n}={float(s):.12g}' for n, s in sizes.items())}]"


# --- quantities -------------------------------------------------------------------------------------------------------


def _quantities(rule: Operator, work: Work, phase: str) -> list[Quantity]:
    """What a node's own shapes contribute."""
    if rule.cost_class is CostClass.NETWORK:
        return _message(work)
    flops, moved = (float(np.asarray(value)) for value in (rule.flops(work), rule.hbm_bytes(work)))
    found = [Quantity("FLOPs", flops, "FLOP"), Quantity("HBM bytes", moved, "B")]
    if rule.cost_class is CostClass.GEMM:
        weights, depth = float(np.asarray(local_weights(work))), float(np.asarray(rule.depth(work)))
        found += [_count("m", flops / 2 / max(weights, 1)), _count("n", weights / max(depth, 1)), _count("k", depth)]
    if rule.cost_class is CostClass.ATTENTION:
        query, cache = work.input(0), work.input(1)
        names = {"sequences": query["batch"], "heads": query["heads"], "kv_heads": cache.get("kv_heads", 1)}
        names |= {"context": work.extents["context"]} | ({"new": work.extents["new"]} if phase == "prefill" else {})
        names |= {"qk_dim": query["head_dim" if "head_dim" in query else "latent"], "v_dim": work.attrs["v_dim"]}
        found += [_count(name, value) for name, value in names.items()]
        found += [_count("window", work.attrs["window"])] if work.attrs.get("window") else []
    return found


def _message(work: Work) -> list[Quantity]:
    node = work.node
    payload: Any = work.input_bytes() if node.inputs else work.output_bytes()
    ranks = work.mesh.size(node.attrs["axes"]) if "axes" in node.attrs else 2
    wire = 0.0 if node.op in ("recv", "kv_recv") else wire_bytes(node.op, payload, ranks)
    source = "every routed row; the faster mode may send less" if node.op in EXCHANGES else ""
    return [
        Quantity("payload", float(np.asarray(payload)), "B"),
        Quantity("wire bytes", float(np.asarray(wire)), "B", source),
    ]


def _count(name: str, value: Any) -> Quantity:
    return Quantity(name, float(np.asarray(value)), "")


def _machine(
    graph: Graph, block: Block, work: Work, hardware: Hardware, cluster: ClusterSpec, repetition: int
) -> list[Quantity]:
    """What the machine contributes, each figure with its source."""
    rule, node = operator(work.node), work.node
    if rule.cost_class is CostClass.FREE or node.op in ("recv", "kv_recv"):
        return []
    if rule.cost_class is CostClass.NETWORK:
        return _links(graph, block, work, hardware, cluster, repetition)
    found = []
    if rule.cost_class is CostClass.GROUPED_GEMM:
        load = expert_load(work, hardware.skew)
        found += [_count("visited experts", load.experts.sum()), _count("rows", load.total)]
    if rule.cost_class is not CostClass.MEMORY:
        dtype = compute_dtype(rule, node)
        found.append(Quantity(f"{dtype} peak", hardware.peaks[dtype], "FLOP/s", _peak_source(dtype, hardware, cluster)))
        found.append(_count("units", hardware.units))
    source = "file" if cluster.accelerator.bandwidth else _datasheet(cluster)
    found.append(Quantity("HBM", hardware.bandwidth, "B/s", source))
    for name, share in (("compute", hardware.compute_efficiency), ("bandwidth", hardware.bandwidth_efficiency)):
        if share is not None:
            found.append(Quantity(f"{name} efficiency", share, "", "file, in place of fitted figures"))
    return [*found, *_issue(hardware)]


def _issue(hardware: Hardware) -> list[Quantity]:
    return [Quantity("issue", hardware.issue, "s", "host, no captured graphs: a floor")] if hardware.issue else []


def _links(
    graph: Graph, block: Block, work: Work, hardware: Hardware, cluster: ClusterSpec, repetition: int
) -> list[Quantity]:
    node = work.node
    found: list[Quantity] = []
    if "axes" in node.attrs:
        ranks = int(work.mesh.size(node.attrs["axes"]))
        inside = int(ranks_in_domain(work.mesh, node.attrs["axes"], hardware.domain))
        used = [float(np.asarray(share)) > 0 for share in link_shares(node.op, ranks, inside)]
        found += [_count("ranks", ranks), _count("ranks in a domain", inside)]
    else:
        crosses = np.asarray(node_crosses(graph, block, node, hardware)).ravel()
        far = bool(crosses[repetition if len(crosses) > 1 else 0])
        used = [not far, far]
    chip = accelerator(cluster.accelerator.catalog) if cluster.accelerator.catalog else None
    given = (cluster.scale_up, cluster.scale_out)
    catalogued = (chip.scale_up, chip.scale_out) if chip else (None, None)
    links = (hardware.scale_up, hardware.scale_out)
    for name, link, own, listed, is_used in zip(("scale_up", "scale_out"), links, given, catalogued, used, strict=True):
        if is_used:
            found += _link(name, link, own, listed, _datasheet(cluster))
    return [*found, Quantity("launch", hardware.launch, "s", "streaming latency_s"), *_issue(hardware)]


def _link(name: str, link: Link, given: LinkSpec, listed: CatalogLink | None, datasheet: str) -> list[Quantity]:
    catalogued = listed is not None and listed.bandwidth is not None
    source = "file" if given.bandwidth else datasheet if catalogued else "the other link's: neither file nor catalogue"
    hop = "file" if given.latency is not None else "default per hop; fitted latencies go first"
    return [
        Quantity(f"{name} link", link.peak, "B/s", source),
        Quantity(f"{name} hop", link.latency, "s", hop),
    ]


def _datasheet(cluster: ClusterSpec) -> str:
    name = cluster.accelerator.catalog
    if name is None:
        return "file"
    entry = accelerator(name)
    return f"datasheet of {name}" + (f" ({entry.sources[0]})" if entry.sources else "")


def _peak_source(dtype: str, hardware: Hardware, cluster: ClusterSpec) -> str:
    note = hardware.notes.get(dtype)
    if dtype in cluster.accelerator.compute or (note is None and "*" in cluster.accelerator.compute):
        return "file"
    return note if note is not None else _datasheet(cluster)


def _set(calibration: Calibration, key: tuple[str, str], fit: Fit) -> ParameterSet:
    return ParameterSet(
        kind=key[0],
        variant=key[1],
        parameters=asdict(fit.parameters),
        chip=f"{calibration.chip}, {calibration.engine}",
        inherited=calibration.origins.get(key, ""),
        residual=fit.residual,
        source=fit.source,
    )
