"""``paradag fix``: repair strategies in place, or show how."""

from __future__ import annotations

from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..diagnostics import Outcome
from ._common import KnowledgeOption, OutputFormat, fix_line, report, reporting, rewrite

if TYPE_CHECKING:
    from ...passes.validation.fixes import Fixed


def fix_command(
    file: Annotated[Path, typer.Argument(help="A .strat file.", metavar="FILE")],
    diff: Annotated[bool, typer.Option("--diff", help="Print the changes as a unified diff (the default).")] = False,
    write: Annotated[bool, typer.Option("--write", help="Change the file.")] = False,
    fix_workload: Annotated[
        bool, typer.Option("--fix-workload", help="Reduce the batch where nothing else makes it fit.")
    ] = False,
    knowledge: KnowledgeOption = None,
) -> None:
    """Repair an illegal strategy by the smallest safe change. Comments and formatting of the rest stay.

    Exit code: 0 where the result is clean, 1 where errors remain (then nothing is changed), 2 for an unreadable file.
    """
    if diff and write:
        raise typer.BadParameter("give --diff or --write", param_hint="--write")
    with reporting(OutputFormat.TEXT):
        _fix(file, knowledge, write=write, workload=fix_workload)


def _fix(file: Path, knowledge: Path | None, *, write: bool, workload: bool) -> None:
    from ..driver import fix, load

    loaded = load(file, knowledge=knowledge)
    text = loaded.texts[str(file)]
    fixed = fix(loaded, workload=workload)
    report((*fixed.repaired, *fixed.diagnostics), OutputFormat.TEXT, loaded.texts)
    for each in fixed.fixes:
        typer.echo(fix_line(each), err=True)
    typer.echo(f"{file}: {fixed.outcome}{_how_many(fixed)}", err=True)
    if fixed.outcome is Outcome.REJECTED:
        raise typer.Exit(1)
    if fixed.outcome is Outcome.VALID:
        return
    if write:
        rewrite(file, fixed.text)
    else:
        typer.echo(_diff(text, fixed.text, file), nl=False)


def _how_many(fixed: Fixed) -> str:
    count = len(fixed.fixes)
    return f" ({count} {'repair' if count == 1 else 'repairs'})" if count else ""


def _diff(before: str, after: str, file: Path) -> str:
    """The changes as ``patch`` reads them."""
    name = file.as_posix()
    lines: list[str] = []
    # only \n ends a line of a patch, whatever else ends one in Python
    for line in unified_diff(_lines(before), _lines(after), name, name):
        lines.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return "".join(lines)


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    return [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
