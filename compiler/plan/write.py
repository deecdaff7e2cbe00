"""Writing a plan: the report, the strategies as `.strat` files that `compile` accepts and as JSON, the Pareto plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...grammar import print_spec
from ..build import needs_transfer, two_layouts
from ..diagnostics import Diagnostic, DiagnosticError
from ..emit import replacing
from ..spec import LoadedSpec, Spec
from ..spec.strategy import Phase
from .experts import as_searched
from .question import Progress
from .report import (
    PLOT,
    Sensitivity,
    analyse_sensitivity,
    document_text,
    expert_document,
    gather,
    pareto_svg,
    report_markdown,
    strategy_document,
)
from .result import Plan
from .space import Bounds, Law

REPORT = "parallel_strategy.md"
"""Name of the report's file."""

EXPERTS = "expert_placement.json"
"""Name of the file with the experts of each rank, where a load was given."""

STRATEGY_FILES = (
    *(f"{phase}{kind}" for phase in ("prefill", "decode") for kind in ("_strategy.json", ".strat")),
    EXPERTS,
)
"""Names of the files that tell the choice; a plan without a choice, or of one phase, has not all of them."""


def plan_files(
    plan: Plan,
    loaded: LoadedSpec,
    *,
    top: int = 5,
    max_gpus: int | None = None,
    law: Law | None = None,
    bounds: Bounds | None = None,
    progress: Progress | None = None,
    sensitivity: bool = True,
) -> dict[str, bytes]:
    """The report and the plot, and of each phase of the choice ``PHASE_strategy.json`` and ``PHASE.strat``.

    Without a choice there are the report and the plot of the closest deployments only.

    Args:
        plan: The answer.
        loaded: What was asked; as are ``top``, ``max_gpus``, ``law`` and ``bounds``.
        top: How many deployments are compared.
        max_gpus: Most GPUs.
        law: The GPU-count law.
        bounds: Where the search of schedules stops.
        progress: Told what is being done.
        sensitivity: Whether the search is made again with assumptions moved.

    Returns:
        Name to content: the same bytes for the same question.

    Raises:
        DiagnosticError: the rules find errors in the choice.
    """
    told = progress or (lambda what: None)
    moved = Sensitivity()
    if sensitivity:
        moved = analyse_sensitivity(
            as_searched(plan), loaded, top=top, max_gpus=max_gpus, law=law, bounds=bounds, progress=told
        )
    told("writing")
    facts = gather(plan, loaded, moved)
    if plan.chosen is not None and facts.errors:
        raise DiagnosticError(facts.errors)
    files = {REPORT: report_markdown(facts).encode()}
    if plan.chosen is not None:
        for strategy in plan.chosen.strategies:
            phase = strategy.phase
            files[f"{phase}_strategy.json"] = document_text(strategy_document(facts, phase))
            files[f"{phase}.strat"] = print_spec(phase_spec(facts.spec, phase)).encode()
    if plan.experts is not None and plan.experts.phases:
        files[EXPERTS] = document_text(expert_document(facts), indent=False)
    return {**files, PLOT: pareto_svg(plan)}


def write_files(files: Mapping[str, bytes], folder: Path) -> tuple[Path, ...]:
    """Write a plan's files, each complete or absent; the folder is made if missing.

    Strategy files of an earlier plan that would be read as this one's are taken away.

    Raises:
        DiagnosticError: PD601, folder or file not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in STRATEGY_FILES:
            if name not in files:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        message = f"cannot write to {folder}: {error.strerror or error}"
        raise DiagnosticError([Diagnostic("PD601", message, help="give another folder with --save-path")]) from error
    for name, content in files.items():
        with replacing(folder / name) as file:
            file.write(content)
    return tuple(folder / name for name in files)


def phase_spec(spec: Spec, phase: Phase) -> Spec:
    """The request with the strategy of one phase, and of the other where the phase would be another without it.

    Ranks of a pool follow from the other pool's, memory counts the weights of both layouts, the cache moves where it
    lies differently, and prompts and decodes that take turns wait for each other.
    """
    if len(spec.strategies) < 2 or spec.workload.mode == "mixed" or needs_transfer(spec) or two_layouts(spec):
        return spec
    return spec.model_copy(update={"strategies": tuple(s for s in spec.strategies if s.phase == phase)})
