"""Calibrations from files, completed by inheritance: every chip gets every parameter set, and says where from.

A class and variant that nobody measured on a chip is taken from, in this order: another engine on the same chip; the
same class on chips of the same architecture; of the same vendor and generation; the median over all chips. Within a
chip a number format that was not measured takes the nearest one's figures first.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.resources import files
from math import log
from statistics import median
from typing import Any

import orjson

from ..diagnostics import Diagnostic, DiagnosticError
from .calibration import CLASSES, Calibration, Fit, Parameters, Residual
from .catalog import CatalogEntry, accelerator, accelerator_names
from .source import Assumption

__all__ = ["ENGINE", "Library", "calibrated", "parse_calibration", "shipped"]

ENGINE = "vllm"
"""Engine whose figures a chip takes where none is asked for and the chip has them."""

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("bf16", "fp8", "fp8_block", "int8", "int4", "nvfp4", "mxfp4"),
    "prefill": ("bf16", "fp8"),
    "decode": ("bf16", "fp8"),
    "decode_mha": ("bf16", "fp8"),
    "mla_prefill": ("bf16", "fp8"),
    "mla_decode": ("bf16", "fp8"),
    "experts": ("bf16", "fp8", "fp8_block", "int8", "int4", "nvfp4", "mxfp4"),
    "dispatch": ("normal", "low_latency"),
    "combine": ("normal", "low_latency"),
}
"""Variants of a class; ``any`` for a class that is not named here."""

_NEAREST: Mapping[str, tuple[str, ...]] = {
    "fp8_block": ("fp8", "bf16"),
    "fp8": ("fp8_block", "bf16"),
    "int8": ("bf16",),
    "int4": ("bf16",),
    "nvfp4": ("mxfp4", "fp8", "bf16"),
    "mxfp4": ("nvfp4", "int4", "bf16"),
    "low_latency": ("normal",),
    "normal": ("low_latency",),
}
"""Variants whose figures stand in for one that was measured nowhere, nearest first."""


@dataclass(frozen=True)
class Library:
    """Calibrations by chip and engine, as files hold them: incomplete.

    Attributes:
        fits: By chip, engine and (class, variant).
        units: Multiprocessors by chip, for chips that are in no catalogue.
    """

    fits: Mapping[str, Mapping[str, Mapping[tuple[str, str], Fit]]]
    units: Mapping[str, int]

    def engines(self, chip: str) -> tuple[str, ...]:
        """Engines measured on a chip, its default first."""
        known = self.fits.get(chip, {})
        order = ("measured", ENGINE, "trtllm", "sglang")
        return (*(e for e in order if e in known), *sorted(e for e in known if e not in order))

    def find(self, chip: str, engines: Iterable[str], key: tuple[str, str]) -> Fit | None:
        """A chip's parameter set under the first engine that has it."""
        known = self.fits.get(chip, {})
        return next((known[e][key] for e in engines if key in known.get(e, {})), None)

    def over(self, base: Library) -> Library:
        """This library, and what ``base`` has besides."""
        chips = dict.fromkeys((*base.fits, *self.fits))
        fits = {c: {**base.fits.get(c, {}), **self.fits.get(c, {})} for c in chips}
        return Library(fits, {**base.units, **self.units})


def keys() -> tuple[tuple[str, str], ...]:
    """Every (class, variant) that a complete calibration has."""
    return tuple((c, v) for c in CLASSES for v in VARIANTS.get(c, ("any",)))


@cache
def shipped() -> Library:
    """The calibrations that paradag ships: JSON, because a program writes them and every run reads them."""
    document = orjson.loads(files(__package__).joinpath("calibration.json").read_bytes())
    return _library(document, "calibration.json")


def parse_calibration(text: str, name: str) -> Library:
    """The calibrations that a TOML document holds.

    Raises:
        DiagnosticError: PD030 for each thing that is wrong.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DiagnosticError([_bad(name, f"no TOML: {error}")]) from None
    return _library(document, name)


def _library(document: Mapping[str, Any], name: str) -> Library:
    """The calibrations of a document; see :func:`parse_calibration`."""
    found: list[Diagnostic] = []
    fits: dict[str, dict[str, dict[tuple[str, str], Fit]]] = {}
    units: dict[str, int] = {}
    for chip, engines in document.items():
        if not isinstance(engines, dict):
            found.append(_bad(name, f"`{chip}` is no table of engines"))
            continue
        for engine, classes in engines.items():
            if engine == "units":
                if isinstance(classes, int) and not isinstance(classes, bool) and 0 < classes <= 100_000:
                    units[chip] = classes
                else:
                    found.append(_bad(name, f"`{chip}.units` is {classes!r}, no count of multiprocessors"))
            else:
                fits.setdefault(chip, {})[engine] = _classes(f"{chip}.{engine}", classes, name, found)
    if found:
        raise DiagnosticError(found)
    return Library(fits, units)


def _classes(where: str, tables: Any, name: str, found: list[Diagnostic]) -> dict[tuple[str, str], Fit]:
    fits: dict[tuple[str, str], Fit] = {}
    if not isinstance(tables, dict):
        found.append(_bad(name, f"`{where}` is no table of operator classes"))
        return fits
    for kind, variants in tables.items():
        if kind not in CLASSES or not isinstance(variants, dict):
            found.append(_bad(name, f"`{where}.{kind}` is no operator class", f"one of {', '.join(CLASSES)}"))
            continue
        known = VARIANTS.get(kind, ("any",))
        for variant, row in variants.items():
            if variant not in known or not isinstance(row, dict):
                found.append(_bad(name, f"`{where}.{kind}.{variant}` is no variant", f"one of {', '.join(known)}"))
            elif (fit := _fit(f"{where}.{kind}.{variant}", CLASSES[kind], row, name, found)) is not None:
                fits[kind, variant] = fit
    return fits


_RESIDUAL = tuple(f.name for f in fields(Residual))


def _fit(where: str, cls: type[Parameters], row: dict[str, Any], name: str, found: list[Diagnostic]) -> Fit | None:
    wanted = tuple(f.name for f in fields(cls))
    before = len(found)
    for key in row.keys() - {*wanted, *_RESIDUAL, "source"}:
        found.append(_bad(name, f"`{where}` has no parameter `{key}`", ", ".join(wanted)))
    defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
    row = {**defaults, **row}
    for key in wanted:
        value = row.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
            found.append(_bad(name, f"`{where}.{key}` is {value!r}", "a finite number, not negative"))
        elif key.endswith("efficiency") and value == 0:
            found.append(_bad(name, f"`{where}.{key}` is 0: the class would take forever", "a share above 0"))
    if len(found) > before:
        return None
    residual = Residual(**{k: row[k] for k in _RESIDUAL}) if all(k in row for k in _RESIDUAL) else None
    return Fit(cls(**{k: float(row[k]) for k in wanted}), residual, str(row.get("source", name)))


def _bad(name: str, what: str, expected: str | None = None) -> Diagnostic:
    return Diagnostic(
        "PD030",
        f"{name}: {what}",
        expected=expected,
        help="write the file with `paradag calibrate`, or see docs/calibration.md",
    )


def calibrated(
    library: Library,
    chip: str,
    entry: CatalogEntry | None,
    engine: str | None,
    made: list[Assumption],
    dtype: str = "bf16",
) -> Calibration:
    """The complete calibration of a chip, and what it rests on.

    Args:
        library: Fitted figures.
        chip: Name in the file.
        entry: Its catalogue entry, if it has one.
        engine: Whose kernels; None takes the chip's default.
        made: Takes the assumptions.
        dtype: The model's format: assumptions on formats that it does not use are left out.
    """
    name = chip if chip in library.fits or entry is None else entry.name
    engines = library.engines(name)
    chosen = engine if engine in engines else next(iter(engines), engine or ENGINE)
    if engine is not None and chosen != engine and engines:
        made.append(Assumption("engine", chosen, f"nobody measured {engine} on {name}"))
    order = (chosen, *(e for e in engines if e != chosen))
    family = _family(library, name, entry)
    fits: dict[tuple[str, str], Fit] = {}
    origins: dict[tuple[str, str], str] = {}
    for key in keys():
        fits[key], origin = _inherit(library, name, entry, order, family, key)
        if origin:
            origins[key] = origin
    used = {"bf16", "any", *VARIANTS["dispatch"], dtype}
    made += _assumptions(name, chosen, fits, {k: o for k, o in origins.items() if k[1] in used})
    return Calibration(name, chosen, fits, _units(library, name, entry, family), origins)


def _assumptions(
    name: str, engine: str, fits: Mapping[tuple[str, str], Fit], origins: Mapping[tuple[str, str], str]
) -> list[Assumption]:
    """Where the figures of a chip come from: one line for its own, one for each origin of inherited ones."""
    made: list[Assumption] = []
    errors = [
        f"{fit.residual.median:.0%} {key[0]}"
        for key, fit in fits.items()
        if key not in origins and fit.residual is not None and key[1] in ("bf16", "any")
    ]
    if errors:
        made.append(
            Assumption("kernel efficiencies", f"fitted on {name}, {engine}", f"median error {', '.join(errors)}")
        )
    by_origin: dict[str, list[str]] = {}
    for (kind, variant), origin in origins.items():
        by_origin.setdefault(origin, []).append(kind if variant == "any" else f"{kind} {variant}")
    for origin, kinds in by_origin.items():
        which = ", ".join(kinds) if errors else "its kernels"
        made.append(Assumption("inherited efficiencies", origin, f"{name} was not measured for {which}"))
    return made


def _family(library: Library, name: str, entry: CatalogEntry | None) -> list[tuple[str, list[str]]]:
    """Measured chips that a chip may inherit from: (why, names), nearest first."""
    measured = [c for c in library.fits if c != name and c in accelerator_names()]
    found: list[tuple[str, list[str]]] = []
    if entry is not None:
        near = sorted(measured, key=lambda c: _distance(accelerator(c), entry))
        same = [c for c in near if accelerator(c).architecture == entry.architecture]
        found += [(f"{c} (also {entry.architecture})", [c]) for c in same]
        generation = [c for c in near if _generation(accelerator(c)) == _generation(entry) and c not in same]
        found += [(f"{c} (same generation)", [c]) for c in generation]
        if not found and entry.units:
            # Laws of tiles and waves carry over between multiprocessors of about the same speed.
            alike = sorted(measured, key=lambda c: _distance(accelerator(c), entry, per_unit=True))
            found = [(f"{c} (nearest per multiprocessor)", [c]) for c in alike]
    return [*found, ("median of all measured chips", measured)]


def _generation(entry: CatalogEntry) -> tuple[str, str]:
    return entry.vendor, entry.compute_capability.split(".")[0]


def _distance(a: CatalogEntry, b: CatalogEntry, *, per_unit: bool = False) -> float:
    """How far two chips are apart in peak and bandwidth, of the whole chips or of their multiprocessors."""
    units = log(a.units / b.units) if per_unit and a.units and b.units else 0.0
    return abs(log(a.peaks["bf16"] / b.peaks["bf16"]) - units) + abs(log(a.bandwidth / b.bandwidth) - units)


def _inherit(
    library: Library,
    name: str,
    entry: CatalogEntry | None,
    order: tuple[str, ...],
    family: list[tuple[str, list[str]]],
    key: tuple[str, str],
) -> tuple[Fit, str]:
    """A parameter set and where it comes from; nothing where the chip was measured."""
    kind, variant = key
    native = entry is None or variant in ("any", *entry.peaks) or variant not in ("fp8", "fp8_block", "nvfp4", "mxfp4")
    if (own := library.find(name, order, key)) is not None:
        return own, ""
    stand_ins = [(kind, v) for v in _NEAREST.get(variant, ())]
    if not native:
        for other in stand_ins:
            if (own := library.find(name, order, other)) is not None:
                return own, f"its {other[1]} figures"
    for wanted in (key, *stand_ins):
        if (own := library.find(name, order, wanted)) is not None:
            return own, f"its {wanted[1]} figures"
        for why, chips in family:
            if (fit := _median(library, chips, order[0], wanted)) is not None:
                return fit, why
    raise DiagnosticError([_bad("calibration", f"no chip has {kind}.{variant}")])


def _median(library: Library, chips: list[str], engine: str, key: tuple[str, str]) -> Fit | None:
    """The chips' figures, those under the wanted engine where they have them."""
    found = [f for c in chips if (f := library.find(c, (engine, *library.engines(c)), key)) is not None]
    if len(found) <= 1:
        return found[0] if found else None
    cls = type(found[0].parameters)
    values = {f.name: median(getattr(fit.parameters, f.name) for fit in found) for f in fields(cls)}
    return Fit(cls(**values), None, "median of " + ", ".join(chips))


def _units(library: Library, name: str, entry: CatalogEntry | None, family: list[tuple[str, list[str]]]) -> int:
    if name in library.units:
        return library.units[name]
    if entry is not None and entry.units is not None:
        return entry.units
    for _, chips in family:
        known = [u for c in chips if (u := library.units.get(c) or accelerator(c).units) is not None]
        if known:
            return int(median(known))
    return 132
