"""The ``cluster`` block: accelerator, nodes and links."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..compiler.spec import DTYPES, AcceleratorSpec, ClusterSpec
from ._context import Block, Context
from ._syntax import Statement, token_span
from ._units import BANDWIDTH, COMPUTE, SIZE, TIME, show
from ._words import join, nearest, usage

__all__ = ["build_cluster"]

ANY_DTYPE = "*"
"""Key of a compute figure that names no format."""


def build_cluster(context: Context, head: Statement, known: Sequence[str]) -> ClusterSpec | None:
    """The cluster of the file, or None where errors (all reported) leave none; ``known`` are the catalogue's names."""
    block = Block(context, head, "cluster")
    before = len(context.diagnostics)
    fields: dict[str, Any] = {}
    block.require("accelerator", "nodes")
    if (statement := block.get("accelerator")) is not None and (
        chip := _accelerator(block, statement, known)
    ) is not None:
        fields["accelerator"] = chip
    _nodes(block, fields)
    for link in block.all("link"):
        if (name := block.choice(link)) is not None:
            inner = Block(context, link, f"cluster.{name}", f"link {name}")
            data: dict[str, Any] = {}
            inner.read_measure(data, "bandwidth", BANDWIDTH)
            inner.read_measure(data, "latency", TIME)
            inner.read_counts(data, "domain")
            if name != "scale_up" and (domain := inner.get("domain")) is not None:
                fix = "remove it, or write it in `link scale_up`"
                context.report("PD011", f"`domain` has no place in `link {name}`", inner.span(domain), None, fix)
            fields[name] = data
    cluster = context.validate(ClusterSpec, fields, "cluster")
    return None if any(d.is_error for d in context.diagnostics[before:]) else cluster


def _nodes(block: Block, fields: dict[str, Any]) -> None:
    statement = block.get("nodes")
    if statement is None:
        return
    block.place("nodes", statement)
    block.place("gpus_per_node", statement)
    numbers = [block.whole(statement, token) for token in statement.tokens("NUMBER")]
    if statement.tokens("ANY"):
        numbers.insert(0, None)
    fields["nodes"], fields["gpus_per_node"] = numbers


def _accelerator(block: Block, head: Statement, known: Sequence[str]) -> AcceleratorSpec | None:
    context = block.context
    inner = Block(context, head, "cluster.accelerator", "accelerator")
    fields = _name(inner, head, known)
    _compute(inner, fields)
    inner.read_measure(fields, "memory", SIZE)
    inner.read_measure(fields, "bandwidth", BANDWIDTH)
    if (statement := inner.get("bandwidth")) is not None and statement.efficiency is not None:
        inner.place("bandwidth_efficiency", statement)
        inner.place("bandwidth", statement)
        fields["bandwidth_efficiency"] = inner.share(statement)
    if fields["catalog"] is None and fields["name"] and "accelerator" not in context.damaged:
        missing = [key for key in ("compute", "memory", "bandwidth") if not fields.get(key) and not inner.all(key)]
        close = nearest(fields["name"], known)
        fix = f"for the catalogue's entry write `accelerator {close[0]}` without quotes" if close else None
        missing = [key for key in missing if key not in context.damaged]
        if missing:
            message = f"`accelerator` has no {join((f'`{key}`' for key in missing), 'and')}"
            fix = fix or usage("accelerator")
            context.report("PD013", message, inner.head, "compute, memory and bandwidth of the chip", fix)
    return context.validate(AcceleratorSpec, fields, "cluster.accelerator")


def _name(inner: Block, head: Statement, known: Sequence[str]) -> dict[str, Any]:
    """Name and catalogue entry: a bare name is looked up, a quoted one is the file's own chip."""
    token = head.tokens("NAME", "STRING")[0]
    if token.type == "STRING":
        return {"name": json.loads(token, strict=False), "catalog": None}
    if token not in known:
        close = nearest(token, known, 4, 0.4)
        inner.context.report(
            "PD016",
            f"unknown accelerator `{token[:40]}`",
            token_span(token, inner.context.file),
            "a name of the catalogue" + (f", such as {', '.join(f'`{name}`' for name in close)}" if close else ""),
            "`paradag accelerators` lists them; describe your own chip with a quoted name and a block",
        )
    return {"name": str(token), "catalog": str(token)}


def _compute(inner: Block, fields: dict[str, Any]) -> None:
    context = inner.context
    peaks: dict[str, float] = {}
    shares: dict[float, Statement] = {}
    for statement in inner.all("compute"):
        inner.place("compute", statement)
        if quantities := statement.quantities():
            dtype = inner.choice(statement, tuple(DTYPES)) if statement.tokens("NAME") else ANY_DTYPE
            value = inner.number(statement, quantities[0], COMPUTE)
            if value is not None and value <= 0:
                context.report(
                    "PD015", "`compute` is out of range", inner.span(statement), "more than 0", "give the peak"
                )
            elif dtype is not None and value is not None:
                inner.place(f"compute.{dtype}", statement)
                peaks[dtype] = value
        if statement.efficiency is not None and (share := inner.share(statement)) is not None:
            inner.place("compute_efficiency", statement)
            shares[share] = statement
    if ANY_DTYPE in peaks:
        context.assume(
            "cluster.accelerator.compute",
            show(peaks[ANY_DTYPE], COMPUTE),
            "given without a format: taken as the model's",
        )
    if len(shares) > 1:
        first, second, *_ = shares.values()
        context.report(
            "PD012",
            f"two compute efficiencies, the first on line {first.key.line}",
            inner.span(second),
            "one efficiency for all formats",
            "write the same `at` share on each `compute`, or on one of them",
        )
    fields["compute"] = peaks
    fields["compute_efficiency"] = next(iter(shares), None)
