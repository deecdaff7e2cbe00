"""Writing what a compilation gives: one file per phase and format, each complete or absent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..passes.compiled import Compiled
from .diagnostics import Diagnostic, DiagnosticError
from .ir.graph import Phase

FORMATS = ("json", "dot", "svg", "columns", "ir")
EXPANSIONS = ("layers", "shards", "ranks")

MAX_JSON_NODES = 5_000_000

Writer = Callable[[Compiled, Phase, Path, frozenset[str]], Sequence[Diagnostic]]


@dataclass(frozen=True)
class Written:
    """Files written, and findings made on the way (Graphviz missing, drawing too large)."""

    paths: tuple[Path, ...]
    diagnostics: tuple[Diagnostic, ...]


def write_outputs(
    compiled: Compiled,
    folder: Path,
    formats: Collection[str] = ("json", "dot", "svg"),
    expand: Collection[str] = (),
) -> Written:
    """Write ``NAME.PHASE.FORMAT`` for every phase and format. A rejected run writes only the JSON header.

    Args:
        compiled: What to write.
        folder: Where; made if missing.
        formats: Some of :data:`FORMATS`.
        expand: Some of :data:`EXPANSIONS`, for drawings.

    Raises:
        DiagnosticError: unknown format or expansion (PD223), folder or file not writable (PD601).
    """
    _known("--emit", formats, FORMATS)
    _known("--expand", expand, EXPANSIONS)
    paths: list[Path] = []
    found: list[Diagnostic] = []
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for phase in _phases(compiled):
            for kind in _order(formats) if phase in compiled.phases else [f for f in formats if f == "json"]:
                path = folder / f"{compiled.name}.{phase}.{_SUFFIX.get(kind, kind)}"
                said = _WRITERS[kind](compiled, phase, path, frozenset(expand))
                found += said
                if not any(d.code in _NOT_DRAWN for d in said):
                    paths.append(path)
    return Written(tuple(paths), tuple(dict.fromkeys(found)))


def _phases(compiled: Compiled) -> tuple[Phase, ...]:
    """Phases with a result; of a rejected run those that were asked for."""
    return tuple(compiled.phases) or tuple(s.phase for s in compiled.spec.strategies)


def _order(formats: Collection[str]) -> list[str]:
    return [f for f in FORMATS if f in formats]


def _known(option: str, given: Collection[str], known: Sequence[str]) -> None:
    unknown = [g for g in given if g not in known]
    if unknown:
        found = [Diagnostic("PD223", f"{option} does not know {g!r}", expected=" | ".join(known)) for g in unknown]
        raise DiagnosticError(found)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"cannot write to {error.filename or folder}: {error.strerror or error}"
        raise DiagnosticError([Diagnostic("PD601", message, help="give another folder with -o")]) from error


def _write_json(compiled: Compiled, phase: Phase, path: Path, expand: frozenset[str]) -> Sequence[Diagnostic]:
    from .emit import write_json

    analysis = compiled.phases.get(phase)
    if analysis is not None and analysis.flat.node_count > MAX_JSON_NODES:
        message = f"{path.name} would hold {analysis.flat.node_count:,} nodes, about a gigabyte per million"
        raise DiagnosticError(
            [Diagnostic("PD306", message, expected=f"at most {MAX_JSON_NODES:,}", help="use --emit columns")]
        )
    write_json(compiled, phase, path)
    return ()


def _write_dot(compiled: Compiled, phase: Phase, path: Path, expand: frozenset[str]) -> Sequence[Diagnostic]:
    from .emit import write_dot

    return write_dot(compiled.phases[phase], path, expand)[1]


def _write_svg(compiled: Compiled, phase: Phase, path: Path, expand: frozenset[str]) -> Sequence[Diagnostic]:
    from .emit import render_dot, render_svg

    trouble = render_svg(render_dot(compiled.phases[phase], expand), path)
    return (trouble,) if trouble else ()


def _write_columns(compiled: Compiled, phase: Phase, path: Path, expand: frozenset[str]) -> Sequence[Diagnostic]:
    from .emit import write_columns

    write_columns(compiled.phases[phase], path)
    return ()


def _write_ir(compiled: Compiled, phase: Phase, path: Path, expand: frozenset[str]) -> Sequence[Diagnostic]:
    from .emit import replacing
    from .ir.text import print_graph

    with replacing(path) as file:
        file.write(print_graph(compiled.phases[phase].graph).encode())
    return ()


_SUFFIX = {"columns": "npz"}
_NOT_DRAWN = ("PD602", "PD604")
_WRITERS: dict[str, Writer] = {
    "json": _write_json,
    "dot": _write_dot,
    "svg": _write_svg,
    "columns": _write_columns,
    "ir": _write_ir,
}
