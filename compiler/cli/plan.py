"""``paradag plan``: the best strategies for a deployment condition."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..diagnostics import Diagnostic, Severity
from ._common import KnowledgeOption, OutputFormat, report, reporting
from .sweep import Where, run_sweep

if TYPE_CHECKING:
    from ..plan import Deployment, Miss, Plan, Progress
    from ..spec import LoadedSpec

_PATIENCE = 1.0
"""Seconds before a progress bar is shown."""


class Goal(StrEnum):
    """What is optimised."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    BALANCED = "balanced"


def plan_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Files, or folders of them; strategies in them are not looked at. Of several, each is planned on a "
            "worker, into SAVE_PATH/STEM.",
            metavar="FILE...",
        ),
    ],
    save_path: Annotated[Path, typer.Option("--save-path", help="Folder of the results; made if missing.")] = Path(),
    objective: Annotated[
        Goal | None,
        typer.Option("--objective", help="Default: throughput where the file requires a TTFT, else latency."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=1000, help="How many deployments are compared.")] = 5,
    max_gpus: Annotated[
        int | None, typer.Option("--max-gpus", min=1, max=4096, help="Most GPUs; default the cluster's.")
    ] = None,
    executor: Annotated[
        Where, typer.Option("--executor", help="Workers of several files: this machine's processes, or a Ray cluster.")
    ] = Where.LOCAL,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=4096, help="Most workers; default the cores.", metavar="N")
    ] = None,
    expert_load: Annotated[
        Path | None,
        typer.Option(
            "--expert-load",
            help="Measured load of the experts, CSV (layer,expert,load) or JSON: experts are replicated and dealt to "
            "ranks for it. For one FILE.",
            metavar="LOAD",
        ),
    ] = None,
    knowledge: KnowledgeOption = None,
) -> None:
    """Find the best parallel strategies of prefill and decode for a model, a cluster and a workload.

    Standard output is one JSON document with the files written. Exit code: 0 found, 1 nothing meets the requirements
    (then the closest are told) or errors in the file, 2 for an unreadable file; of several files the highest, and 130
    after Ctrl-C.
    """
    options: dict[str, Any] = {"objective": objective.value if objective else None, "top": top, "max_gpus": max_gpus}
    if len(files) > 1 or files[0].is_dir() or executor is Where.RAY:
        if expert_load is not None:
            raise typer.BadParameter("a load is that of one model: give one FILE, planned here")
        run_sweep(files, save_path, options, executor, workers, knowledge)
    with reporting(OutputFormat.TEXT):
        from ..driver import load
        from ..plan.write import write_files

        loaded = load(files[0], knowledge=knowledge)
        report((d for d in loaded.diagnostics if d.severity is Severity.WARNING), OutputFormat.TEXT, loaded.texts)
        with _screen() as screen:
            plan, contents = planned(
                loaded, {**options, "expert_load": expert_load}, screen.told, lambda p: screen.say(summary(p))
            )
        paths = write_files(contents, save_path)
    typer.echo(json.dumps({"save_path": [str(p) for p in paths]}))
    if not plan.feasible:
        report(why_infeasible(plan), OutputFormat.TEXT)
        raise typer.Exit(1)


def planned(
    loaded: LoadedSpec,
    options: Mapping[str, Any],
    progress: Progress | None = None,
    found: Callable[[Plan], None] = lambda plan: None,
) -> tuple[Plan, dict[str, bytes]]:
    """The plan of one file and the files that tell it, by name: all that a sweep's worker does, too.

    Args:
        loaded: What is asked.
        options: Of the search.
        progress: Told what is being done.
        found: Told the plan as soon as it is there, before its report is made.
    """
    from ..driver import plan as find
    from ..plan.write import plan_files

    plan = find(loaded, **options, progress=progress)
    found(plan)
    bounds = {name: value for name, value in options.items() if name not in ("objective", "expert_load")}
    return plan, plan_files(plan, loaded, **bounds, progress=progress)


class _Screen(NamedTuple):
    """Standard error: what is being done, and what is said."""

    told: Progress
    say: Callable[[str], None]


@contextmanager
def _screen() -> Iterator[_Screen]:
    """With a bar from the second second on; none where nobody looks."""
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Screen(lambda what: None, lambda text: typer.echo(text, err=True))
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    bar = Bar(*columns, console=console, transient=True)
    task = bar.add_task("searching", total=None)
    timer = Timer(_PATIENCE, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield _Screen(
            lambda what: bar.update(task, description=what),
            lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
        )
    finally:
        timer.cancel()
        timer.join()
        bar.stop()


def summary(plan: Plan) -> str:
    """The choice in a few lines, where there is one."""
    from ..plan.report import choice_lines

    considered = sum(c.considered for c in plan.counts.values())
    told = f"{plan.evaluated:,} of {considered:,} strategies evaluated in {plan.seconds:.2f} s"
    if not plan.complete:
        told = f"interrupted, the best so far: {told}"
    return "\n".join([*(choice_lines(plan.chosen) if plan.chosen is not None else ()), told])


_MISSED = {
    "memory": ("PD301", "memory of the fullest GPU", 1e9, "GB"),
    "ttft": ("PD302", "TTFT", 1.0, "s"),
    "tpot": ("PD303", "TPOT", 1e-3, "ms"),
    "throughput": ("PD304", "throughput", 1.0, "tokens/s"),
    "throughput_per_gpu": ("PD304", "throughput per GPU", 1.0, "tokens/s"),
    "rate": ("PD316", "served rate", 1.0, "requests/s"),
}
"""Constraint to code, name, and the unit in which it is told."""

_MORE = {"throughput_per_gpu": "a larger batch"}
"""What else than more GPUs meets a requirement."""


def why_infeasible(plan: Plan) -> list[Diagnostic]:
    """What the closest deployment misses, as errors."""
    if not plan.top:
        return [_nothing(plan)]
    closest = plan.top[0]
    return [_missed(miss, closest) for miss in closest.misses] or [_nothing(plan)]


def _missed(miss: Miss, closest: Deployment) -> Diagnostic:
    code, name, unit, shown = _MISSED[miss.constraint]
    bound = "at most" if miss.constraint in ("memory", "ttft", "tpot") else "at least"
    return Diagnostic(
        code,
        f"no strategy meets the requirements; the closest reaches a {name} of {_figure(miss.value / unit)} {shown} "
        f"on {closest.numbers.gpus} GPU{'s' * (closest.numbers.gpus > 1)} with a batch of {closest.numbers.batch}",
        expected=f"{bound} {_figure(miss.limit / unit)} {shown}",
        help=f"relax it by a factor of {miss.factor:.3g}, or give {_MORE.get(miss.constraint, 'more GPUs')}",
        severity=Severity.ERROR,
    )


def _figure(value: float) -> str:
    """Four digits, without an exponent for large figures."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _nothing(plan: Plan) -> Diagnostic:
    considered = sum(c.considered for c in plan.counts.values())
    return Diagnostic(
        "PD301",
        f"none of {considered:,} strategies is legal and fits into the GPUs' memory",
        expected="weights + KV cache + activations + communication buffers within each GPU's memory",
        help="give more GPUs, a smaller batch, or a narrower dtype or kv_dtype",
        severity=Severity.ERROR,
    )
