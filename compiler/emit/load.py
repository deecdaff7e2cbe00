"""Reading a JSON document back into columns. The document may come from anywhere: nothing in it is trusted.

A document as paradag writes it has one row per line and is read line by line, whatever its size. One that another tool
has laid out anew is brought into that form first, in memory, and may not be as large.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from pydantic import TypeAdapter, ValidationError

from ..diagnostics import Diagnostic, DiagnosticError, Span
from ..ir.unrolled import EDGE_KINDS
from .document import EdgeRow, Header, NodeHead, NodeTail
from .loaded import Edges, Interned, Interner, LoadedGraph, Nodes

MAX_BYTES = 2 << 30
"""Largest document that is read."""

MAX_REFORMATTED_BYTES = 64 << 20
"""Largest document that is read where its rows do not stand one per line."""

_MAX_LINE = 64 << 20
_MAX_DISTINCT_BYTES = 512 << 20
"""Most text that is kept as objects; what rows have in common counts once. A compiled graph stays far below."""

_WANTED = "a document of `paradag compile`"
_MAX_FINDINGS = 20
_MAX_MESSAGE = 500
"""Characters: a message may quote a key of the document."""

_EDGES_AT_ONCE = 1 << 14

_HEADER = TypeAdapter(Header)
_HEAD = TypeAdapter(NodeHead)
_TAIL = TypeAdapter(NodeTail)
_EDGES = TypeAdapter(list[EdgeRow])
_HEAD_KEYS = tuple(NodeHead.__annotations__)
_TAIL_KEYS = tuple(NodeTail.__annotations__)
_SPLIT = b',"inputs":'
"""Where a row is cut in two. It cannot stand inside a JSON string, where quotes are escaped."""

_CODES = {
    "missing": "PD013",
    "extra_forbidden": "PD011",
    "greater_than_equal": "PD015",
    "less_than_equal": "PD015",
    "too_short": "PD015",
    "finite_number": "PD015",
}

T = TypeVar("T")


class _OtherLayout(Exception):
    """The text does not have one row per line; it may still be a document, or no JSON at all."""


def load_json(source: Path | bytes, name: str = "") -> LoadedGraph:
    """The graph of a JSON document.

    Args:
        source: A file, or its bytes.
        name: What diagnostics call it; default the path.

    Raises:
        DiagnosticError: PD001 not readable, PD002 too large, PD004 empty, PD010 no JSON or a value of the wrong kind,
            PD011 unknown key, PD012 an edge given twice, PD013 missing key, PD015 value out of range, PD017 more faults
            than are listed.
    """
    name = name or (str(source) if isinstance(source, Path) else "<bytes>")
    try:
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if not size:
            raise DiagnosticError([Diagnostic("PD004", f"{name} is empty", expected=_WANTED)])
        if size > MAX_BYTES:
            raise DiagnosticError([_too_large(name, size, MAX_BYTES)])
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            try:
                return _Reader(name, with_lines=True).read(iter(lambda: file.readline(_MAX_LINE), b""))
            except _OtherLayout:
                if size > MAX_REFORMATTED_BYTES:
                    raise DiagnosticError([_too_large(name, size, MAX_REFORMATTED_BYTES)]) from None
                file.seek(0)
                return _read_reformatted(name, file.read())
    except OSError as error:
        raise DiagnosticError([Diagnostic("PD001", f"cannot read {name}: {error.strerror or error}")]) from error


def _read_reformatted(name: str, data: bytes) -> LoadedGraph:
    try:
        return _Reader(name, with_lines=False).read(_canonical(name, data))
    except (_OtherLayout, orjson.JSONEncodeError):
        # Nested too deep for one of the parsers, for instance.
        fault = Diagnostic("PD010", f"{name}: JSON, but no document of paradag", expected=_WANTED)
        raise DiagnosticError([fault]) from None


class _Reader:
    """Reads the lines of a document."""

    def __init__(self, name: str, *, with_lines: bool) -> None:
        self.name = name
        self.with_lines = with_lines
        self.line = 0
        self.kept = 0
        self.opening = b""
        self.first_edge = 0
        self.findings: list[Diagnostic] = []

    def read(self, lines: Iterable[bytes]) -> LoadedGraph:
        stream = self._counted(lines)
        header = self._header(stream)
        nodes = self._nodes(stream, header)
        edges = self._edges(stream, len(nodes))
        if next(stream, b"") != b"}" or next(stream, None) is not None:
            raise _OtherLayout
        if header and header.status == "REJECTED" and len(nodes):
            self._find("PD010", "a rejected run has nodes", expected="none where the status is REJECTED")
        self._stop_if_faulty()
        assert header is not None
        return LoadedGraph(header, nodes, edges)

    def _counted(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            self.line += 1
            yield line.rstrip(b"\n")

    def _header(self, stream: Iterator[bytes]) -> Header | None:
        if next(stream, b"") != b"{":
            raise _OtherLayout
        fields: list[bytes] = []
        for line in stream:
            if line.startswith(b'"nodes":'):
                self.opening = line.removeprefix(b'"nodes":')
                break
            fields.append(line)
            self._keep(len(line))
        else:
            raise _OtherLayout
        if not fields or not fields[-1].endswith(b","):
            raise _OtherLayout
        text = b"{" + b"\n".join(fields)[:-1] + b"}"
        try:
            # Stricter than what follows: NaN is no JSON.
            orjson.loads(text)
        except orjson.JSONDecodeError:
            raise _OtherLayout from None
        return self._valid(_HEADER, text, "")

    def _rows(self, stream: Iterator[bytes], end: bytes) -> Iterator[bytes]:
        """Rows of a list whose opening has just been met, without the commas between them.

        Args:
            stream: The lines.
            end: What closes the list, with the comma after it if there is one.
        """
        if self.opening == b"[" + end:
            return
        if self.opening != b"[":
            raise _OtherLayout
        comma = True
        for line in stream:
            if comma == (line == end):
                break
            if line == end:
                return
            comma = line.endswith(b",")
            yield line.removesuffix(b",")
        raise _OtherLayout

    def _nodes(self, stream: Iterator[bytes], header: Header | None) -> Nodes:
        columns: dict[str, Interner] = {key: Interner() for key in Nodes.TABLES}
        layer, stage = [], []
        tails: dict[bytes, NodeTail | None] = {}
        for count, row in enumerate(self._rows(stream, b"],")):
            head_text, split, tail_text = row.partition(_SPLIT)
            if not split:
                raise _OtherLayout
            place = f"nodes[{count}]"
            head = self._valid(_HEAD, head_text + b"}", place)
            if tail_text not in tails:
                self._keep(len(tail_text))
                tails[tail_text] = self._valid(_TAIL, b"{" + _SPLIT[1:] + tail_text, place)
            if head is None:
                continue
            self._check_node(head, count, header)
            fresh = [interner.add(tail_text if key == "detail" else head.get(key)) for key, interner in columns.items()]
            if any(fresh):
                self._keep(len(head_text))
            layer.append(-1 if head["layer"] is None else head["layer"])
            stage.append(head["stage"])
        tables = {key: interner.table() for key, interner in columns.items()}
        detail = tables["detail"]
        tables["detail"] = Interned(tuple(tails[text] for text in detail.values), detail.codes)
        return Nodes(np.array(stage, dtype=np.int32), np.array(layer, dtype=np.int32), **tables)

    def _check_node(self, head: NodeHead, count: int, header: Header | None) -> None:
        place = f"nodes[{count}]"
        if head["id"] != count:
            self._find("PD015", f"{place}.id is {head['id']}", expected=f"{count}: ids count the rows from 0")
        if len(set(head["devices"])) < len(head["devices"]):
            self._find("PD012", f"{place}.devices names a rank twice")
        peers = [peer["device"] for peer in head.get("peers", ())]
        if len(set(peers)) < len(peers):
            self._find("PD012", f"{place}.peers names a rank twice")
        if header is not None and head["phase"] != header.phase:
            self._find("PD010", f"{place}.phase is {head['phase']}", expected=f"{header.phase}, the document's phase")

    def _edges(self, stream: Iterator[bytes], nodes: int) -> Edges:
        line = next(stream, b"")
        if not line.startswith(b'"edges":'):
            raise _OtherLayout
        self.opening = line.removeprefix(b'"edges":')
        numbers = {kind: number for number, kind in enumerate(EDGE_KINDS)}
        parts: list[np.ndarray] = [np.zeros((0, 3), dtype=np.int32)]
        self.first_edge = self.line + 1
        rows = self._rows(stream, b"]")
        done = 0
        while block := list(islice(rows, _EDGES_AT_ONCE)):
            edges = self._valid(_EDGES, b"[" + b",".join(block) + b"]", "edges", first=done)
            if edges is not None:
                if len(edges) != len(block):
                    raise _OtherLayout
                found = [(e["source"], e["target"], numbers[e["kind"]]) for e in edges]
                parts.append(np.array(found, dtype=np.int32))
            done += len(block)
        table = np.concatenate(parts)
        self._stop_if_faulty()
        self._check_edges(table, nodes)
        return Edges(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].astype(np.int8))

    def _check_edges(self, table: np.ndarray, nodes: int) -> None:
        source, target = table[:, 0], table[:, 1]
        for index in np.flatnonzero((source >= target) | (target >= nodes)):
            message = f"edges[{index}] goes from {source[index]} to {target[index]}"
            code = "PD423" if max(source[index], target[index]) >= nodes else "PD015"
            self._find(code, message, f"source < target < {nodes}, the number of nodes", edge=int(index))
        pairs = source.astype(np.int64) << 32 | target
        _, first = np.unique(pairs, return_index=True)
        for index in np.setdiff1d(np.arange(len(pairs)), first):
            message = f"edges[{index}] from {source[index]} to {target[index]} is given twice"
            self._find("PD012", message, edge=int(index))

    # --- findings ---------------------------------------------------------------------------------------------------

    def _keep(self, size: int) -> None:
        self.kept += size
        if self.kept > _MAX_DISTINCT_BYTES:
            raise DiagnosticError([_too_large(f"what {self.name} says only once", self.kept, _MAX_DISTINCT_BYTES)])

    def _valid(self, shape: TypeAdapter[T], text: bytes, place: str, first: int = 0) -> T | None:
        """The value of a JSON text, or None after a finding per fault where it has another shape."""
        try:
            return shape.validate_json(text)
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_context=False, include_input=False):
                if fault["type"] == "json_invalid":
                    raise _OtherLayout from None
                path, edge = list(fault["loc"]), None
                if place == "edges" and path and isinstance(path[0], int):
                    path[0] = edge = path[0] + first
                self._find(_CODES.get(fault["type"], "PD010"), f"{_dotted(place, path)}: {fault['msg']}", edge=edge)
            return None

    def _find(self, code: str, message: str, expected: str | None = None, edge: int | None = None) -> None:
        """Note a fault of the current line, or of the line of an edge."""
        message = message[:_MAX_MESSAGE]
        line = self.line if edge is None else self.first_edge + edge
        span = Span(self.name, line, 1, line, 2) if self.with_lines else None
        self.findings.append(Diagnostic(code, message if span else f"{self.name}: {message}", span, expected))
        if len(self.findings) >= _MAX_FINDINGS:
            self.findings.append(Diagnostic("PD017", f"{self.name}: {_MAX_FINDINGS} faults listed, the rest not read"))
            self._stop_if_faulty()

    def _stop_if_faulty(self) -> None:
        if self.findings:
            raise DiagnosticError(self.findings)


def _dotted(place: str, path: Sequence[int | str]) -> str:
    for part in path:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    return place.removeprefix(".") or "document"


def _canonical(name: str, data: bytes) -> Iterator[bytes]:
    """The lines that paradag would have written for a document laid out otherwise."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        place = Span(name, error.lineno, error.colno, error.lineno, error.colno + 1)
        raise DiagnosticError([Diagnostic("PD010", f"not JSON: {error.msg}", place)]) from None
    if not isinstance(document, dict):
        raise DiagnosticError([Diagnostic("PD010", f"{name}: not a JSON object", expected=_WANTED)])
    rows = {key: document.pop(key, None) for key in ("nodes", "edges")}
    for key, value in rows.items():
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            fault = Diagnostic("PD013", f"{name}: no list of {key}", expected=f'"{key}": [{{...}}, ...]')
            raise DiagnosticError([fault])
    yield b"{"
    yield orjson.dumps(document)[1:-1] + b","
    yield from _list_lines(b'"nodes":', [_two_parts(name, *row) for row in enumerate(rows["nodes"])], b",")
    yield from _list_lines(b'"edges":', [orjson.dumps(row) for row in rows["edges"]], b"")
    yield b"}"


def _list_lines(key: bytes, rows: list[bytes], comma: bytes) -> Iterator[bytes]:
    if not rows:
        yield key + b"[]" + comma
        return
    yield key + b"["
    for row in rows[:-1]:
        yield row + b","
    yield rows[-1]
    yield b"]" + comma


def _two_parts(name: str, number: int, row: dict[str, Any]) -> bytes:
    """A node row with the keys of its head first; what else is missing or unknown is found later."""
    if "inputs" not in row:
        raise DiagnosticError([Diagnostic("PD013", f"{name}: nodes[{number}].inputs: Field required")])
    head = {key: row[key] for key in _HEAD_KEYS if key in row}
    tail = {key: row[key] for key in _TAIL_KEYS if key in row}
    rest = {key: value for key, value in row.items() if key not in head and key not in tail}
    return orjson.dumps(head)[:-1] + b"," + orjson.dumps(tail | rest)[1:]


def _too_large(name: str, size: int, limit: int) -> Diagnostic:
    return Diagnostic(
        "PD002",
        f"{name} has {size:,} bytes",
        expected=f"at most {limit:,}",
        help="use the document as paradag wrote it, one row per line, or --emit columns",
    )
