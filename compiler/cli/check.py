"""``paradag check``: what is wrong with files, without changing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..diagnostics import Diagnostic, DiagnosticError, Outcome, Severity, Span, render_diagnostics
from ._common import KnowledgeOption, diagnostic_json, exit_code, write_json, write_table

if TYPE_CHECKING:
    from ..spec import Assumption, LineUse, Pack

_DRAWINGS = frozenset({".dot", ".gv"})
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
    """Findings on one file, its text where there are lines to show, and a condition file's account of its lines."""

    file: str
    diagnostics: tuple[Diagnostic, ...]
    texts: dict[str, str] = field(default_factory=dict)
    lines: tuple[LineUse, ...] = ()
    assumptions: tuple[Assumption, ...] = ()


def check_command(
    files: Annotated[
        list[Path],
        typer.Argument(help=".strat, condition .md or .yaml, .dot or .gv, or .json.", metavar="FILE..."),
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
        accounts = [_account_json(c) for c in checked if c.lines]
        document = {"status": status, "diagnostics": [diagnostic_json(d) for d in found]}
        write_json(document | ({"conditions": accounts} if accounts else {}))
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
        if each.lines:
            _print_account(each)
        typer.echo(f"{each.file}: {_summary(each.diagnostics)}")


def _print_account(checked: Checked) -> None:
    """What became of every line of a condition file, and what was assumed for lines that it lacks."""
    rows = [(str(u.line), u.use, u.text, u.detail) for u in checked.lines if u.text]
    write_table(("line", "use", "text", "field or reason"), rows, right=("line",))
    for a in checked.assumptions:
        typer.echo(f"assumed: {a.name} = {a.value} ({a.why}{'; ' if a.sensitivity else ''}{a.sensitivity})")


def _account_json(checked: Checked) -> dict[str, object]:
    return {
        "file": checked.file,
        "lines": [{"line": u.line, "use": u.use, "detail": u.detail} for u in checked.lines],
        "assumptions": [
            {"name": a.name, "value": a.value, "why": a.why, "sensitivity": a.sensitivity} for a in checked.assumptions
        ],
    }


def _summary(diagnostics: Sequence[Diagnostic]) -> str:
    counts = {s: sum(d.severity is s for d in diagnostics) for s in Severity}
    shown = ", ".join(f"{n} {s}{'s' if n > 1 else ''}" for s, n in counts.items() if n)
    return shown or "clean"


def _check(path: Path, pack: Pack | None) -> Checked:
    """Findings on a file of any kind; one without a place stands at the beginning of the file."""
    from ...grammar.condition import ConditionError

    try:
        checked = _by_kind(path, pack)
    except DiagnosticError as error:
        lines = error.lines if isinstance(error, ConditionError) else ()
        checked = Checked(str(path), error.diagnostics, error.texts, lines)
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
    return _check_strategy(path, pack)


def _check_strategy(path: Path, pack: Pack | None) -> Checked:
    """A strategy file, or a condition, whose lines are accounted for."""
    from ..driver import check, load

    loaded = load(path, knowledge=pack)
    found = check(loaded)
    lost = tuple(d for d in loaded.diagnostics if d not in found)
    return Checked(str(path), (*lost, *found), loaded.texts, loaded.lines, loaded.assumptions)


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
    from ...grammar import read_source
    from ...grammar.condition import is_condition

    if is_condition(path, read_source(path)):
        return _check_strategy(path, pack)
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
