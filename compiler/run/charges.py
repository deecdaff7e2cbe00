"""Bytes that an execution moved, beside those that the cost model charges for the same calls."""

from __future__ import annotations

import numpy as np

from ..cost import Hardware, node_costs
from ..ir.ops import operator
from ..ir.types import Extent
from .executor import Executor
from .report import Traffic


def traffic_of(run: Executor, hardware: Hardware) -> tuple[Traffic, ...]:
    """Bytes moved by kind, beside those charged for the same calls."""
    u = run.unrolled
    costs = node_costs(run.graph, hardware)
    charged = u.gather([costs[b.name, n.name].wire_bytes for b, n in u.templates]) * run.mesh.stage_ranks
    rows: dict[str, list[float]] = {}
    for call, moved in run.run_result.moved.items():
        node = u.node(call)
        routed = node.op in ("dispatch", "combine")
        expected = float(charged[call])
        if routed:
            ranks = run.mesh.size(node.attrs["axes"])
            agrees = _routed_agrees(run, call, moved.payload, expected * ranks / (ranks - 1))
        elif moved.uneven:
            agrees = moved.sent <= expected * (1 + 1e-9)
        else:
            agrees = bool(np.isclose(moved.sent, expected, rtol=1e-9, atol=0))
        row = rows.setdefault(operator(node).public, [0, 0.0, 0.0, 0, routed, True])
        row[0] += 1
        row[1] += moved.sent
        row[2] += expected
        row[3] += moved.uneven
        row[5] = row[5] and agrees
    return tuple(
        Traffic(op, int(r[0]), r[1], r[2], int(r[3]), bool(r[4]), bool(r[5])) for op, r in sorted(rows.items())
    )


def _routed_agrees(run: Executor, call: int, payload: float, expected: float) -> bool:
    """Whether as many rows were filled as are charged; fewer only where some group has less than the fullest."""
    u = run.unrolled
    kind = u.node(call).outputs[0].type
    extents = run.extents(int(u.item[call]), int(u.step[call]))
    sizes = {d.name: int(d.value(extents, run.mesh)) for d in kind.dims}
    rows = kind.dims[kind.index("rows")].size
    assert isinstance(rows, Extent)
    room = sizes["rows"] * run.mesh.size((*rows.batch_axes, *rows.new_axes))
    if room == int(extents["batch"]) * int(extents["new"]):
        return bool(np.isclose(payload, expected, rtol=1e-9, atol=0))
    return payload <= expected * (1 + 1e-9)
