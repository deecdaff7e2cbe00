"""From a file to a compiled result: load, check, build, lower, verify, analyse. Nothing here prints or writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..grammar import load_file, load_text
from ..grammar.expert_load import load_expert_load
from ..passes.analysis import PhaseAnalysis, TransferPlan, analyse_phase, plan_transfer
from ..passes.analysis.load import mixed_assumptions, under_load
from ..passes.analysis.memory import weight_bytes
from ..passes.compiled import Compiled, PassRecord
from ..passes.lowering import lowering_sequence
from ..passes.manager import GraphPass, PassManager, Scheduled, arrange
from ..passes.plugins import load_passes
from ..passes.validation import check_spec, stage_layers
from ..passes.validation.fixes import Fixed, as_repaired, fix_spec, over_memory
from ..passes.validation.results import result_findings
from .build import (
    batch_items,
    build_graph,
    cache_tokens,
    cached_sequences,
    decode_context,
    needs_transfer,
    pools_separate,
    two_layouts,
)
from .cost import Hardware, resolve_hardware
from .diagnostics import Diagnostic, DiagnosticError, Fix, Outcome
from .ir.graph import LEVELS, Graph, Phase
from .knowledge.pack import load_pack
from .spec import Assumption, LoadedSpec, Pack, Spec
from .spec.expert_load import ExpertLoad
from .spec.inheritance import Library
from .spec.pack import graded
from .spec.pack_law import stated

if TYPE_CHECKING:
    from .plan import Bounds, Law, Objective, Plan, Progress

Source = str | Path | LoadedSpec | Spec

Knowledge = str | Path | Pack
"""A knowledge pack, or its path."""

MAX_STEPS = 100_000
"""Decode steps that may be asked for; how many a graph can hold depends on its size (PD306)."""


def load(source: Source, *, knowledge: Knowledge | None = None) -> LoadedSpec:
    """The spec of a file (a path), of strategy text (a string with a ``{``), or of a spec itself.

    Args:
        source: Path, strategy text, or spec.
        knowledge: The pack that it is judged by, here and in whatever is done with the result.

    Raises:
        DiagnosticError: every error of the pack, else of the input.
    """
    pack = load_pack(knowledge) if isinstance(knowledge, (str, Path)) else knowledge
    if isinstance(source, LoadedSpec):
        loaded = source
    elif isinstance(source, Spec):
        loaded = LoadedSpec(source)
    elif isinstance(source, str) and "{" in source:
        loaded = load_text(source, pack=pack)
    else:
        loaded = load_file(Path(source), pack)
    return loaded if pack is None else _under(loaded, pack)


def _under(loaded: LoadedSpec, pack: Pack) -> LoadedSpec:
    """The spec judged by a pack."""
    spec = loaded.spec.model_copy(update={"pack": pack})
    return replace(loaded, spec=spec, diagnostics=tuple(graded(loaded.diagnostics, pack)))


def check(source: Source, *, knowledge: Knowledge | None = None) -> tuple[Diagnostic, ...]:
    """All findings on a spec: legality, memory, requirements, advice. Repairs nothing; empty where all is well."""
    try:
        return compile(source, fix=False, knowledge=knowledge).diagnostics
    except DiagnosticError as error:
        return error.diagnostics


def compile(
    source: Source,
    *,
    phase: Literal["prefill", "decode", "all"] = "all",
    steps: int = 1,
    passes: Sequence[str | GraphPass | Scheduled] = (),
    print_after: Iterable[str] = (),
    expand_ranks: bool = False,
    name: str | None = None,
    fix: bool = True,
    fix_workload: bool = False,
    knowledge: Knowledge | None = None,
    calibration: Library | None = None,
) -> Compiled:
    """Compile a strategy into explicit prefill and decode DAGs.

    Args:
        source: Path, strategy text, or spec.
        phase: Which phases; a phase without a strategy is left out with a note.
        steps: Decode steps in the chain.
        passes: Users' passes: ``--pass`` specifications, pass objects (run after ``tp``) or :class:`Scheduled`.
        print_after: Names of passes whose result is printed into ``dumps`` (``build`` for the logical graph).
        expand_ranks: One flat node per rank instead of one per TP group.
        name: Name of the outputs; default the file's stem.
        fix: Whether an illegal strategy is repaired where a repair is safe; what was wrong is then told as warnings.
        fix_workload: Whether a repair may reduce the batch, where nothing else makes the work fit.
        knowledge: A knowledge pack, which replaces what the knowledge base says.
        calibration: Fitted figures of kernels (:func:`~.cost.load_calibration`); default those that paradag ships.

    Returns:
        The result; with errors its status is REJECTED and it has no phases.

    Raises:
        DiagnosticError: the input does not load, or a pass cannot be found or fails.
    """
    loaded = load(source, knowledge=knowledge)
    stem = name or (
        Path(source).stem if not isinstance(source, (LoadedSpec, Spec)) and "{" not in str(source) else "strategy"
    )
    scheduled, dumped = _scheduled(passes), tuple(print_after)

    def attempt(spec: LoadedSpec) -> Compiled:
        checked, found = check_spec(spec)
        diagnostics = (*spec.diagnostics, *found, *_steps_findings(steps))
        result = Compiled(stem, checked.spec, Outcome.REJECTED, diagnostics, (), spec.assumptions, texts=spec.texts)
        if any(d.is_error for d in diagnostics):
            return result
        return _compile_phases(
            result, checked, phase, steps, scheduled, dumped, expand_ranks, repairs=fix, calibration=calibration
        )

    result = attempt(loaded)
    if not fix or result.status is not Outcome.REJECTED or _steps_findings(steps):
        return result
    wanted: tuple[Phase, ...] = ("prefill", "decode") if phase == "all" else (phase,)
    fixed = fix_spec(loaded, memory=_memory_check(loaded, wanted), workload=fix_workload)
    if fixed.outcome is Outcome.FIXED:
        again = attempt(fixed.loaded)
        if again.status is not Outcome.REJECTED:
            repaired = tuple(as_repaired(d, fixed.fixes) for d in result.diagnostics if d.is_error)
            diagnostics = (*repaired, *again.diagnostics)
            fixes = (*fixed.fixes, *again.fixes)
            return replace(again, status=Outcome.FIXED, fixes=fixes, diagnostics=diagnostics)
    return replace(result, diagnostics=_with_proposals(result.diagnostics, fixed))


def _memory_check(
    loaded: LoadedSpec, wanted: Iterable[Phase] = ("prefill", "decode")
) -> Callable[[Spec], tuple[Phase, ...]] | None:
    """What a repair asks of memory; nothing where a pack has made less than an error of it."""
    bent = loaded.pack is not None and "PD301" in loaded.pack.severities
    return None if bent else over_memory(wanted)


def fix(source: Source, *, workload: bool = False, knowledge: Knowledge | None = None) -> Fixed:
    """The smallest safe change of a file that makes its strategies legal, memory included. Nothing is written.

    Args:
        source: Path, strategy text, or spec.
        workload: Whether the batch may be reduced, where nothing else makes the work fit.
        knowledge: A knowledge pack.

    Raises:
        DiagnosticError: the input does not load.
    """
    loaded = load(source, knowledge=knowledge)
    fixed = fix_spec(loaded, memory=_memory_check(loaded), workload=workload, tidy=True)
    if fixed.outcome is Outcome.VALID:
        return fixed
    found = fixed.diagnostics
    if not any(d.is_error for d in check_spec(loaded)[1]):
        # Only building tells how much memory a legal strategy lacks.
        found = compile(loaded, fix=False).diagnostics
    if fixed.outcome is Outcome.REJECTED:
        return replace(fixed, diagnostics=_with_proposals(found, fixed))
    return replace(fixed, repaired=(*fixed.repaired, *(as_repaired(d, fixed.fixes) for d in found if d.is_error)))


def plan(
    source: Source,
    objective: Objective | None = None,
    *,
    top: int = 5,
    max_gpus: int | None = None,
    law: Law | None = None,
    bounds: Bounds | None = None,
    progress: Progress | None = None,
    knowledge: Knowledge | None = None,
    expert_load: str | Path | ExpertLoad | None = None,
) -> Plan:
    """The best strategies for a deployment condition; see :func:`paradag.compiler.plan.find_plan`.

    Args:
        source: Path, strategy text, or spec; strategies in it are not looked at.
        objective: latency, throughput or balanced; default throughput where TTFT is required, else latency.
        top: How many deployments are compared.
        max_gpus: Most GPUs; default the cluster's, with `nodes any` a stated bound.
        law: The GPU-count law, where another one holds.
        bounds: Where the search of schedules stops.
        progress: Told what is being done.
        knowledge: A knowledge pack.
        expert_load: Measured load of the experts, or the path of its file (docs/plan.md).

    Raises:
        DiagnosticError: the input or the expert load does not load, or lacks a figure.
    """
    from .plan import find_plan
    from .plan.experts import with_load

    told = progress or (lambda what: None)
    loaded = load(source, knowledge=knowledge)
    if isinstance(expert_load, (str, Path)):
        expert_load = load_expert_load(Path(expert_load), loaded.spec.model)
    plan = find_plan(loaded, objective, top=top, max_gpus=max_gpus, law=law, bounds=bounds, progress=told)
    if expert_load is None:
        return plan
    told("experts to ranks")
    return with_load(plan, loaded.spec, expert_load)


def _with_proposals(diagnostics: tuple[Diagnostic, ...], fixed: Fixed) -> tuple[Diagnostic, ...]:
    """Diagnostics with the repair that only the user can allow, in the help of the first error that it is about."""
    errors = [d for d in diagnostics if d.is_error]
    if not fixed.proposals or not errors:
        return diagnostics
    told = next((d for d in errors if d.code == "PD301"), errors[0])
    proposed = ", ".join(f"`{f.after}`" for f in fixed.proposals)
    help_ = f"{told.help}; or let `--fix-workload` write {proposed}"
    return tuple(replace(d, help=help_) if d is told else d for d in diagnostics)


def _steps_findings(steps: int) -> tuple[Diagnostic, ...]:
    if 1 <= steps <= MAX_STEPS:
        return ()
    return (
        Diagnostic("PD015", f"{steps} decode steps", expected=f"1 to {MAX_STEPS}", help="give --steps in that range"),
    )


def _scheduled(passes: Sequence[str | GraphPass | Scheduled]) -> list[Scheduled]:
    result: list[Scheduled] = []
    for given in passes:
        if isinstance(given, Scheduled):
            result.append(given)
        elif isinstance(given, str):
            result += load_passes([given])
        else:
            result.append(Scheduled(given))
    return result


def _compile_phases(
    result: Compiled,
    loaded: LoadedSpec,
    phase: str,
    steps: int,
    extra: list[Scheduled],
    print_after: tuple[str, ...],
    expand_ranks: bool,
    *,
    repairs: bool,
    calibration: Library | None,
) -> Compiled:
    spec = loaded.spec
    hardware, assumed = resolve_hardware(spec.cluster, spec.model.dtype, pack=spec.pack, calibration=calibration)
    running: list[Phase] = [s.phase for s in spec.strategies if _in_mode(spec, s.phase)]
    wanted = [p for p in running if phase in ("all", p)]
    graphs: dict[Phase, Graph] = {}
    dumps: dict[tuple[Phase, str], str] = {}
    records: list[PassRecord] = []
    fixes: list[Fix] = []
    findings: list[Diagnostic] = []
    # Where prompts take turns with decodes, the figures of one phase hang on the other.
    for each in running if wanted and spec.workload.mode == "mixed" else wanted:
        manager = PassManager(arrange(lowering_passes(spec, each), extra), print_after=print_after, repairs=repairs)
        run = manager.run(build_graph(spec, each, result.name, steps))
        graphs[each] = run.graph
        fixes += run.fixes
        findings += run.diagnostics
        dumps.update({(each, pass_name): text for pass_name, text in run.dumps.items()})
        records += run.records
    _known_passes(print_after, extra)
    transfer = _plan_transfer(spec, graphs, result.name)
    analysed = {p: _analyse(spec, g, graphs, hardware, expand_ranks, transfer) for p, g in graphs.items()}
    loaded_phases = under_load(analysed, spec.workload, separate=pools_separate(spec))
    phases = {p: analysis for p, analysis in loaded_phases.items() if p in wanted}
    findings = graded([*findings, *result_findings(loaded, phases)], spec.pack)
    rejected = any(d.is_error for d in findings)
    return replace(
        result,
        status=Outcome.REJECTED if rejected else Outcome.FIXED if fixes else Outcome.VALID,
        fixes=tuple(fixes),
        diagnostics=(*result.diagnostics, *findings),
        assumptions=(
            *result.assumptions,
            *stated(spec.pack),
            *assumed,
            *_dtype_notes(spec, hardware),
            *_workload_assumptions(spec, wanted),
        ),
        phases={} if rejected else phases,
        dumps=dumps,
        passes=tuple(records),
        transfer=None if rejected else transfer,
    )


def lowering_passes(spec: Spec, phase: Phase) -> list[GraphPass]:
    """The four lowering passes of a phase, in their fixed order."""
    return list(lowering_sequence(stage_layers(spec, phase)))


def _plan_transfer(spec: Spec, graphs: dict[Phase, Graph], name: str) -> TransferPlan | None:
    """How the KV cache moves between the phases; a phase that was not asked for is lowered to know its layout."""
    if not graphs or not needs_transfer(spec):
        return None
    phases: tuple[Phase, Phase] = ("prefill", "decode")
    prefill, decode = (
        graphs.get(p) or PassManager(lowering_passes(spec, p)).run(build_graph(spec, p, name)).graph for p in phases
    )
    whole = replace(prefill, items=batch_items(spec, "prefill"))
    return plan_transfer(whole, decode, spec.workload.batch)


def _known_passes(print_after: tuple[str, ...], extra: list[Scheduled]) -> None:
    known = ["build", *LEVELS[1:], *(s.graph_pass.name for s in extra)]
    unknown = [n for n in print_after if n not in known]
    if unknown:
        found = [
            Diagnostic("PD501", f"no pass {n!r} to print the IR after", expected=" | ".join(known)) for n in unknown
        ]
        raise DiagnosticError(found)


def _in_mode(spec: Spec, phase: Phase) -> bool:
    return spec.workload.mode in ("both", "mixed", phase)


def _analyse(
    spec: Spec,
    graph: Graph,
    graphs: dict[Phase, Graph],
    hardware: Hardware,
    expand_ranks: bool,
    transfer: TransferPlan | None,
) -> PhaseAnalysis:
    others = [g for p, g in graphs.items() if p != graph.phase]
    return analyse_phase(
        graph,
        hardware,
        cache_tokens(spec, graph.phase),
        other_weights=max(weight_bytes(others[0])) if others and two_layouts(spec) else 0.0,
        cached=cached_sequences(spec, graph.phase),
        expand_ranks=expand_ranks,
        transfer=transfer,
    )


def _dtype_notes(spec: Spec, hardware: Hardware) -> list[Assumption]:
    used = dict.fromkeys((spec.model.projection_dtype, spec.model.expert_dtype, spec.model.dtype))
    return [
        Assumption(f"{d} arithmetic", hardware.notes[d], "the accelerator has no such unit")
        for d in used
        if d in hardware.notes
    ]


def _workload_assumptions(spec: Spec, wanted: Sequence[Phase]) -> list[Assumption]:
    made: list[Assumption] = []
    if "decode" in wanted:
        made.append(
            Assumption(
                "decode context",
                f"{decode_context(spec)} tokens at the first step",
                "costs use input + output / 2, the middle of the generation; memory uses input + output",
            )
        )
    if spec.workload.mode == "mixed":
        made += mixed_assumptions(separate=pools_separate(spec))
    if spec.model.moe is not None:
        made.append(Assumption("expert load", "uniform", "no load given: every expert slot is equally likely"))
    prefill = spec.strategy("prefill")
    if "prefill" in wanted and prefill is not None and prefill.sp_kind in ("allgather", "ring"):
        made.append(Assumption("token order", "zig-zag", "causal work is balanced over the SP ranks"))
    if "prefill" in wanted and prefill is not None and prefill.sp_kind == "ring":
        made.append(Assumption("ring hops", "not overlapped", "a hop and the attention before it take turns on a GPU"))
    return made
