"""``paradag fmt``: the canonical layout of strategy files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..diagnostics import DiagnosticError, render_diagnostics
from ._common import exit_code, rewrite


def fmt_command(
    files: Annotated[list[Path], typer.Argument(help=".strat files.", metavar="FILE...")],
    write: Annotated[bool, typer.Option("--write", help="Rewrite files that differ.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit code 1 where a file differs.")] = False,
) -> None:
    """Print strategy files in canonical layout; comments stay.

    Exit code: 0; 1 where a file does not parse, or differs with --check; 2 where it cannot be read.
    """
    if write and check:
        raise typer.BadParameter("give --write or --check, not both")
    raise typer.Exit(max(_format(path, write=write, check=check) for path in files))


def _format(path: Path, *, write: bool, check: bool) -> int:
    from ...grammar import format_text, read_source

    try:
        text = read_source(path)
        formatted = format_text(text, str(path))
        if write and formatted != text:
            rewrite(path, formatted)
            typer.echo(f"formatted {path}", err=True)
    except DiagnosticError as error:
        typer.echo(render_diagnostics(error.diagnostics, error.texts), err=True)
        return exit_code(error.diagnostics)
    if check:
        if formatted != text:
            typer.echo(f"{path}: not in canonical layout", err=True)
        return int(formatted != text)
    if not write:
        typer.echo(formatted, nl=False)
    return 0
