"""From a file to a compiled result: load, check, build, lower, verify, analyse. Nothing here prints or writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..grammar import load_file, load_text
from ..passes.analysis import PhaseAnalysis, analyse_phase
from ..passes.analysis.memory import weight_bytes
from ..passes.compiled import Compiled, PassRecord
from ..passes.lowering import LowerEp, LowerPp, LowerSp, LowerTp
from ..passes.manager import GraphPass, PassManager, Scheduled, arrange
from ..passes.plugins import load_passes
from ..passes.validation import check_spec, stage_layers
from ..passes.validation.results import memory_findings, requirement_findings
from .build import build_graph, phase_degrees, pools_separate
from .build.items import decode_context
from .cost import Hardware, resolve_hardware
from .diagnostics import Diagnostic, DiagnosticError, Outcome
from .ir.graph import LEVELS, Graph, Phase
from .spec import Assumption, LoadedSpec, Spec

Source = str | Path | LoadedSpec | Spec

MAX_STEPS = 100_000
"""Decode steps that may be asked for; how many a graph can hold depends on its size (PD306)."""


def load(source: Source) -> LoadedSpec:
    """The spec of a file (a path), of strategy text (a string with a ``{``), or of a spec itself.

    Raises:
        DiagnosticError: every error of the input.
    """
    if isinstance(source, LoadedSpec):
        return source
    if isinstance(source, Spec):
        return LoadedSpec(source)
    if isinstance(source, str) and "{" in source:
        return load_text(source)
    return load_file(Path(source))


def check(source: Source) -> tuple[Diagnostic, ...]:
    """All findings on a spec, without building anything; empty where there is nothing to say."""
    try:
        loaded = load(source)
    except DiagnosticError as error:
        return error.diagnostics
    _, found = check_spec(loaded)
    return (*loaded.diagnostics, *found)


def compile(
    source: Source,
    *,
    phase: Literal["prefill", "decode", "all"] = "all",
    steps: int = 1,
    passes: Sequence[str | GraphPass | Scheduled] = (),
    print_after: Iterable[str] = (),
    expand_ranks: bool = False,
    name: str | None = None,
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

    Returns:
        The result; with errors its status is REJECTED and it has no phases.

    Raises:
        DiagnosticError: the input does not load, or a pass cannot be found or fails.
    """
    loaded = load(source)
    name = name or (
        Path(source).stem if not isinstance(source, (LoadedSpec, Spec)) and "{" not in str(source) else "strategy"
    )
    checked, found = check_spec(loaded)
    diagnostics = (*loaded.diagnostics, *found, *_steps_findings(steps))
    result = Compiled(name, checked.spec, Outcome.REJECTED, diagnostics, (), loaded.assumptions, texts=loaded.texts)
    if any(d.is_error for d in diagnostics):
        return result
    return _compile_phases(result, checked, phase, steps, _scheduled(passes), tuple(print_after), expand_ranks)


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
) -> Compiled:
    spec = loaded.spec
    hardware, assumed = resolve_hardware(spec.cluster, spec.model.dtype)
    wanted: list[Phase] = [s.phase for s in spec.strategies if phase in ("all", s.phase) and _in_mode(spec, s.phase)]
    graphs: dict[Phase, Graph] = {}
    dumps: dict[tuple[Phase, str], str] = {}
    records: list[PassRecord] = []
    for each in wanted:
        manager = PassManager(arrange(lowering_passes(spec, each), extra), print_after=print_after)
        run = manager.run(build_graph(spec, each, result.name, steps))
        graphs[each] = run.graph
        dumps.update({(each, pass_name): text for pass_name, text in run.dumps.items()})
        records += run.records
    _known_passes(print_after, extra)
    phases = {p: _analyse(spec, g, graphs, hardware, expand_ranks) for p, g in graphs.items()}
    findings = (*memory_findings(loaded, phases), *requirement_findings(loaded, phases))
    rejected = any(d.is_error for d in findings)
    return replace(
        result,
        status=Outcome.REJECTED if rejected else Outcome.VALID,
        diagnostics=(*result.diagnostics, *findings),
        assumptions=(
            *result.assumptions,
            *assumed,
            *_dtype_notes(spec, hardware),
            *_workload_assumptions(spec, wanted),
        ),
        phases={} if rejected else phases,
        dumps=dumps,
        passes=tuple(records),
    )


def lowering_passes(spec: Spec, phase: Phase) -> list[GraphPass]:
    """The four lowering passes of a phase, in their fixed order."""
    return [LowerPp(stage_layers(spec, phase)), LowerSp(), LowerEp(), LowerTp()]


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
    spec: Spec, graph: Graph, graphs: dict[Phase, Graph], hardware: Hardware, expand_ranks: bool
) -> PhaseAnalysis:
    separate = pools_separate(spec)
    only_prompt = graph.phase == "prefill" and separate
    context = spec.workload.input + (0 if only_prompt else spec.workload.output)
    others = [g for p, g in graphs.items() if p != graph.phase]
    second_copy = 0.0
    if others and not separate and phase_degrees(spec, "prefill") != phase_degrees(spec, "decode"):
        second_copy = max(weight_bytes(others[0]))
    return analyse_phase(graph, hardware, context, other_weights=second_copy, expand_ranks=expand_ranks)


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
    if spec.model.moe is not None:
        made.append(Assumption("expert load", "uniform", "no load given: every expert slot is equally likely"))
    prefill = spec.strategy("prefill")
    if "prefill" in wanted and prefill is not None and prefill.degree("sp") > 1:
        made.append(Assumption("token order", "zig-zag", "causal work is balanced over the SP ranks"))
    return made
