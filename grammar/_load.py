"""Text or file to :class:`~paradag.compiler.spec.LoadedSpec`, with every error of the file at once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ..compiler.diagnostics import Diagnostic, DiagnosticError, InternalError, Severity, Span
from ..compiler.spec import LoadedSpec, Pack, Spec
from ..compiler.spec.catalog import accelerator_names
from ._build_cluster import build_cluster
from ._build_model import build_model
from ._build_strategy import build_strategies
from ._build_workload import build_workload
from ._context import Context
from ._findings import Findings, TooManyErrors
from ._parse import parse
from ._source import MAX_BYTES, read_source
from ._syntax import File, Statement
from .condition import is_condition, load_condition_text

__all__ = ["load_file", "load_text"]

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


def load_file(path: Path, pack: Pack | None = None) -> LoadedSpec:
    """The spec that the file at ``path`` describes: a strategy file, or a condition in Markdown, YAML or JSON.

    Hugging Face configs are looked up beside a strategy file.

    Args:
        path: The file.
        pack: Knowledge that the spec is judged by; its accelerators are known by name.

    Raises:
        DiagnosticError: With all errors of the file; its ``texts`` hold what was read.
    """
    path = Path(path)
    text = read_source(path)
    if is_condition(path, text):
        return load_condition_text(text, str(path), pack)
    return load_text(text, str(path), path.parent, pack)


def load_text(text: str, file: str = "<text>", base: Path | None = None, pack: Pack | None = None) -> LoadedSpec:
    """The spec that ``text`` describes.

    Args:
        text: A strategy file's content.
        file: Its name in messages.
        base: The folder in which ``model hf`` looks for its config; None for the current one.
        pack: Knowledge that the spec is judged by.

    Raises:
        DiagnosticError: With all errors of the text; its ``texts`` hold the text.
    """
    if len(text) > MAX_BYTES:
        span = Span(file, 1, 1, 1, 1)
        raise DiagnosticError(
            [Diagnostic("PD002", f"the text has {len(text):,} characters", span, f"at most {MAX_BYTES:,}")]
        )
    findings = Findings()
    spec = context = None
    with suppress(TooManyErrors):
        parsed = parse(text, file, findings)
        context = Context(file, findings, parsed.damaged)
        if parsed.statements or not findings:
            spec = _build(context, parsed.statements, base, pack)
    diagnostics = tuple(sorted(findings, key=_reading_order))
    if findings.errors:
        raise DiagnosticError(diagnostics, {file: text})
    if spec is None or context is None:
        raise InternalError("no spec, but no error either")
    return LoadedSpec(spec, context.sources, tuple(context.assumptions), diagnostics, {file: text})


def _reading_order(diagnostic: Diagnostic) -> tuple[int, int, int]:
    span = diagnostic.span
    severity = _ORDER[diagnostic.severity or Severity.ERROR]
    return (span.line, span.column, severity) if span else (0, 0, severity)


def _build(context: Context, file: File, base: Path | None, pack: Pack | None) -> Spec | None:
    if not file and not context.diagnostics:
        context.report(
            "PD004",
            "the file holds nothing but comments",
            Span(context.file, 1, 1, 1, 1),
            "blocks `model`, `cluster`, `workload` and `strategy`",
            "`docs/language.md` shows a whole file",
        )
        return None
    heads = {name: _only(context, file, name) for name in ("model", "cluster", "workload")}
    model = build_model(context, head, base) if (head := heads["model"]) else None
    cluster = build_cluster(context, head, accelerator_names(pack)) if (head := heads["cluster"]) else None
    workload = build_workload(context, head) if (head := heads["workload"]) else None
    strategies = build_strategies(context, [s for s in file if s.key == "strategy"])
    if model is None or cluster is None or workload is None:
        return None
    return Spec(model=model, cluster=cluster, workload=workload, strategies=strategies, pack=pack)


def _only(context: Context, file: File, name: str) -> Statement | None:
    """The one block of that name; its absence and a second one are errors."""
    found = [statement for statement in file if statement.key == name]
    for again in found[1:]:
        context.report(
            "PD012",
            f"block `{name}` given twice, first on line {found[0].key.line}",
            again.span(context.file),
            f"one `{name}` block",
            f"keep one of lines {found[0].key.line} and {again.key.line}",
        )
    if not found:
        context.missing(name, "the file", Span(context.file, 1, 1, 1, 1))
    return found[0] if found else None
