"""``paradag plan`` with several files: each is planned by a worker, and written here."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..diagnostics import Diagnostic, DiagnosticError, render_diagnostics
from ._common import OutputFormat, exit_code, reporting

if TYPE_CHECKING:
    from ..plan.sweep import Done, Executor, Failed
    from ..spec import LoadedSpec
    from ..spec.pack import Pack

INTERRUPTED = 130
"""Exit code of a sweep that Ctrl-C ended, as shells have it: 128 + SIGINT."""

_SUFFIXES = frozenset({".strat", ".md", ".markdown", ".yaml", ".yml", ".json"})
_CONDITION_KEYS = (b'"model"', b'"cluster"')
_SNIFFED = 1 << 20
"""Bytes of a JSON file in which the keys of a condition must stand."""


class Where(StrEnum):
    """Where files of a sweep are planned."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True)
class Job:
    """One file to plan: what it says, and the options of :func:`paradag.plan`."""

    loaded: LoadedSpec
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What planning a file gave: names and contents of the files to write, and what is to be said."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def run_sweep(
    files: Sequence[Path],
    save_path: Path,
    options: Mapping[str, Any],
    where: Where,
    workers: int | None,
    knowledge: Path | None = None,
) -> None:
    """Plan files and folders of them; what is written is told as one document. Ends with the exit code.

    Args:
        files: Files, and folders whose files are meant.
        save_path: Folder of the results. Several files get a folder each in it.
        options: Of :func:`paradag.plan`.
        where: On which workers.
        workers: How many; None for what there is.
        knowledge: Knowledge pack of all files.
    """
    sources = _sources(files)
    single = len(sources) == 1 and sources[0] in files
    folders = [save_path] if single else result_folders(sources, save_path)
    written: dict[int, tuple[Path, ...]] = {}
    code = 0
    # Ray prints what happens to nodes; standard output is for the document.
    with redirect_stdout(sys.stderr):
        with reporting(OutputFormat.TEXT):
            pack = _pack(knowledge)
            executor = _executor(where, workers, len(sources))
        try:
            with closing(_answers(sources, options, executor, pack)) as answers:
                for number, answer in answers:
                    # A file counts once all its results are there.
                    answer, paths = _write(answer, folders[number])
                    written[number] = paths
                    code = max(code, exit_code(answer.diagnostics))
                    _tell(f"[{len(written)}/{len(sources)}] {sources[number]}", answer)
        except KeyboardInterrupt:
            code = INTERRUPTED
            typer.echo(f"interrupted: {len(written)} of {len(sources)} files are done", err=True)
        except DiagnosticError as error:
            typer.echo(render_diagnostics(error.diagnostics, error.texts), err=True)
            code = max(code, exit_code(error.diagnostics))
    typer.echo(json.dumps({"save_path": [str(p) for number in sorted(written) for p in written[number]]}))
    raise typer.Exit(code)


def result_folders(sources: Sequence[Path], save_path: Path) -> list[Path]:
    """``SAVE_PATH/STEM`` of each file; of several with one stem the later ones are numbered: ``STEM-2``."""
    stems = [source.stem for source in sources]
    taken: set[str] = set()
    names: list[str] = []
    for stem in stems:
        number, name = 1, stem
        # also where only the case differs: some file systems see no difference
        while name.casefold() in taken or (number > 1 and name in stems):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return [save_path / name for name in names]


def plan_job(job: Job) -> Answer:
    """What a worker does: plan one file, and hand back what is to be written for it."""
    from .plan import planned, why_infeasible

    plan, files = planned(job.loaded, job.options)
    return Answer(files, () if plan.feasible else tuple(why_infeasible(plan)))


def _answers(
    sources: Sequence[Path], options: Mapping[str, Any], executor: Executor[Job, Answer], pack: Pack | None
) -> Generator[tuple[int, Answer], None, None]:
    """Number and answer of each file, as they come; one that cannot be read needs no worker."""
    from ..driver import load
    from ..plan.sweep import sweep

    unread: list[tuple[int, Answer]] = []

    def jobs() -> Iterator[tuple[int, Job]]:
        for number, source in enumerate(sources):
            try:
                if source.is_dir():
                    raise _empty(source)
                yield number, Job(load(source, knowledge=pack), options)
            except DiagnosticError as error:
                unread.append((number, Answer({}, error.diagnostics, error.texts)))

    with closing(sweep(jobs(), executor)) as outcomes:
        for number, outcome in outcomes:
            yield number, _answer(outcome)
            yield from unread
            unread.clear()
    yield from unread


def _pack(path: Path | None) -> Pack | None:
    """The knowledge pack, read once for all files."""
    if path is None:
        return None
    from ..knowledge.pack import load_pack

    return load_pack(path)


def _answer(outcome: Done[Answer] | Failed) -> Answer:
    from ..plan.sweep import Failed

    if not isinstance(outcome, Failed):
        return outcome.result
    lost = Diagnostic(
        "PD605",
        f"not planned: {outcome.reason}",
        expected="a worker that plans the file to its end",
        help="plan this file alone; where memory is short, with fewer --workers",
    )
    return Answer(diagnostics=(lost,))


def _write(answer: Answer, folder: Path) -> tuple[Answer, tuple[Path, ...]]:
    """Write an answer's files; one that cannot be written is an answer of its own."""
    from ..plan.write import write_files

    try:
        return answer, write_files(answer.files, folder) if answer.files else ()
    except DiagnosticError as error:
        return replace(answer, diagnostics=(*answer.diagnostics, *error.diagnostics)), ()


def _tell(what: str, answer: Answer) -> None:
    errors = sum(d.is_error for d in answer.diagnostics)
    said = f"{errors} error{'s' if errors > 1 else ''}" if errors else "planned"
    typer.echo(f"{what}: {said}", err=True)
    if answer.diagnostics:
        typer.echo(render_diagnostics(answer.diagnostics, answer.texts), err=True)


def _executor(where: Where, workers: int | None, files: int) -> Executor[Job, Answer]:
    if where is Where.RAY:
        from ..plan._ray import RayExecutor

        return RayExecutor(plan_job, workers)
    from ..plan._local import LocalExecutor, cores

    return LocalExecutor(plan_job, min(workers or cores(), files))


def _sources(files: Sequence[Path]) -> list[Path]:
    """The files meant, each once: a folder stands for those in it that can be planned, by name.

    One without any is kept, to be told as what cannot be read.
    """
    found: list[Path] = []
    for file in files:
        inside: list[Path] = []
        if file.is_dir():
            with suppress(OSError):
                inside = sorted(p for p in file.iterdir() if _is_planned(p))
        found += inside or [file]
    return list(dict.fromkeys(found))


def _empty(folder: Path) -> DiagnosticError:
    kinds = ", ".join(sorted(_SUFFIXES))
    return DiagnosticError(
        [
            Diagnostic(
                "PD001",
                f"`{folder}` has no file to plan, or cannot be read",
                expected=f"files that end in {kinds}",
                help="give files, or a folder that holds them itself: folders in it are not looked into",
            )
        ]
    )


def _is_planned(path: Path) -> bool:
    """Whether a file in a folder is meant. A model's config in JSON may lie beside the files that name it."""
    suffix = path.suffix.lower()
    if path.name.startswith(".") or suffix not in _SUFFIXES or not path.is_file():
        return False
    if suffix != ".json":
        return True
    try:
        with path.open("rb") as file:
            start = file.read(_SNIFFED)
    except OSError:
        return True  # to be told that it cannot be read
    return all(key in start for key in _CONDITION_KEYS) and b'"schema"' not in start[:200]
