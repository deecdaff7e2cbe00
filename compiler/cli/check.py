"""``paradag check``: what is wrong with files, without changing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..diagnostics import Diagnostic, DiagnosticError, Outcome, Severity, Span, render_diagnostics
from ._common import KnowledgeOption, diagnostic_json, exit_code, write_json

if TYPE_CHECKING:
    from ..spec import Pack

_DRAWINGS = frozenset({".dot", ".gv"})
_CONDITIONS = frozenset({".md", ".yaml", ".yml"})
_DOCUMENT = '"schema"'
"""Key with which a document of paradag begins."""

_SNIFFED = 200
"""Characters that tell a document of paradag from other JSON."""


class CheckFormat(StrEnum):
    """Shape of the findings."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"


@dataclass(frozen=True)
class Checked:
    """Findings on one file, and its text where there are lines to show."""

    file: str
    diagnostics: tuple[Diagnostic, ...]
    texts: dict[str, str] = field(default_factory=dict)


def check_command(
    files: Annotated[
        list[Path],
        typer.Argument(help=".strat, .dot or .gv, strategy .json, or a .json of paradag.", metavar="FILE..."),
    ],
    output: Annotated[CheckFormat, typer.Option("--format", help="For people, for programs, or SARIF 2.1.0.")] = (
        CheckFormat.TEXT
    ),
    knowledge: KnowledgeOption = None,
) -> None:
    """Check strategies, drawings and compiled graphs; nothing is repaired and nothing written.

    Exit code: 0 clean or warnings only, 1 errors, 2 a file that cannot be read; of several files the highest.
    """
    checked = _checked(files, knowledge)
    found = [d for each in checked for d in each.diagnostics]
    code = max(exit_code(each.diagnostics) for each in checked)
    if output is CheckFormat.JSON:
        status = Outcome.REJECTED if code else Outcome.VALID
        write_json({"status": status, "diagnostics": [diagnostic_json(d) for d in found]})
    elif output is CheckFormat.SARIF:
        from ... import __version__
        from ..sarif import sarif_log

        write_json(sarif_log(found, [c.file for c in checked], version=__version__, exit_code=code))
    else:
        _print(checked)
    raise typer.Exit(code)


def _checked(files: Sequence[Path], knowledge: Path | None) -> list[Checked]:
    """Findings on all files; on the knowledge pack alone where that is broken."""
    if knowledge is None:
        return [_check(path, None) for path in files]
    from ..knowledge.pack import load_pack

    try:
        pack = load_pack(knowledge)
    except DiagnosticError as error:
        return [Checked(str(knowledge), error.diagnostics, error.texts)]
    return [_check(path, pack) for path in files]


def _print(checked: Sequence[Checked]) -> None:
    for each in checked:
        if each.diagnostics:
            typer.echo(render_diagnostics(each.diagnostics, each.texts), err=True)
            typer.echo(err=True)
    for each in checked:
        typer.echo(f"{each.file}: {_summary(each.diagnostics)}")


def _summary(diagnostics: Sequence[Diagnostic]) -> str:
    counts = {s: sum(d.severity is s for d in diagnostics) for s in Severity}
    shown = ", ".join(f"{n} {s}{'s' if n > 1 else ''}" for s, n in counts.items() if n)
    return shown or "clean"


def _check(path: Path, pack: Pack | None) -> Checked:
    """Findings on a file of any kind; one without a place stands at the beginning of the file."""
    try:
        checked = _by_kind(path, pack)
    except DiagnosticError as error:
        checked = Checked(str(path), error.diagnostics, error.texts)
    start = Span(str(path), 1, 1, 1, 1)
    diagnostics = checked.diagnostics
    if pack is not None:
        from ..spec.pack import graded

        diagnostics = tuple(graded(diagnostics, pack))
    found = tuple(d if d.span else replace(d, span=start) for d in diagnostics)
    return replace(checked, diagnostics=found)


def _by_kind(path: Path, pack: Pack | None) -> Checked:
    kind = path.suffix.lower()
    if kind == ".json":
        return _check_json(path, pack)
    if kind in _DRAWINGS:
        return _check_foreign(path)
    if kind in _CONDITIONS:
        from ...grammar import read_source

        read_source(path)
        found = Diagnostic(
            "PD016",
            f"condition files (`{kind}`) are not read yet",
            expected="a .strat, .dot, .gv or .json file",
            help="write the model, cluster, workload and strategy as a .strat file",
        )
        return Checked(str(path), (found,))
    return _check_strategy(path, pack)


def _check_strategy(path: Path, pack: Pack | None) -> Checked:
    from ..driver import check, load

    loaded = load(path, knowledge=pack)
    return Checked(str(path), check(loaded), loaded.texts)


def _check_foreign(path: Path) -> Checked:
    from ...grammar import read_source
    from ...passes.validation.foreign import check_foreign_text

    text = read_source(path)
    return Checked(str(path), tuple(check_foreign_text(text, str(path))), {str(path): text})


def _check_json(path: Path, pack: Pack | None) -> Checked:
    """A graph that paradag wrote (it may be large, and is read as such), or anybody's strategy file."""
    try:
        with path.open("rb") as file:
            start = file.read(_SNIFFED).decode("utf-8", errors="replace")
    except OSError:
        return _check_foreign(path)  # which tells why it cannot be read
    if start.removeprefix("{").lstrip().startswith(_DOCUMENT) and "paradag" in start:
        return Checked(str(path), tuple(_document_findings(path, pack)))
    return _check_foreign(path)


def _document_findings(path: Path, pack: Pack | None) -> list[Diagnostic]:
    """What is wrong with a graph document: its form, its graph, and the strategy that it was compiled from."""
    from ...passes.validation import check_flat, check_spec
    from ..emit import load_json
    from ..spec import LoadedSpec, Spec

    graph = load_json(path)
    header = graph.header
    told = [
        Diagnostic(d.code, d.message, help=d.help, severity=Severity(d.severity))
        for d in header.diagnostics
        if d.severity == "error"
    ]
    told += check_flat(graph)
    if header.strategy is None:
        return told
    strategies = (header.strategy,)
    spec = Spec(model=header.model, cluster=header.cluster, workload=header.workload, strategies=strategies, pack=pack)
    found = [d for d in check_spec(LoadedSpec(spec))[1] if d.is_error]
    return [*told, *(d for d in found if d.code not in {t.code for t in told})]
