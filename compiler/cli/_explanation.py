"""``--explain``: where the time of a phase goes, as text and as values for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from ._common import write_table

if TYPE_CHECKING:
    from ...passes.analysis.explain import NodeExplanation, NodeFigures, Top
    from ...passes.compiled import Compiled
    from ..cost.derivation import ParameterSet, Quantity

_PATHS = {
    "path": "the critical path",
    "trip": "one micro-batch through all stages",
    "round": "all micro-batches on the slowest stage or send",
}
_GROUP_COLUMNS = ("operator", "module", "nodes", "time", "share", "bound", "efficiency")
_NODE_COLUMNS = ("id", "name", "of", "time", "FLOPs", "HBM", "wire", "link", "bound", "efficiency")
_MULTIPLES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Explanation:
    """What ``--explain`` was asked for, of one compilation."""

    def __init__(self, compiled: Compiled, wanted: str) -> None:
        """Explain ``top`` or the nodes that ``wanted`` names; nothing where the run was rejected.

        Raises:
            DiagnosticError: PD506, there is no such node.
        """
        from ...passes.analysis.explain import explain_node, explain_top

        self.tops: dict[str, Top] = {}
        self.nodes: list[NodeExplanation] = []
        if wanted == "top":
            self.tops = {str(phase): explain_top(analysis) for phase, analysis in compiled.phases.items()}
        else:
            self.nodes = explain_node(compiled.phases, wanted, compiled.spec.cluster)

    def document(self) -> dict[str, Any]:
        """The ``explain`` key of the JSON output: ``{phase: top}``, or ``{"nodes": [...]}``."""
        if self.tops:
            return {phase: _top_document(top) for phase, top in self.tops.items()}
        return {"nodes": [_node_document(node) for node in self.nodes]}

    def write(self) -> None:
        """Print it for people on standard output."""
        for phase, top in self.tops.items():
            _write_top(phase, top)
        for node in self.nodes:
            _write_node(node)


def _top_document(top: Top) -> dict[str, Any]:
    return {
        "path": top.path.kind,
        "latency_s": top.latency,
        "groups": [_renamed(asdict(group)) for group in top.groups],
        "slowest": [_renamed(asdict(node)) for node in top.slowest],
    }


def _node_document(node: NodeExplanation) -> dict[str, Any]:
    derivation = asdict(node.derivation)
    terms = {f"{name}_s": seconds for name, seconds in derivation.pop("terms").items()}
    return {"phase": node.phase, **_renamed(asdict(node.figures)), **derivation, "terms": terms}


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    return {"time_s" if name == "seconds" else name: value for name, value in values.items()}


# --- text -------------------------------------------------------------------------------------------------------------


def _write_top(phase: str, top: Top) -> None:
    kind = "TTFT without queue" if phase == "prefill" else "TPOT"
    typer.echo(f"{phase}: {kind} {_time(top.latency)} is {_PATHS[top.path.kind]}")
    rows = [
        (g.op, g.module, f"{g.count:,}", _time(g.seconds), f"{g.share:.1%}", g.bound, f"{g.efficiency:.0%}")
        for g in top.groups
    ]
    count, total = sum(g.count for g in top.groups), sum(g.seconds for g in top.groups)
    rows.append(("sum", "", f"{count:,}", _time(total), f"{total / top.latency if top.latency else 0:.1%}", "", ""))
    write_table(_GROUP_COLUMNS, rows, right=("nodes", "time", "share", "efficiency"))
    typer.echo(f"{phase}: slowest nodes, one of each name")
    right = ("id", "of", "time", "FLOPs", "HBM", "wire", "efficiency")
    write_table(_NODE_COLUMNS, [_node_row(n) for n in top.slowest], right=right)


def _node_row(node: NodeFigures) -> tuple[str, ...]:
    return (
        str(node.id),
        node.name,
        f"{node.count:,}",
        _time(node.seconds),
        _scaled(node.flops, "FLOP"),
        _scaled(node.hbm_bytes, "B"),
        _scaled(node.wire_bytes, "B"),
        "" if node.link == "none" else node.link,
        node.bound,
        f"{node.efficiency:.0%}",
    )


def _write_node(node: NodeExplanation) -> None:
    n, derivation = node.figures, node.derivation
    where = [f"stage {n.stage}", *([] if n.layer is None else [f"layer {n.layer}"]), f"micro-batch {n.microbatch}"]
    where += [f"chunk {n.chunk}", f"step {n.step}"]
    typer.echo(f"{node.phase} {n.id}: {n.name} ({n.op}, {n.module}), one of {n.count:,}: {', '.join(where)}")
    link = "" if n.link == "none" else f" over {n.link}"
    typer.echo(f"  time {_time(n.seconds)}, bound {n.bound}, {n.efficiency:.1%} of the datasheet's peak{link}")
    typer.echo(f"  time = {derivation.formula}")
    for name, shape in derivation.shapes.items():
        typer.echo(f"  {name}: {shape}")
    for quantity in derivation.quantities:
        typer.echo(_quantity_line(quantity))
    for name, seconds in derivation.terms.items():
        typer.echo(f"  {name} term {_time(seconds)}")
    for parameters in derivation.parameters:
        typer.echo(_parameters_line(parameters))


def _quantity_line(quantity: Quantity) -> str:
    value = _time(quantity.value) if quantity.unit == "s" else _scaled(quantity.value, quantity.unit)
    return f"  {quantity.name} = {value}" + (f"  ({quantity.source})" if quantity.source else "")


def _parameters_line(found: ParameterSet) -> str:
    values = ", ".join(f"{name} {_fitted(name, value)}" for name, value in found.parameters.items())
    origin = f"inherited by {found.chip} from {found.inherited}" if found.inherited else f"fitted on {found.chip}"
    if found.residual is None:
        error = "error unknown"
    else:
        r = found.residual
        error = f"median error {r.median:.1%}, bias {r.bias:+.1%} on {r.rows:,} rows not fitted"
    return f"  {found.kind}.{found.variant}: {origin}, {error}; {found.source}\n    {values}"


def _fitted(name: str, value: float) -> str:
    return _time(value) if name.endswith("_s") else f"{value:.4g}"


def _time(seconds: float) -> str:
    for limit, scale, unit in ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (1e-6, 1e6, "us")):
        if seconds >= limit:
            return f"{seconds * scale:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns" if seconds else "0"


def _scaled(value: float, unit: str) -> str:
    """A number with a decimal multiple of its unit: ``1.5 GB``; counts stand as they are."""
    if not unit:
        return f"{value:,.0f}" if value == int(value) and value <= 1e6 else f"{value:.4g}"
    for limit, prefix in _MULTIPLES:
        if value >= limit:
            return f"{value / limit:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}" if value else "0"
