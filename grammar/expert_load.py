"""Reads measured expert loads: CSV with the columns layer, expert and load, or JSON with a list for each layer."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from functools import partial
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..compiler.diagnostics import Diagnostic, DiagnosticError, Span
from ..compiler.spec import ModelSpec
from ..compiler.spec.expert_load import ExpertLoad
from ._source import read_source

COLUMNS = ("layer", "expert", "load")
MOST = 1e15
"""Largest load: more tokens than anybody counts."""
_SHOWN = 20
"""Faults that are told one by one; more are counted."""

Fault = tuple[int, str, str]
"""Line, what is wrong, what was expected."""
Loads = dict[int, dict[int, float]]
"""Layer to expert to load."""
Lines = dict[tuple[int, int], int]
"""Layer and expert to the line that tells of them."""


def load_expert_load(path: Path, model: ModelSpec) -> ExpertLoad:
    """The expert load in a file.

    Raises:
        DiagnosticError: PD001 to PD003, the file cannot be read; PD034 and PD035, see :func:`read_expert_load`.
    """
    return read_expert_load(read_source(path), str(path), model)


def read_expert_load(text: str, name: str, model: ModelSpec) -> ExpertLoad:
    """The expert load that a text tells.

    Args:
        text: CSV with a header of the columns layer, expert and load; or JSON, ``{"layers": {"3": [...]}}`` or a list
            with a list for each layer that has experts. Loads are tokens or shares.
        name: File name, for messages.
        model: Whose experts they are. Layers that the text leaves out have no load; a layer's experts must all be
            there.

    Raises:
        DiagnosticError: PD034, a row or value is no load; PD035, the load is not one of this model.
    """
    told = partial(_fail, name=name, text=text)
    moe = [layer for layer in range(model.layers.count) if model.is_moe_layer(layer)]
    if model.moe is None or not moe:
        told("PD035", [(1, f"{model.name} has no experts", "a model with experts")])
    is_json = text.lstrip()[:1] in ("{", "[")
    faults: list[Fault] = []
    lines: Lines = {}
    loads = _json(text, moe, faults) if is_json else _csv(text, faults, lines)
    if faults:
        told("PD034", faults)
    found = list(_mismatches(loads, lines, moe, model.moe.experts if model.moe else 0))
    if found:
        told("PD035", found)
    rows = np.array([[row[e] for e in sorted(row)] for _, row in sorted(loads.items())], dtype=np.float64)
    return ExpertLoad(name, tuple(sorted(loads)), rows / rows.sum(axis=1, keepdims=True))


def _fail(code: str, faults: list[Fault], *, name: str, text: str) -> NoReturn:
    helps = {
        "PD034": 'give CSV `layer,expert,load`, or JSON `{"layers": {"3": [...]}}`',
        "PD035": "measure the load of this model, or name the model that it was measured on",
    }
    made = [Diagnostic(code, what, Span(name, line, 1, line, 1), want, helps[code]) for line, what, want in faults]
    if len(made) > _SHOWN:
        line = faults[_SHOWN][0]
        more = f"{len(made) - _SHOWN} more faults of this kind"
        made = [*made[:_SHOWN], Diagnostic(code, more, Span(name, line, 1, line, 1), "none", helps[code])]
    raise DiagnosticError(made, {name: text})


# --- CSV ----------------------------------------------------------------------------------------------------------


def _csv(text: str, faults: list[Fault], lines: Lines) -> Loads:
    reader = csv.reader(StringIO(text), strict=True)
    loads: Loads = {}
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        if sorted(header) != sorted(COLUMNS):
            shown = ",".join(header)[:60] or "nothing"
            faults.append((1, f"the header is `{shown}`", "the columns layer, expert and load"))
            return loads
        for row in reader:
            if row:
                told = _row(dict(zip(header, row, strict=False)), len(row), loads)
                if isinstance(told[0], str):
                    faults.append((reader.line_num, *told))
                else:
                    lines[told] = reader.line_num
    except csv.Error as error:
        faults.append((reader.line_num, f"no CSV from here on: {error}", "comma-separated rows"))
    if not loads and not faults:
        faults.append((1, "no rows", "a row for each expert of a layer"))
    return loads


def _row(cells: Mapping[str, str], count: int, loads: Loads) -> tuple[int, int] | tuple[str, str]:
    """Files a row and tells its layer and expert; or what is wrong with it and what was expected."""
    if count != len(COLUMNS):
        return f"{count} fields", "3 fields: layer, expert, load"
    place = []
    for column in ("layer", "expert"):
        cell = cells[column].strip()
        if not (cell.isascii() and cell.isdigit() and len(cell) < 10):
            return f"{column} is {cell[:40]!r}", "a number of a layer or expert, from 0 on"
        place.append(int(cell))
    try:
        load = float(cells["load"])
    except ValueError:
        return f"load is {cells['load'][:40]!r}", "a number"
    if not isfinite(load) or not 0 <= load <= MOST:
        return f"load is {cells['load'].strip()[:40]}", f"tokens or a share: 0 to {MOST:g}"
    layer, expert = place
    if expert in loads.setdefault(layer, {}):
        return f"expert {expert} of layer {layer} stands twice", "one row for each expert of a layer"
    loads[layer][expert] = load
    return layer, expert


# --- JSON ---------------------------------------------------------------------------------------------------------


def _json(text: str, moe: list[int], faults: list[Fault]) -> Loads:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        faults.append((error.lineno, f"no JSON: {error.msg}", "a JSON document"))
        return {}
    except (RecursionError, ValueError):
        faults.append((1, "JSON that is nested too deeply, or a number too long", "lists of numbers"))
        return {}
    rows = _rows(data, moe, faults)
    loads: Loads = {}
    for layer, row in rows:
        if not isinstance(row, list):
            faults.append((1, f"layer {layer} is {_shown(row)}", "a list of loads, one for each expert"))
            continue
        bad = [e for e, value in enumerate(row) if not _is_load(value)]
        if bad:
            what = f"load of expert {bad[0]} of layer {layer} is {_shown(row[bad[0]])}"
            faults.append((1, what, f"tokens or a share: 0 to {MOST:g}"))
        loads[layer] = {e: float(value) for e, value in enumerate(row) if e not in bad}
    return loads


def _rows(data: Any, moe: list[int], faults: list[Fault]) -> list[tuple[int, Any]]:
    """Layers and what is given for them."""
    if isinstance(data, list):
        if len(data) != len(moe):
            faults.append((1, f"{len(data)} lists", f"a list for each of the {len(moe)} layers with experts, in order"))
            return []
        return list(zip(moe, data, strict=True))
    layers = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(layers, dict) or not layers or set(data) != {"layers"}:
        faults.append((1, "not an object with `layers` alone", '`{"layers": {"3": [...]}}`'))
        return []
    rows = []
    for key, row in layers.items():
        if key.isascii() and key.isdigit() and len(key) < 10 and str(int(key)) == key:
            rows.append((int(key), row))
        else:
            faults.append((1, f"layer {key[:40]!r}", "a number of a layer, from 0 on"))
    return rows


def _is_load(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MOST


def _shown(value: Any) -> str:
    return json.dumps(value)[:40] if not isinstance(value, (list, dict)) else f"a {type(value).__name__}"


# --- the model ----------------------------------------------------------------------------------------------------


def _mismatches(loads: Loads, lines: Lines, moe: list[int], experts: int) -> Iterator[Fault]:
    """Where the load is not one of the model's layers and experts."""
    known = set(moe)
    for layer, row in sorted(loads.items()):
        first = min((lines.get((layer, e), 1) for e in row), default=1)
        if layer not in known:
            yield first, f"layer {layer} has no experts", f"layers {moe[0]} to {moe[-1]}"
            continue
        beyond = [e for e in row if e >= experts]
        absent = [e for e in range(experts) if e not in row]
        if beyond:
            line = lines.get((layer, min(beyond)), 1)
            yield line, f"layer {layer} has a load for expert {min(beyond)}", f"experts 0 to {experts - 1}"
        elif absent:
            what = f"layer {layer} has no load for expert {absent[0]}"
            yield first, what + (f" and {len(absent) - 1} more" if len(absent) > 1 else ""), f"all {experts} experts"
        elif not sum(row.values()):
            yield first, f"layer {layer} has no load at all", "a load above 0 for some expert"
