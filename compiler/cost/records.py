"""Calibration files as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ..spec.calibration import Fit
from ..spec.inheritance import Library, parse_calibration, shipped

Fits = Mapping[str, Mapping[str, Mapping[tuple[str, str], Fit]]]
"""By chip, engine and (class, variant)."""


def render_fits(fits: Fits, units: Mapping[str, int], header: str = "") -> str:
    """A calibration file that :func:`paradag.compiler.spec.inheritance.parse_calibration` reads.

    Args:
        fits: Parameter sets.
        units: Multiprocessors of chips that the catalogue does not have.
        header: Comment at the top.
    """
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    for chip, count in sorted(units.items()):
        lines += ["", f"[{_key(chip)}]", f"units = {count}"]
    for chip, engines in sorted(fits.items()):
        for engine, sets in sorted(engines.items()):
            for (kind, variant), fit in sorted(sets.items()):
                lines += ["", f"[{'.'.join(_key(k) for k in (chip, engine, kind, variant))}]"]
                lines += [f"{name} = {_number(value)}" for name, value in asdict(fit.parameters).items()]
                if fit.residual is not None:
                    lines += [f"{name} = {_number(value)}" for name, value in asdict(fit.residual).items()]
                lines.append(f"source = {_text(fit.source)}")
    return "\n".join(lines).lstrip("\n") + "\n"


def write_fits(path: Path, fits: Fits, units: Mapping[str, int], header: str = "") -> None:
    """Write a calibration file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(render_fits(fits, units, header), encoding="utf-8")
    partial.replace(path)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.5g}"


def _key(name: str) -> str:
    plain = name.replace("_", "").replace("-", "")
    return name if plain.isascii() and plain.isalnum() else _text(name)


def _text(value: str) -> str:
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in value)
    return f'"{escaped}"'


def load_calibration(path: str | Path) -> Library:
    """Calibrations of a file, over those that paradag ships.

    Args:
        path: A TOML file as ``paradag calibrate`` writes it (docs/calibration.md).

    Raises:
        DiagnosticError: PD001 to PD003 where the file cannot be read, PD030 where it is no calibration.
    """
    from ...grammar import read_source  # here, so that costs load without the parser

    return parse_calibration(read_source(Path(path)), str(path)).over(shipped())
