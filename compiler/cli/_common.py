"""What commands share: output formats, tables, diagnostics and exit codes."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..diagnostics import Diagnostic, DiagnosticError, Fix, Outcome, render_diagnostics

UNREADABLE = frozenset({"PD001", "PD002", "PD003"})
"""Codes of files that cannot be read at all: they exit like a usage error."""

_UNBOUNDED = 100_000
_BOM = b"\xef\xbb\xbf"


class OutputFormat(StrEnum):
    """Shape of a command's standard output."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[OutputFormat, typer.Option("--format", help="Table for people, or one JSON document.")]


KnowledgeOption = Annotated[
    Path | None,
    typer.Option("--knowledge", help="A knowledge pack: a TOML file or a folder (docs/packs.md).", metavar="PATH"),
]


def example(*lines: str) -> str:
    """An epilog that shows ``lines`` as they stand."""
    # \b keeps click from rewrapping the paragraph
    return "\b\n" + "\n".join(["Example:", *(f"  {line}" for line in lines)])


def write_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """Print a table on standard output; columns named in ``right`` are aligned to the right.

    A terminal's width is respected by folding cells. In a pipe every row is one line, whatever ``COLUMNS`` says.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    right = frozenset(right)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else _UNBOUNDED, markup=False, highlight=False)
    with console.capture() as text:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in text.get().splitlines()))


def exit_code(diagnostics: Iterable[Diagnostic]) -> int:
    """0 without errors, 2 where a file could not be read, 1 otherwise."""
    errors = [d for d in diagnostics if d.is_error]
    if any(d.code in UNREADABLE for d in errors):
        return 2
    return 1 if errors else 0


def report(diagnostics: Iterable[Diagnostic], output: OutputFormat, texts: Mapping[str, str] | None = None) -> None:
    """Say what was found: as text on standard error, or as the JSON document on standard output."""
    diagnostics = tuple(diagnostics)
    if output is OutputFormat.JSON:
        status = Outcome.REJECTED if exit_code(diagnostics) else Outcome.VALID
        write_json({"status": status, "diagnostics": [diagnostic_json(d) for d in diagnostics]})
    elif diagnostics:
        typer.echo(render_diagnostics(diagnostics, texts), err=True)


def diagnostic_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """A diagnostic as machine output names its parts; the place is null where there is none."""
    span = diagnostic.span
    return {
        "code": diagnostic.code,
        "severity": str(diagnostic.severity),
        "message": diagnostic.message,
        "file": span.file if span else None,
        "line": span.line if span else None,
        "column": span.column if span else None,
        "help": diagnostic.help,
    }


def fix_json(fix: Fix) -> dict[str, str]:
    """A repair as machine output names its parts."""
    return {"rule": fix.rule, "before": fix.before, "after": fix.after}


def fix_line(fix: Fix) -> str:
    """A repair as one line: ``fixed[PD211]: tp 6 -> tp 4``."""
    before, after = (" ".join(text.split()) or "nothing" for text in (fix.before, fix.after))
    return f"fixed[{fix.rule}]: `{before}` -> `{after}`"


@contextmanager
def reporting(output: OutputFormat, texts: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn a :class:`DiagnosticError` of the body into a report and the documented exit code."""
    try:
        yield
    except DiagnosticError as error:
        report(error.diagnostics, output, {**error.texts, **(texts or {})})
        raise typer.Exit(exit_code(error.diagnostics)) from None


def rewrite(file: Path, text: str) -> None:
    """Replace the file whole; a link stays a link, permissions and byte order mark stay."""
    from ..emit import replacing

    target = file.resolve()
    mark = _BOM if target.read_bytes().startswith(_BOM) else b""
    mode = stat.S_IMODE(target.stat().st_mode)
    with replacing(target) as draft:
        draft.write(mark + text.encode("utf-8"))
        with suppress(OSError):  # a file system without permissions
            os.chmod(draft.name, mode)
