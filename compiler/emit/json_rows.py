"""The JSON document of a compiled phase, streamed: one node or edge per line, rendered from fragments.

A row is its id, a part that its call shares, a part that its shard shares with the same shard of other layers, and the
call's cost. Only the parts are serialised; rows are joined bytes, so a million of them need no object each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

from ...passes.analysis import PhaseAnalysis, Route, TransferPlan
from ...passes.analysis.communication import LINKS, node_links
from ...passes.compiled import Compiled
from ..cost import BOUNDS
from ..ir.graph import Block, Node, Phase
from ..ir.ops import CostClass, operator
from ..ir.types import Number
from ..ir.unrolled import EDGE_KINDS
from ._files import replacing
from ._numbers import number, plain
from ._shards import atom_coordinates, axis_words, device_groups, local_tensor, named_coordinates
from .document import Header, build_header, header_fields

_EDGES_AT_ONCE = 1 << 16
_CACHE_BYTES = 64 << 20
"""Fragments kept for reuse; past this they are dropped, which costs time and never memory."""


def write_json(compiled: Compiled, phase: Phase, path: Path) -> None:
    """Write the document of one phase, byte for byte the same for the same input.

    A rejected run, or a phase that was not compiled, gives the header with no nodes and no edges.

    Raises:
        DiagnosticError: PD601, the file cannot be written.
    """
    header = build_header(compiled, phase)
    analysis = compiled.phases.get(phase)
    with replacing(path) as file:
        if analysis is None:
            write_document(file, header, (), ())
        else:
            flat = analysis.flat
            write_document(file, header, node_rows(analysis, compiled.transfer), edge_rows(*flat.edges(), flat.kinds))


def write_document(file: BinaryIO, header: Header, nodes: Iterable[bytes], edges: Iterable[bytes]) -> None:
    """Write a document from rendered rows; each element of ``nodes`` and ``edges`` holds one or more rows, joined."""
    file.write(b"{\n")
    for key, value in header_fields(header).items():
        file.write(b'"%b":%b,\n' % (key.encode(), orjson.dumps(value)))
    file.write(b'"nodes":')
    _write_rows(file, nodes)
    file.write(b',\n"edges":')
    _write_rows(file, edges)
    file.write(b"\n}\n")


def _write_rows(file: BinaryIO, rows: Iterable[bytes]) -> None:
    opening = b"[\n"
    for chunk in rows:
        file.write(opening)
        file.write(chunk)
        opening = b",\n"
    file.write(b"[]" if opening == b"[\n" else b"\n]")


def edge_rows(sources: NDArray[np.int32], targets: NDArray[np.int32], kinds: NDArray[np.int8]) -> Iterator[bytes]:
    """Edges as JSON rows, some thousands at a time."""
    endings = [b',"kind":"%b"}' % k.encode() for k in EDGE_KINDS]
    for low in range(0, len(sources), _EDGES_AT_ONCE):
        part = slice(low, low + _EDGES_AT_ONCE)
        columns = zip(sources[part].tolist(), targets[part].tolist(), kinds[part].tolist(), strict=True)
        yield b",\n".join([b'{"source":%d,"target":%d%b' % (s, t, endings[k]) for s, t, k in columns])


def node_rows(analysis: PhaseAnalysis, plan: TransferPlan | None = None) -> Iterator[bytes]:
    """Nodes as JSON rows, one call at a time, in the order of their ids; ``plan`` names the peers of KV transfers."""
    flat, calls = analysis.flat, analysis.flat.unrolled
    shards = _ShardParts(analysis, plan)
    heads = [_head(block, node, analysis.graph.phase) for block, node in calls.templates]
    items = [(i.microbatch, i.chunk) for i in analysis.graph.items]
    names = ("template", "step", "item", "layer", "stage")
    columns = zip(*(getattr(calls, n).tolist() for n in names), _cost_parts(analysis), strict=True)
    first = flat.first.tolist()
    for call, (template, step, item, layer, stage, cost) in enumerate(columns):
        transfer = transfer_id(calls.templates[template][1], layer)
        begin = b'%b,"stage":%d,"layer":%b%b,"coords":{"step":%d,"microbatch":%d,"chunk":%d' % (
            heads[template],
            stage,
            b"null" if layer < 0 else b"%d" % layer,
            b',"transfer":%b' % orjson.dumps(transfer) if transfer else b"",
            step,
            *items[item],
        )
        parts = shards.of(template, stage, step, item, layer if transfer else -1)
        yield b",\n".join([b'{"id":%d%b%b%b' % (i, begin, p, cost) for i, p in enumerate(parts, first[call])])


def transfer_id(node: Node, layer: int) -> str:
    """What pairs the KV transfers of the two phases: the cache of one layer. Empty for other nodes."""
    return f"{node.attrs['transfer']}.{layer}" if "transfer" in node.attrs else ""


def is_communication(node: Node) -> bool:
    """Whether the bytes of a node are bytes on the wire."""
    return operator(node).cost_class is CostClass.NETWORK


def group_axes(analysis: PhaseAnalysis, template: int) -> tuple[str, ...]:
    """Atomic axes that a collective runs over, or that a node's device group spans."""
    node = analysis.flat.unrolled.templates[template][1]
    mesh = analysis.graph.mesh
    if "axes" in node.attrs:
        return mesh.ordered(node.attrs["axes"])
    return mesh.ordered({a.name for a in mesh.axes} - set(analysis.flat.expanded[template]))


def node_figures(analysis: PhaseAnalysis) -> dict[str, NDArray[np.float64]]:
    """``flops``, ``bytes``, ``time_s``, ``bound``, ``efficiency`` and ``link`` of every call, on its fullest rank.

    Bounds are indices into BOUNDS, links into LINKS.
    """
    calls = analysis.flat.unrolled
    costs = [(node, analysis.costs[block.name, node.name]) for block, node in calls.templates]
    return {
        "flops": calls.gather([c.flops for _, c in costs]),
        "bytes": calls.gather([c.wire_bytes if is_communication(n) else c.hbm_bytes for n, c in costs]),
        "time_s": analysis.flat.call_duration,
        "bound": calls.gather([c.bound for _, c in costs]),
        "efficiency": calls.gather([c.efficiency for _, c in costs]),
        "link": calls.gather([_links(analysis, block, node) for block, node in calls.templates]),
    }


def _links(analysis: PhaseAnalysis, block: Block, node: Node) -> Number:
    return node_links(analysis.graph, block, node, analysis.hardware, analysis.traffic)


def _head(block: Block, node: Node, phase: Phase) -> bytes:
    rule = operator(node)
    fields = {
        "op": rule.public,
        "name": f"{block.name}.{node.name}",
        "kind": rule.kind.value,
        "module": node.module,
        "phase": phase,
    }
    return b"," + orjson.dumps(fields)[1:-1]


def _cost_parts(analysis: PhaseAnalysis) -> Iterator[bytes]:
    figures = node_figures(analysis)
    for flops, moved, seconds, bound, efficiency, link in zip(*(c.tolist() for c in figures.values()), strict=True):
        yield b',"flops":%b,"bytes":%b,"time_s":%b,"bound":"%b","efficiency":%b,"link":"%b"}' % (
            number(flops),
            number(moved),
            number(seconds),
            BOUNDS[int(bound)].encode(),
            number(efficiency),
            LINKS[int(link)].encode(),
        )


class _ShardParts:
    """The part of a row that depends on the shard: its coordinates, devices, peers and tensors."""

    def __init__(self, analysis: PhaseAnalysis, plan: TransferPlan | None) -> None:
        self.analysis = analysis
        self.plan = plan
        self.mesh = analysis.graph.mesh
        self.extents = {name: np.asarray(v).tolist() for name, v in analysis.graph.extents().items()}
        self.devices: dict[tuple[tuple[str, ...], int], list[bytes]] = {}
        self.parts: dict[tuple[int, ...], list[bytes]] = {}
        self.size = 0
        self.needs = [_extents_needed(b, n) for b, n in analysis.flat.unrolled.templates]

    def of(self, template: int, stage: int, step: int, item: int, moving: int = -1) -> list[bytes]:
        """One fragment per shard. Calls whose tensors have the same sizes share them.

        A KV transfer names in ``moving`` the layer whose cache it moves; layers and items that move alike share too.
        """
        sizes = {name: self.extents[name][step][item] if name in self.needs[template] else 0 for name in self.extents}
        route = self.plan.of_layer.get(moving) if self.plan else None
        microbatch = self.analysis.graph.items[item].microbatch
        key = (template, stage, *sizes.values(), *((route.layers[0], microbatch) if route else ()))
        if key not in self.parts:
            made = self._make(template, stage, sizes, route, microbatch)
            self.size += sum(map(len, made))
            if self.size > _CACHE_BYTES:
                self.parts.clear()
                self.size = sum(map(len, made))
            self.parts[key] = made
        return self.parts[key]

    def _make(
        self, template: int, stage: int, sizes: dict[str, int], route: Route | None, microbatch: int
    ) -> list[bytes]:
        node = self.analysis.flat.unrolled.templates[template][1]
        expanded = self.analysis.flat.expanded[template]
        named = named_coordinates(self.mesh, expanded, node.view)
        coords = [b""] * self.mesh.size(expanded)
        for name, values in named.items():
            coords = [b'%b,"%b":%d' % (c, name.encode(), v) for c, v in zip(coords, values.tolist(), strict=True)]
        experts = node.view == "expert"
        group = orjson.dumps(axis_words(self.mesh, group_axes(self.analysis, template), experts=experts))
        devices = self._devices(expanded, stage)
        peers = [b""] * len(devices) if route is None else self._peers(expanded, stage, route, microbatch)
        tensors, which = self._tensors(template, sizes)
        return [
            b'%b},"group":%b,"devices":%b%b,%b' % (c, group, d, p, tensors[w])
            for c, d, p, w in zip(coords, devices, peers, which, strict=True)
        ]

    def _peers(self, expanded: tuple[str, ...], stage: int, route: Route, microbatch: int) -> list[bytes]:
        """Whom the ranks of each shard exchange a layer's cache with, and how many bytes."""
        phase = self.analysis.graph.phase
        found = (route.peers(phase, microbatch, group) for group in device_groups(self.mesh, expanded, stage).tolist())
        return [
            b',"peers":%b' % orjson.dumps([{"device": d, "bytes": plain(size)} for d, size in peers.items()])
            for peers in found
        ]

    def _devices(self, expanded: tuple[str, ...], stage: int) -> list[bytes]:
        if (expanded, stage) not in self.devices:
            ranks = device_groups(self.mesh, expanded, stage).tolist()
            self.devices[expanded, stage] = [orjson.dumps(r) for r in ranks]
        return self.devices[expanded, stage]

    def _tensors(self, template: int, sizes: dict[str, int]) -> tuple[list[bytes], list[int]]:
        """Distinct renderings of a node's tensors, and which one each shard has."""
        block, node = self.analysis.flat.unrolled.templates[template]
        expanded = self.analysis.flat.expanded[template]
        atoms = atom_coordinates(self.mesh, expanded)
        kinds = {
            "inputs": [(name, block.types[name]) for name in node.inputs],
            "outputs": [(v.name, v.type) for v in node.outputs],
            "weights": [(p.name, p.type) for p in node.params if not p.const],
        }
        experts = node.view == "expert"
        tensors = {
            key: [local_tensor(n, t, sizes, self.mesh, atoms, experts=experts) for n, t in some]
            for key, some in kinds.items()
        }
        every = [t.sizes for some in tensors.values() for t in some]
        table = np.concatenate([np.zeros((self.mesh.size(expanded), 1), dtype=np.int64), *every], axis=1)
        _, example, which = np.unique(table, axis=0, return_index=True, return_inverse=True)
        rendered = [
            orjson.dumps({key: [t.row(shard) for t in some] for key, some in tensors.items()})[1:-1]
            for shard in example.tolist()
        ]
        return rendered, which.ravel().tolist()


def _extents_needed(block: Block, node: Node) -> frozenset[str]:
    """Which of ``batch``, ``new`` and ``context`` the sizes of a node's tensors depend on."""
    types = [*(block.types[i] for i in node.inputs), *(v.type for v in node.outputs), *(p.type for p in node.params)]
    kinds = {dim.size.kind for t in types for dim in t.dims if not isinstance(dim.size, int)}
    needed = {
        "batch": {"batch", "rows"},
        "new": {"new", "rows", "window", "past"},
        "context": {"context", "window", "past"},
    }
    return frozenset(name for name, uses in needed.items() if kinds & uses)
