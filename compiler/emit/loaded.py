"""A graph as it came back from a JSON document: columns, in which equal values are kept once."""

from __future__ import annotations

import io
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import orjson
from numpy.typing import NDArray

from ..ir.unrolled import EDGE_KINDS
from ._numbers import plain
from .document import Header
from .json_rows import edge_rows, write_document

if TYPE_CHECKING:
    import networkx

Codes = NDArray[np.int32]


class Interner:
    """Collects a column of values, each distinct one once, in the order of their first appearance."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.codes: list[int] = []
        self._known: dict[Hashable, int] = {}

    def add(self, value: Any) -> bool:
        """Append a value; whether it is a new one."""
        key = _hashable(value)
        code = self._known.setdefault(key, len(self.values))
        self.codes.append(code)
        if code < len(self.values):
            return False
        self.values.append(value)
        return True

    def table(self) -> Interned:
        return Interned(tuple(self.values), np.array(self.codes, dtype=np.int32))


def _hashable(value: Any) -> Hashable:
    """A key of a value of a row: a scalar, a dictionary of scalars, or a tuple of either."""
    if isinstance(value, dict):
        return tuple(value.items())
    if isinstance(value, tuple) and value and isinstance(value[0], dict):
        return tuple(tuple(part.items()) for part in value)
    key: Hashable = value
    return key


@dataclass(frozen=True, eq=False)
class Interned:
    """A column: row i has ``values[codes[i]]``. Values stand in the order of their first appearance."""

    values: tuple[Any, ...]
    codes: Codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> Any:
        return self.values[self.codes[row]]

    def __iter__(self) -> Iterator[Any]:
        return (self.values[code] for code in self.codes.tolist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Interned):
            return NotImplemented
        return self.values == other.values and np.array_equal(self.codes, other.codes)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Nodes:
    """Node columns; the id of a node is its row.

    Attributes:
        stage: Pipeline stage.
        layer: Layer, or -1.
        op, name, kind, module, phase: Strings.
        transfer: Transfer id, or None.
        coords: Coordinates by axis.
        group: Axes of the device group or collective.
        devices: Ranks.
        peers: Ranks at the other end of a KV transfer with their bytes, or None.
        detail: Inputs, outputs, weights, flops, bytes, time_s, bound, efficiency and link.
    """

    TABLES: ClassVar[tuple[str, ...]] = (
        "op", "name", "kind", "module", "phase", "transfer", "coords", "group", "devices", "peers", "detail",
    )  # fmt: skip

    stage: Codes
    layer: Codes
    op: Interned
    name: Interned
    kind: Interned
    module: Interned
    phase: Interned
    transfer: Interned
    coords: Interned
    group: Interned
    devices: Interned
    peers: Interned
    detail: Interned

    def __len__(self) -> int:
        return len(self.stage)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Nodes):
            return NotImplemented
        same = np.array_equal(self.stage, other.stage) and np.array_equal(self.layer, other.layer)
        return same and all(getattr(self, key) == getattr(other, key) for key in self.TABLES)

    __hash__ = None  # type: ignore[assignment]

    def figures(self, key: str) -> NDArray[np.float64]:
        """``flops``, ``bytes`` or ``time_s`` of every node."""
        values = np.array([detail[key] for detail in self.detail.values], dtype=np.float64)
        return values[self.detail.codes]

    def row(self, node: int) -> dict[str, Any]:
        """The JSON row of a node.

        Raises:
            IndexError: no such node.
        """
        if not 0 <= node < len(self):
            raise IndexError(node)
        layer, transfer, peers = int(self.layer[node]), self.transfer[node], self.peers[node]
        return {
            "id": node,
            **{key: getattr(self, key)[node] for key in ("op", "name", "kind", "module", "phase")},
            "stage": int(self.stage[node]),
            "layer": None if layer < 0 else layer,
            **({} if transfer is None else {"transfer": transfer}),
            **{key: getattr(self, key)[node] for key in ("coords", "group", "devices")},
            **({} if peers is None else {"peers": peers}),
            **self.detail[node],
        }


@dataclass(frozen=True, eq=False)
class Edges:
    """Edge columns, in the document's order; ``kind`` indexes ``EDGE_KINDS``."""

    source: Codes
    target: Codes
    kind: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.source)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edges):
            return NotImplemented
        return all(np.array_equal(getattr(self, k), getattr(other, k)) for k in ("source", "target", "kind"))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class LoadedGraph:
    """A document as columns. Two are equal when header, node columns and edge columns are."""

    header: Header
    nodes: Nodes
    edges: Edges

    def to_json(self) -> bytes:
        """The document, byte for byte as it is written for a compiled phase."""
        file = io.BytesIO()
        rows = (orjson.dumps(_plain_row(self.nodes.row(node))) for node in range(len(self.nodes)))
        write_document(file, self.header, rows, edge_rows(self.edges.source, self.edges.target, self.edges.kind))
        return file.getvalue()

    def to_networkx(self) -> networkx.DiGraph:
        """A networkx graph: the row of each node without its id, the kind of each edge. For small graphs."""
        import networkx as nx

        graph: nx.DiGraph = nx.DiGraph()
        for node in range(len(self.nodes)):
            row = self.nodes.row(node)
            graph.add_node(row.pop("id"), **row)
        for source, target, kind in zip(
            self.edges.source.tolist(), self.edges.target.tolist(), self.edges.kind.tolist(), strict=True
        ):
            graph.add_edge(source, target, kind=EDGE_KINDS[kind])
        return graph


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {key: plain(row[key]) for key in ("flops", "bytes", "time_s", "efficiency") if key in row}
    if "peers" in row:
        figures["peers"] = [peer | {"bytes": plain(peer["bytes"])} for peer in row["peers"]]
    return row | figures
