"""The flat graph as numpy columns in one ``.npz`` file, for graphs that are too large for rows of text."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ...passes.analysis import PhaseAnalysis
from ..cost import BOUNDS
from ..diagnostics import Diagnostic, DiagnosticError
from ..ir.ops import operator
from ..ir.unrolled import EDGE_KINDS
from ._files import replacing
from ._shards import device_groups, named_coordinates
from .json_rows import node_figures

COLUMNS_SCHEMA = "paradag-columns-1"
"""Name and version of the format."""

MAX_COLUMN_BYTES = 4 << 30
"""Most bytes that all columns of a file may take in memory."""

_UNREADABLE = (
    OSError, ValueError, EOFError, RuntimeError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What zipfile and numpy raise on files that are not what they seem."""

_PER_NODE = {
    **dict.fromkeys(("op", "module"), np.int16),
    **dict.fromkeys(("name", "template", "step", "microbatch", "chunk", "layer", "stage", "device", "ranks"), np.int32),
    **dict.fromkeys(("duration", "flops", "bytes"), np.float64),
    "bound": np.int8,
}
_PER_EDGE = {"sources": np.int32, "kinds": np.int8}
_TABLES = ("ops", "names", "modules", "bounds", "edge_kinds", "axes", "schema")
_KEYS = (*_TABLES, *_PER_NODE, "coords", "indptr", *_PER_EDGE)


def write_columns(analysis: PhaseAnalysis, path: Path) -> None:
    """Write the columns of a phase, byte for byte the same for the same input.

    Raises:
        DiagnosticError: PD601, the file cannot be written.
    """
    columns: dict[str, Any] = dict(columns_of(analysis))
    with replacing(path) as file:
        np.savez_compressed(file, **columns)


def columns_of(analysis: PhaseAnalysis) -> dict[str, NDArray[Any]]:
    """The columns by name.

    Per node: ``op``, ``name``, ``module``, ``bound`` (indices into the tables ``ops``, ``names``, ``modules``,
    ``bounds``), ``template``, ``step``, ``microbatch``, ``chunk``, ``layer`` (-1 outside layers), ``stage``, ``device``
    (lowest rank of the node's group), ``ranks`` (size of the group), ``coords`` ([nodes, axes], -1 where the node has
    no such coordinate), ``duration`` (seconds), ``flops`` and ``bytes`` (of the fullest rank). Edges by target: those
    into node i are ``sources[indptr[i]:indptr[i + 1]]``, their kinds index ``edge_kinds``. Tables are JSON arrays of
    strings in UTF-8.
    """
    flat, calls = analysis.flat, analysis.flat.unrolled
    nodes = [node for _, node in calls.templates]
    tables = {
        "ops": sorted({operator(n).public for n in nodes}),
        "names": [f"{block.name}.{node.name}" for block, node in calls.templates],
        "modules": sorted({n.module for n in nodes}),
    }
    of_template = {
        "op": [tables["ops"].index(operator(n).public) for n in nodes],
        "name": range(len(nodes)),
        "module": [tables["modules"].index(n.module) for n in nodes],
        "template": range(len(nodes)),
    }
    items = analysis.graph.items
    per_call: dict[str, NDArray[Any]] = {k: np.array(v)[calls.template] for k, v in of_template.items()}
    per_call |= {k: getattr(calls, k) for k in ("step", "layer", "stage")}
    per_call |= {k: np.array([getattr(i, k) for i in items])[calls.item] for k in ("microbatch", "chunk")}
    figures = node_figures(analysis)
    per_call |= {"duration": figures["time_s"], **{k: figures[k] for k in ("flops", "bytes", "bound")}}
    axes, coords = _coordinates(analysis)
    texts = {**tables, "bounds": list(BOUNDS), "edge_kinds": list(EDGE_KINDS), "axes": axes, "schema": [COLUMNS_SCHEMA]}
    per_node = {key: np.repeat(column, flat.width) for key, column in per_call.items()}
    per_node |= _devices(analysis)
    return {
        **{key: np.frombuffer(orjson.dumps(texts[key]), dtype=np.uint8) for key in _TABLES},
        **{key: per_node[key].astype(kind, copy=False) for key, kind in _PER_NODE.items()},
        "coords": coords,
        "indptr": flat.indptr,
        "sources": flat.sources,
        "kinds": flat.kinds,
    }


def _coordinates(analysis: PhaseAnalysis) -> tuple[list[str], NDArray[np.int32]]:
    """Names of all axes over which any node is expanded, and the coordinates of every node."""
    flat, mesh = analysis.flat, analysis.graph.mesh
    of_template = [
        named_coordinates(mesh, expanded, node.view)
        for expanded, (_, node) in zip(flat.expanded, flat.unrolled.templates, strict=True)
    ]
    axes = list(dict.fromkeys(name for named in of_template for name in named))
    coords = np.full((flat.node_count, len(axes)), -1, dtype=np.int32)
    call_of, template = flat.first[:-1].astype(np.int64), flat.unrolled.template
    for number, named in enumerate(of_template):
        mine = call_of[template == number]
        for name, values in named.items():
            coords[(mine[:, None] + np.arange(len(values))).ravel(), axes.index(name)] = np.tile(values, len(mine))
    return axes, coords


def _devices(analysis: PhaseAnalysis) -> dict[str, NDArray[Any]]:
    """Lowest rank and size of the device group of every node."""
    flat, mesh = analysis.flat, analysis.graph.mesh
    template, stage = flat.unrolled.template, flat.unrolled.stage
    lowest = np.empty(flat.node_count, dtype=np.int32)
    ranks = np.empty(len(flat.expanded), dtype=np.int32)
    for number, expanded in enumerate(flat.expanded):
        ranks[number] = mesh.stage_ranks // mesh.size(expanded)
        for s in np.unique(stage[template == number]).tolist():
            mine = flat.first[:-1][(template == number) & (stage == s)].astype(np.int64)
            group = device_groups(mesh, expanded, s)[:, 0]
            lowest[(mine[:, None] + np.arange(len(group))).ravel()] = np.tile(group, len(mine))
    return {"device": lowest, "ranks": ranks[flat.column("template")]}


def load_columns(path: Path) -> dict[str, Any]:
    """Columns by name as :func:`columns_of` gives them; tables come as lists of strings.

    Raises:
        DiagnosticError: PD001 not readable, PD002 too large, PD010 not such a file, PD013 a column missing, PD015 a
            column out of range.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
        with np.load(path, allow_pickle=False) as archive:
            columns: dict[str, Any] = {key: archive[key] for key in _KEYS}
        for key in _TABLES:
            columns[key] = orjson.loads(columns[key].tobytes())
    except FileNotFoundError as error:
        raise DiagnosticError([Diagnostic("PD001", f"cannot read {path}: {error.strerror}")]) from error
    except _UNREADABLE as error:
        raise DiagnosticError([_malformed(path, str(error))]) from error
    fault = _fault(columns)
    if fault:
        raise DiagnosticError([Diagnostic("PD015", f"{path}: {fault}")])
    return columns


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse what would unpack to more than it says, or to too much, before anything is unpacked."""
    sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
    missing = [key for key in _KEYS if key not in sizes]
    if missing:
        raise DiagnosticError([Diagnostic("PD013", f"{path} has no column {', '.join(missing)}")])
    if sum(sizes.values()) > MAX_COLUMN_BYTES:
        total = f"{path} unpacks to {sum(sizes.values()):,} bytes"
        raise DiagnosticError([Diagnostic("PD002", total, expected=f"at most {MAX_COLUMN_BYTES:,}")])
    for key in _KEYS:
        with archive.open(f"{key}.npy") as member:
            if np.lib.format.read_magic(member) != (1, 0):
                raise ValueError(f"column {key} is in no form that paradag writes")
            shape, _, kind = np.lib.format.read_array_header_1_0(member)
            declared = int(np.prod(shape, dtype=object)) * kind.itemsize
            if kind.hasobject or declared != sizes[key] - member.tell():
                raise ValueError(f"column {key} does not have the size that it declares")


def _fault(columns: Mapping[str, Any]) -> str:
    """What is wrong with columns of known names, or nothing."""
    tables = [columns[key] for key in _TABLES]
    if not all(isinstance(t, list) and all(isinstance(s, str) for s in t) for t in tables):
        return "a table is no list of strings"
    if columns["schema"] != [COLUMNS_SCHEMA]:
        return f"schema {columns['schema']}, expected {COLUMNS_SCHEMA}"
    nodes, edges = columns["op"].size, columns["sources"].size
    shapes: dict[str, tuple[int, ...]] = {**dict.fromkeys(_PER_NODE, (nodes,)), **dict.fromkeys(_PER_EDGE, (edges,))}
    shapes |= {"coords": (nodes, len(columns["axes"])), "indptr": (nodes + 1,)}
    kinds = {**_PER_NODE, **_PER_EDGE, "coords": np.int32, "indptr": np.int32}
    for key, shape in shapes.items():
        if columns[key].shape != shape or columns[key].dtype != kinds[key]:
            return f"column {key} is {columns[key].dtype} {columns[key].shape}, expected {np.dtype(kinds[key])} {shape}"
    ranges = {"op": "ops", "name": "names", "module": "modules", "bound": "bounds", "kinds": "edge_kinds"}
    for key, table in ranges.items():
        if len(columns[key]) and not 0 <= columns[key].min() <= columns[key].max() < len(columns[table]):
            return f"column {key} points outside its table"
    indptr = columns["indptr"]
    if indptr[0] != 0 or indptr[-1] != edges or (np.diff(indptr) < 0).any():
        return "column indptr does not run from 0 to the number of edges"
    targets = np.repeat(np.arange(nodes), np.diff(indptr))
    if edges and not (columns["sources"].min() >= 0 and (columns["sources"] < targets).all()):
        return "an edge does not go from a lower to a higher node"
    return ""


def _malformed(path: Path, why: str) -> Diagnostic:
    return Diagnostic("PD010", f"{path} holds no columns: {why}", expected="a file of `paradag compile --emit columns`")
