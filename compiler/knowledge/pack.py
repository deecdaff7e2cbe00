"""Knowledge packs: files that replace what the knowledge base says. The format is told in ``docs/packs.md``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..diagnostics import Diagnostic, DiagnosticError, Severity, Span
from ..spec.catalog import DEFAULTS, Defaults, catalogue
from ..spec.pack import DEGREES, FACTS, LAYOUT, Constraint, Law, Pack
from ._accelerator_rows import accelerator_table
from ._expression import parse_expression
from ._reader import Reader
from ._rules import Stage, nearest_codes, rules
from ._toml import read_toml

__all__ = ["VALUES", "load_pack"]

PACK_FILE = "pack.toml"
ACCELERATORS_FILE = "accelerators.toml"

_TABLES = frozenset({"description", "law", "limits", "rules", "values", "constraints", "accelerators"})
_LIMITS = frozenset(DEGREES) - {"adp", "edp"}
_SEVERITIES = ("error", "warning", "note", "off")
_LAW_NAMES = {
    "etp": frozenset({"sp", "tp", "ep", *FACTS}),
    "ranks": frozenset({"sp", "tp", "ep", "etp", *FACTS}),
    "gpus": frozenset({"dp", "pp", *LAYOUT, *FACTS}),
}
_ALL_NAMES = frozenset({*DEGREES, *FACTS})

VALUES = frozenset(
    {"compute_efficiency", "bandwidth_efficiency"}
    | {"memory_reserve", "stage_idle_share", "communication_share", "latency_share", "stage_imbalance", "pool_ratio"}
)
"""Values besides those of :class:`paradag.compiler.spec.catalog.Defaults`: efficiencies instead of the fitted ones, the
memory that stays free, as a share, and the thresholds of advice (PD307 and on)."""

_DEFAULTS = frozenset(f.name for f in fields(Defaults))
_SHARES = frozenset(n for n in {*VALUES, *_DEFAULTS} if n.endswith(("_efficiency", "_share", "_reserve")))

_BENDING = frozenset({Stage.RESOURCE, Stage.OBJECTIVE})
"""Stages whose errors say that something is too much, not that it is wrong: a pack may make less of them."""

_BOUNDS = frozenset({"PD306"})
"""Errors of those stages that keep the program's own time and memory in bounds."""


def load_pack(path: str | Path) -> Pack:
    """Read a knowledge pack: a TOML file, or a folder with ``pack.toml``, ``accelerators.toml`` or both.

    Raises:
        DiagnosticError: everything that is wrong with it, and its texts.
    """
    path = Path(path)
    main, chips = _files(path)
    readers: list[Reader] = []
    parts: dict[str, Any] = {}
    spans: dict[str, Span] = {}
    if main is not None:
        reader = Reader(read_toml(main))
        readers.append(reader)
        parts = _read(reader)
        spans |= {".".join(p): s for p, s in reader.toml.spans.items()}
    if chips is not None:
        reader = Reader(read_toml(chips))
        readers.append(reader)
        _given_twice(reader, readers[0])
        parts["rows"] = parts.get("rows", {}) | _own_rows(reader, parts)
        spans |= {".".join(("accelerators", *p)): s for p, s in reader.toml.spans.items()}
    texts = {r.toml.file: r.toml.text for r in readers}
    if found := [d for r in readers for d in r.found]:
        raise DiagnosticError(found, texts)
    rows = parts.pop("rows", None) or accelerator_table(readers[0], (), {})
    pack = Pack(str(path), spans=spans, texts=texts, **parts)
    return replace(pack, accelerators=dict(catalogue(rows, pack.defaults)))


def _files(path: Path) -> tuple[Path | None, Path | None]:
    """The pack's own file and that of its accelerators."""
    if not path.is_dir():
        return path, None
    main, chips = path / PACK_FILE, path / ACCELERATORS_FILE
    strange = sorted(p for p in path.glob("*.toml") if p.name not in (PACK_FILE, ACCELERATORS_FILE))
    if strange:
        span = Span(str(strange[0]), 1, 1, 1, 1)
        expected = f"`{PACK_FILE}` and `{ACCELERATORS_FILE}`"
        message = f"`{strange[0].name}` is no file of a knowledge pack"
        raise DiagnosticError([Diagnostic("PD041", message, span, expected, "rename it, or move it elsewhere")])
    if not main.exists() and not chips.exists():
        span = Span(str(main), 1, 1, 1, 1)
        message = f"the folder `{path}` holds neither `{PACK_FILE}` nor `{ACCELERATORS_FILE}`"
        expected = "a TOML file, or a folder with at least one of them"
        raise DiagnosticError([Diagnostic("PD040", message, span, expected, "give the path of the pack")])
    return main if main.exists() else None, chips if chips.exists() else None


def _read(reader: Reader) -> dict[str, Any]:
    """Parts of the pack by field, from its own file."""
    present = set(reader.keys((), reader.toml.data, _TABLES))
    if "description" in present:
        reader.text(("description",), reader.toml.data["description"])
    law, constraints = _law(reader)
    constraints += [*_limits(reader), *_constraints(reader)]
    values, defaults = _values(reader)
    rows = accelerator_table(reader, ("accelerators",), reader.table(("accelerators",)))
    return {
        "law": law,
        "constraints": tuple(constraints),
        "severities": _severities(reader),
        "values": values,
        "defaults": defaults,
        "rows": rows,
    }


def _law(reader: Reader) -> tuple[Law, list[Constraint]]:
    """The law, and the constraint that a number of experts per GPU makes."""
    table, formulas, spans = reader.table(("law",)), {}, {}
    made: list[Constraint] = []
    for key in reader.keys(("law",), table, frozenset({*_LAW_NAMES, "experts_per_gpu"})):
        path = ("law", key)
        if key == "experts_per_gpu":
            if (number := reader.count(path, table[key])) is not None:
                made.append(_experts_per_gpu(number, reader.toml.span(*path)))
            continue
        formula = reader.expression(path, table[key], _LAW_NAMES[key], "number")
        if formula is not None:
            formulas[key], spans[key] = formula, reader.toml.span(*path)
    return Law(**formulas, spans=spans), made


def _experts_per_gpu(number: int, span: Span) -> Constraint:
    """Every GPU holds so many whole experts, redundant copies among them."""
    wanted = "ep" if number == 1 else f"{number} * ep"
    text = f"moe == 0 or (experts + redundant == {wanted} and etp == 1)"
    formula = parse_expression(text, _ALL_NAMES, "condition", span)
    message = f"{number} whole expert{'s' if number > 1 else ''} per GPU"
    return Constraint("law.experts_per_gpu", formula, message, span)


def _limits(reader: Reader) -> Iterator[Constraint]:
    table = reader.table(("limits",))
    for key in reader.keys(("limits",), table, _LIMITS):
        path = ("limits", key)
        if (most := reader.count(path, table[key])) is not None:
            span = reader.toml.span(*path)
            formula = parse_expression(f"{key} <= {most}", _ALL_NAMES, "condition", span)
            yield Constraint(".".join(path), formula, f"`{key}` of at most {most:,}", span)


def _constraints(reader: Reader) -> Iterator[Constraint]:
    table = reader.table(("constraints",))
    for name, given in table.items():
        path: tuple[str, ...] = ("constraints", name)
        rule = {"require": given} if isinstance(given, str) else given
        if not isinstance(rule, dict):
            reader.wrong(path, f"`{name}` is no condition", f'`{name} = "tp <= gpus_per_node"`')
            continue
        known = set(reader.keys(path, rule, frozenset({"require", "message", "help", "severity"})))
        if "require" not in known:
            reader.wrong(path, f"constraint `{name}` has no `require`", '`require = "tp <= gpus_per_node"`')
            continue
        at = path if isinstance(given, str) else (*path, "require")
        formula = reader.expression(at, rule["require"], _ALL_NAMES, "condition")
        message, help_ = (reader.text((*path, k), rule[k]) if k in known else None for k in ("message", "help"))
        severity = _severity(reader, (*path, "severity"), rule.get("severity", "error"), _SEVERITIES[:3])
        if formula is not None and severity is not None:
            shown = message or f"`{formula.text}`"
            yield Constraint(".".join(path), formula, shown, reader.toml.span(*at), severity, help_)


def _severity(reader: Reader, path: tuple[str, ...], value: Any, known: tuple[str, ...]) -> Severity | None:
    if value not in known:
        reader.wrong(path, f"`{path[-1]} = {value!r}`"[:80], " or ".join(f'"{s}"' for s in known))
        return None
    return None if value == "off" else Severity(value)


def _severities(reader: Reader) -> dict[str, Severity | None]:
    """Severities by code; an error of correctness stays one."""
    found: dict[str, Severity | None] = {}
    for code, value in reader.table(("rules",)).items():
        path, rule = ("rules", code), rules().get(code)
        if rule is None:
            near = ", ".join(f"`{c}`" for c in nearest_codes(code))
            help_ = f"near ones: {near}; `paradag rules` lists all" if near else "`paradag rules` lists all"
            span = reader.toml.span(*path)
            reader.found.append(Diagnostic("PD041", f"no rule `{code[:60]}`", span, "the code of a rule", help_))
            continue
        before = len(reader.found)
        severity = _severity(reader, path, value, _SEVERITIES)
        if len(reader.found) > before:
            continue
        if rule.severity is Severity.ERROR and severity is not Severity.ERROR and not _bends(code, rule.stage):
            reader.found.append(
                Diagnostic(
                    "PD044",
                    f"{code} ({rule.title}) cannot be `{value}`: what breaks it is wrong, not merely unwelcome",
                    reader.toml.span(*path),
                    "an error of the stages resource or objective, a warning or a note",
                    f"remove the line; `paradag explain {code}` says why the rule holds",
                )
            )
            continue
        found[code] = severity
    return found


def _bends(code: str, stage: Stage) -> bool:
    return stage in _BENDING and code not in _BOUNDS


def _values(reader: Reader) -> tuple[dict[str, float], Defaults]:
    """Thresholds and the memory reserve, and what stands in for missing figures."""
    table = reader.table(("values",))
    values: dict[str, float] = {}
    for key in reader.keys(("values",), table, VALUES | _DEFAULTS):
        number = reader.number(("values", key), table[key], least=0.0, most=_most(key))
        if number is not None:
            values[key] = number
    given = {k: v for k, v in values.items() if k in _DEFAULTS}
    return {k: v for k, v in values.items() if k in VALUES}, replace(DEFAULTS, **given)


def _most(key: str) -> float | None:
    if key == "memory_reserve":
        return 0.9
    return 1.0 if key in _SHARES else None


def _own_rows(reader: Reader, parts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of the accelerators' own file; of the others those that the pack's file changes stay."""
    rows = accelerator_table(reader, (), reader.toml.data)
    return rows if "rows" not in parts else {n: rows[n] for n in reader.toml.data if n in rows}


def _given_twice(reader: Reader, other: Reader) -> None:
    if other is reader:
        return
    for name in reader.toml.data.keys() & other.table(("accelerators",)).keys():
        first = other.toml.span("accelerators", name)
        message = f"accelerator `{name}` given twice, first at {first.file}:{first.line}"
        reader.wrong((name,), message, "one table per accelerator", "remove one of them")
