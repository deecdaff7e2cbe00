"""``paradag calibrate``: fits the cost model to a user's measured kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..diagnostics import Diagnostic, DiagnosticError
from ._common import FormatOption, OutputFormat, diagnostic_json, report, reporting, write_json, write_table

if TYPE_CHECKING:
    from ..spec import ClusterSpec
    from ..spec.calibration import Fit

_ENGINE = "measured"
"""Engine name of a user's own figures; they are a chip's default wherever the file is given."""

Fits = dict[tuple[str, str], "Fit"]


def calibrate_command(
    file: Annotated[Path, typer.Argument(help="Measured kernels, CSV.", metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The calibration to write, TOML.", metavar="FILE")],
    accelerator: Annotated[str | None, typer.Option(help="Catalogued accelerator measured.", metavar="NAME")] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="A .strat file whose cluster was measured.", metavar="FILE")
    ] = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Fit the cost model to measured kernels; `compile --calibration` uses the result.

    docs/calibration.md lists the columns. Bad rows are reported and left out; a class with too few rows keeps
    inheriting its figures.
    """
    if (accelerator is None) == (cluster is None):
        raise typer.BadParameter("give one of --accelerator and --cluster", param_hint="--accelerator")
    with reporting(output_format):
        chip, fits, found = _fit(file, accelerator, cluster)
        _write(output, chip, fits, file)
    if output_format is OutputFormat.JSON:
        write_json(_document(chip, fits, found, output))
    else:
        report(found, OutputFormat.TEXT)
        _print(chip, fits, output)


def _fit(file: Path, accelerator: str | None, cluster: Path | None) -> tuple[str, Fits, Sequence[Diagnostic]]:
    """Name of the chip, its parameter sets and what was found in the table."""
    from ...grammar import read_source
    from ..cost import resolve_hardware
    from ..cost.measurements import fit_measurements, read_measurements

    hardware, _ = resolve_hardware(_cluster(accelerator, cluster))
    measured, bad = read_measurements(read_source(file), str(file))
    fits, notes = fit_measurements(measured, hardware, file.name)
    found = (*bad, *notes)
    if not fits:
        nothing = Diagnostic("PD033", f"{file}: no operator class has enough good rows", help="see docs/calibration.md")
        raise DiagnosticError([*found, nothing])
    return hardware.name, fits, found


def _cluster(accelerator: str | None, cluster: Path | None) -> ClusterSpec:
    from ..driver import load
    from ..spec import AcceleratorSpec, ClusterSpec
    from ..spec.catalog import accelerator as catalogued

    if cluster is not None:
        return load(cluster).spec.cluster
    entry = catalogued(str(accelerator))
    chip = AcceleratorSpec(name=entry.name, catalog=entry.name)
    return ClusterSpec(accelerator=chip, nodes=1, gpus_per_node=entry.gpus_per_node)


def _write(output: Path, chip: str, fits: Fits, source: Path) -> None:
    from ..cost.records import write_fits

    header = f"Written by `paradag calibrate {source.name}`. Seconds where a name ends in _s, else ratios."
    try:
        write_fits(output, {chip: {_ENGINE: fits}}, {}, header)
    except OSError as error:
        what = f"cannot write `{output}`: {error.strerror}"
        raise DiagnosticError([Diagnostic("PD001", what, help="give a path in a folder that exists")]) from None


def _print(chip: str, fits: Fits, output: Path) -> None:
    columns = ("class", "variant", "rows", "median", "mean", "bias")
    rows = [(k, v, *_errors(fit)) for (k, v), fit in fits.items()]
    write_table(columns, rows, right=columns[2:])
    inherited = _inherited(fits)
    if inherited:
        typer.echo(f"inherited: {', '.join(inherited)}")
    typer.echo(f"{chip}: {output}")


def _errors(fit: Fit) -> tuple[str, ...]:
    r = fit.residual
    return ("-",) * 4 if r is None else (str(r.rows), f"{r.median:.1%}", f"{r.mean:.1%}", f"{r.bias:+.1%}")


def _inherited(fits: Fits) -> list[str]:
    from ..spec.calibration import CLASSES

    measured = {kind for kind, _ in fits}
    return [kind for kind in CLASSES if kind not in measured]


def _document(chip: str, fits: Fits, found: Sequence[Diagnostic], output: Path) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "accelerator": chip,
        "output": str(output),
        "fits": [
            {
                "class": kind,
                "variant": variant,
                "parameters": asdict(fit.parameters),
                "residual": None if fit.residual is None else asdict(fit.residual),
                "source": fit.source,
            }
            for (kind, variant), fit in fits.items()
        ],
        "inherited": _inherited(fits),
        "diagnostics": [diagnostic_json(d) for d in found],
    }
