"""A user's measured kernels: from a CSV table to parameter sets, with every row accounted for."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from math import isfinite

import numpy as np

from ..diagnostics import Diagnostic, Span
from ..spec.calibration import Fit, Residual
from ..spec.inheritance import VARIANTS
from .fit import first_half, residual
from .hardware import Hardware
from .measured import LAWS, Chip

__all__ = ["Measurements", "fit_measurements", "read_measurements"]

_SPELLINGS = {"bfloat16": "bf16", "float16": "bf16", "fp16": "bf16", "half": "bf16", "float8": "fp8"}
_MODES = ("dispatch", "combine")
"""Classes whose variant is a mode, in the column of that name, and no number format."""
_SHOWN = 100
"""Bad rows that are told one by one; more are counted."""
_HALVED = 24
"""Rows from which on the fit uses one half and is judged on the other."""


@dataclass(frozen=True)
class Measurements:
    """Good rows of a table by (class, variant): columns of numbers, and seconds."""

    rows: Mapping[tuple[str, str], list[dict[str, float]]]

    @property
    def count(self) -> int:
        return sum(map(len, self.rows.values()))


def read_measurements(text: str, name: str) -> tuple[Measurements, list[Diagnostic]]:
    """The rows of a table, and what is wrong with the others.

    Args:
        text: CSV with a header: ``op``, ``latency_us``, ``dtype`` (``mode`` for dispatch and combine) and the columns
            of each operator class (docs/calibration.md).
        name: File name, for messages.
    """
    reader = csv.DictReader(StringIO(text), strict=True)
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    bad: list[Diagnostic] = []
    count = 0
    try:
        missing = [c for c in ("op", "latency_us") if c not in (reader.fieldnames or ())]
        if missing:
            return Measurements({}), [_bad(name, 1, f"the header has no column {' and no '.join(missing)}")]
        for row in reader:
            wrong = _row(row, rows)
            if wrong is not None:
                count += 1
                if count <= _SHOWN:
                    bad.append(_bad(name, reader.line_num, wrong))
    except csv.Error as error:
        bad.append(_bad(name, reader.line_num, f"no CSV from here on: {error}"))
    if count > _SHOWN:
        bad.append(_bad(name, reader.line_num, f"{count - _SHOWN} more rows are bad"))
    return Measurements(rows), bad


def _row(
    row: Mapping[str | None, str | list[str] | None], rows: dict[tuple[str, str], list[dict[str, float]]]
) -> str | None:
    """Files a row, or says what is wrong with it."""
    if None in row or any(v is None for v in row.values()):
        return "the row has not as many fields as the header"
    cells = {str(k).strip(): str(v).strip() for k, v in row.items()}
    kind = cells["op"]
    if kind not in LAWS:
        return f"op {kind[:40]!r} is none of {', '.join(LAWS)}"
    law, known = LAWS[kind], VARIANTS.get(kind, ("any",))
    given = cells.get("mode" if kind in _MODES else "dtype", "") if known != ("any",) else "any"
    variant = _SPELLINGS.get(given, given)
    if variant not in known:
        return f"{'mode' if kind in _MODES else 'dtype'} {given[:40]!r} of {kind} is none of {', '.join(known)}"
    values: dict[str, float] = {}
    for column in (*law.columns, "latency_us"):
        cell = cells.get(column, "")
        if not cell and column in law.optional:
            values[column] = float(law.optional[column])
            continue
        try:
            values[column] = float(cell)
        except ValueError:
            return f"{column} is {cell[:40]!r}, not a number" if cell else f"{column} is missing"
        least = 0 if column in law.optional else 1e-9
        if not isfinite(values[column]) or values[column] > 1e15 or (values[column] < least and column != "skew"):
            return f"{column} is {cell[:40]}, out of range"
    rows.setdefault((kind, variant), []).append(values)
    return None


def _bad(name: str, line: int, what: str) -> Diagnostic:
    return Diagnostic(
        "PD031",
        what,
        Span(name, line, 1, line, 1),
        expected="a measured kernel",
        help="docs/calibration.md lists the columns of each op",
    )


def fit_measurements(
    measured: Measurements, hardware: Hardware, name: str
) -> tuple[dict[tuple[str, str], Fit], list[Diagnostic]]:
    """Parameter sets for the classes that have enough rows, and notes on those that have not.

    From 24 rows on, the errors are those of the half that was not fitted; below, of the fitted rows themselves, and
    the fit's source says so.

    Args:
        measured: Good rows.
        hardware: Datasheet figures of the chip, and the figures that a class without rows inherits.
        name: File name, for sources.
    """
    fits: dict[tuple[str, str], Fit] = {}
    notes: list[Diagnostic] = []
    for (kind, variant), rows in measured.rows.items():
        law = LAWS[kind]
        if len(rows) < law.rows:
            what = f"{kind} {variant}: {len(rows)} rows, {law.rows} are needed: the class inherits its figures"
            notes.append(Diagnostic("PD032", what, help=f"measure {law.rows - len(rows)} more shapes of {kind}"))
            continue
        fits[kind, variant] = _fit(kind, variant, rows, chip_for(hardware, kind, variant), name)
    return fits, notes


def chip_for(hardware: Hardware, kind: str, variant: str) -> Chip:
    """Datasheet figures that rows of a class are predicted with."""
    dtype = variant.removesuffix("_block") if kind in ("gemm", "experts") else "bf16"
    return Chip(
        peak=hardware.peaks[dtype],
        bandwidth=hardware.bandwidth,
        units=hardware.units,
        link=hardware.scale_up.peak,
        network=hardware.scale_out.peak,
        domain=hardware.domain,
    )


def _fit(kind: str, variant: str, rows: list[dict[str, float]], chip: Chip, name: str) -> Fit:
    law = LAWS[kind]
    seconds = np.array([r["latency_us"] for r in rows]) * 1e-6
    columns = {c: np.array([r[c] for r in rows]) for c in law.columns}
    seen = first_half(rows) if len(rows) >= _HALVED else np.ones(len(rows), dtype=bool)
    judged = ~seen if len(rows) >= _HALVED and (~seen).any() and seen.any() else seen
    if not seen.any():
        seen = judged = np.ones(len(rows), dtype=bool)
    parameters = law.fit({c: v[seen] for c, v in columns.items()}, seconds[seen], chip, variant)
    predicted = law.predict(parameters, {c: v[judged] for c, v in columns.items()}, chip, variant)
    errors: Residual = residual(predicted, seconds[judged])
    told = f"{name}: {len(rows)} rows" + ("" if judged is not seen else ", errors are those of the fitted rows")
    return Fit(parameters, errors, told)


def classes() -> Iterable[tuple[str, tuple[str, ...], Mapping[str, float]]]:
    """Operator classes that can be measured: name, columns, defaults of optional columns."""
    return ((law.kind, law.columns, law.optional) for law in LAWS.values())
