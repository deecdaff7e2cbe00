"""Runs the failing examples of rule sections: each kind of text in its own reader and checker."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import groupby
from pathlib import Path

from paradag.compiler.cli import main
from paradag.compiler.diagnostics import Diagnostic, DiagnosticError, Severity
from paradag.compiler.driver import compile as compile_strategy
from paradag.compiler.emit import load_json
from paradag.compiler.ir.parse import parse_graph
from paradag.compiler.knowledge import Example
from paradag.grammar import load_text
from paradag.grammar.condition import load_condition_text
from paradag.grammar.dot_reader import read_dot
from paradag.passes.validation import check_spec, verify
from paradag.passes.validation.flat import check_flat
from paradag.passes.validation.foreign.drawing import check_drawing
from paradag.passes.validation.foreign.strategy_json import check_strategy_json
from paradag.tests.knowledge.documents import changed_document

ROOT = Path(__file__).resolve().parents[2]
PRINTED = ROOT / "ir_examples" / "printed"

Finding = tuple[str, Severity]


def findings(example: Example, folder: Path, *, against_logical: bool = False) -> set[Finding]:
    """Codes and severities that an example gives. ``folder`` is an empty one for those that need files."""
    if example.kind == "ir":
        return _said(_ir(example, against_logical))
    if example.kind == "json" and example.base:
        return _said(_document(example))
    if example.kind == "sh":
        return set(_shell(example.text, folder))
    return _said(_TEXTS[example.kind](example.text))


def _said(diagnostics: list[Diagnostic]) -> set[Finding]:
    return {(d.code, Severity(d.severity or Severity.ERROR)) for d in diagnostics}


def _strat(text: str) -> list[Diagnostic]:
    """Findings of a strategy file: those of the text, else of the spec, else of its compilation."""
    try:
        loaded = load_text(text, "example.strat")
        found = [*loaded.diagnostics, *check_spec(loaded)[1]]
        if any(d.is_error for d in found):
            return found
        return list(compile_strategy(loaded).diagnostics)
    except DiagnosticError as error:
        return list(error.diagnostics)


def _dot(text: str) -> list[Diagnostic]:
    return check_drawing(read_dot(text, "example.dot"))


def _json(text: str) -> list[Diagnostic]:
    return check_strategy_json(text, "example.json")


def _condition(text: str) -> list[Diagnostic]:
    try:
        return list(load_condition_text(text, "example.md").diagnostics)
    except DiagnosticError as error:
        return list(error.diagnostics)


_TEXTS: dict[str, Callable[[str], list[Diagnostic]]] = {"strat": _strat, "dot": _dot, "json": _json, "md": _condition}


def _document(example: Example) -> list[Diagnostic]:
    try:
        return check_flat(load_json(changed_document(example.base, example.text), "example.json"))
    except DiagnosticError as error:
        return list(error.diagnostics)


def _ir(example: Example, against_logical: bool) -> list[Diagnostic]:
    """Findings on textual IR: a printed example changed, or a graph that stands alone."""
    base = (PRINTED / f"{example.base}.ir").read_text(encoding="utf-8") if example.base else ""
    try:
        graph = parse_graph(changed(base, example.text) if example.base else example.text)
    except DiagnosticError as error:
        return list(error.diagnostics)
    return verify(graph, parse_graph(base) if against_logical else None)


def changed(base: str, edits: str) -> str:
    """The text with each run of ``-`` lines replaced by the run of ``+`` lines behind it.

    Blanks at the ends of lines do not count; what is replaced must stand in the text exactly once.
    """
    marks = [(line[:1], line[1:].strip()) for line in edits.splitlines() if line.strip()]
    runs = [(mark, [text for _, text in run]) for mark, run in groupby(marks, key=lambda m: m[0])]
    assert {mark for mark, _ in runs} <= {"-", "+"}, edits
    while runs:
        mark, old = runs.pop(0)
        assert mark == "-", edits
        new = runs.pop(0)[1] if runs and runs[0][0] == "+" else []
        pattern = r"\s*\n\s*".join(re.escape(line) for line in old)
        assert len(re.findall(pattern, base)) == 1, f"{old} stands {len(re.findall(pattern, base))} times in the base"
        base = "\n".join(new).join(re.split(pattern, base))
    return base


_SAID = re.compile(r"\b(error|warning|note)\[(PD\d{3})\]")


def _shell(script: str, folder: Path) -> Iterator[Finding]:
    """Findings of a script of the few commands below; the working directory is ``folder``."""
    lines = script.splitlines()
    while lines:
        words = shlex.split(lines.pop(0), comments=True)
        if not words:
            continue
        environment = dict(w.split("=", 1) for w in words if re.fullmatch(r"[A-Z]+=.*", w))
        command, *rest = [w for w in words if not re.fullmatch(r"[A-Z]+=.*", w)]
        if command == "cat" and rest[0] == ">" and rest[2] == "<<":
            end = lines.index(rest[3])
            (folder / rest[1]).write_text("\n".join(lines[:end]) + "\n", encoding="utf-8")
            del lines[: end + 1]
        elif command == "paradag":
            yield from _run(rest, environment, folder)
        else:
            _FILES[command](folder, *rest)


def _run(arguments: list[str], environment: dict[str, str], folder: Path) -> Iterator[Finding]:
    """What `paradag` says, in this process: working directory and environment are changed for its time."""
    import os

    before, variables = Path.cwd(), dict(os.environ)
    out, err = StringIO(), StringIO()
    os.chdir(folder)
    os.environ.update(environment)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(arguments)
    except SystemExit:
        pass
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(variables)
        sys.stdout.flush()
    for severity, code in _SAID.findall(err.getvalue() + out.getvalue()):
        yield code, Severity(severity)


def _copy(folder: Path, source: str, target: str) -> None:
    (folder / target).write_bytes((ROOT / source).read_bytes())


def _truncate(folder: Path, flag: str, size: str, target: str) -> None:
    assert flag == "-s"
    with (folder / target).open("wb") as file:
        file.truncate(int(size.rstrip("M")) << (20 if size.endswith("M") else 0))


def _printf(folder: Path, text: str, arrow: str, target: str) -> None:
    assert arrow == ">"
    (folder / target).write_bytes(text.encode("latin-1").decode("unicode_escape").encode("latin-1"))


_FILES: dict[str, Callable[..., None]] = {
    "cp": _copy,
    "chmod": lambda folder, mode, target: (folder / target).chmod(0o755),
    "touch": lambda folder, target: (folder / target).touch(),
    "truncate": _truncate,
    "printf": _printf,
}
