"""Proof by execution: a strategy is lowered as in ``compile``, run on virtual ranks, and compared with its model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..passes.analysis import plan_transfer
from ..passes.analysis.unroll import unroll
from ..passes.manager import PassManager
from ..passes.validation import check_spec, stage_layers
from .build import build_graph, needs_transfer, phase_mesh
from .cost import resolve_hardware
from .diagnostics import Diagnostic, DiagnosticError
from .driver import Knowledge, Source, load, lowering_passes
from .ir.graph import Graph, Phase
from .run.charges import traffic_of
from .run.engine import Engine, EngineName, NumpyEngine
from .run.executor import Executor
from .run.handover import Handover, hand_over, in_order, pieces_of_prefill, pieces_of_reference, staying
from .run.records import Inputs, PhaseRun
from .run.report import Change, PhaseReport, Traffic, Verification
from .run.shrink import MAX_RANKS, shrink
from .run.store import Ref
from .run.story import Oracle, Story, batch_of, tell
from .run.torch_engine import MAX_PROCESSES, TorchEngine
from .spec import Spec, StrategySpec

STEPS = 4
"""Decode steps that are executed unless asked otherwise."""

MAX_RANKS_OF: Mapping[EngineName, int] = {"numpy": MAX_RANKS, "torch": MAX_PROCESSES}
"""Ranks of a phase, or processes of all phases, above which degrees shrink too, unless asked otherwise."""

Damage = Callable[[Graph], Graph]

_STOPS = (ValueError, LookupError)
"""What stops the execution of a wrong graph: a fault of its own, or arrays that do not fit one another."""


def verify(
    source: Source,
    *,
    steps: int = STEPS,
    max_ranks: int | None = None,
    seed: int = 0,
    name: str | None = None,
    engine: EngineName = "numpy",
    oracle: Oracle | None = None,
    knowledge: Knowledge | None = None,
) -> Verification:
    """Run a strategy's DAGs on virtual ranks and compare their logits with those of the undistributed model.

    Args:
        source: Path, strategy text, or spec.
        steps: Decode steps.
        max_ranks: Ranks of a phase above which degrees shrink too, or processes of all phases (512, or 8 processes).
        seed: First seed of the random weights and prompts to try.
        name: Name for the report; default the file's stem.
        engine: ``numpy`` runs all ranks in this process, ``torch`` each in one of its own.
        oracle: Model that stands for the one of the source, with its own weights and logits, and is not shrunk; see
            :class:`~paradag.compiler.run.huggingface.HuggingFace`.
        knowledge: A knowledge pack.

    Returns:
        The report; ``equal`` says whether all phases are.

    Raises:
        DiagnosticError: the input does not load, is not legal, has no strategy, or does not shrink enough; the engine
            is not there (PD504), or one of its processes ended (PD505).
    """
    began = time.perf_counter()
    loaded = load(source, knowledge=knowledge)
    written = loaded.spec.model
    if oracle is not None:
        loaded = replace(loaded, spec=loaded.spec.model_copy(update={"model": oracle.weights.model}))
    checked, found = check_spec(loaded)
    errors = [d for d in (*loaded.diagnostics, *found) if d.is_error]
    if errors:
        raise DiagnosticError(errors)
    if not phases_of(checked.spec):
        raise DiagnosticError([Diagnostic("PD013", "no strategy to verify", expected="a strategy block")])
    if engine not in MAX_RANKS_OF:
        raise DiagnosticError([Diagnostic("PD016", f"unknown engine `{engine}`", expected=" or ".join(MAX_RANKS_OF))])
    max_ranks = MAX_RANKS_OF[engine] if max_ranks is None else max_ranks
    if steps < 1 or max_ranks < 1:
        raise DiagnosticError([Diagnostic("PD015", f"{steps} steps on {max_ranks} ranks", expected="1 or more")])
    stages = {s.phase: stage_layers(checked.spec, s.phase) for s in checked.spec.strategies}
    small, changes = _small(checked.spec, stages, max_ranks, together=engine == "torch", whole=oracle is not None)
    if oracle is not None:
        changes = (Change("model", written.name, oracle.weights.model.name), *changes)
    if name is None:
        name = Path(source).stem if isinstance(source, (str, Path)) and "{" not in str(source) else "strategy"
    run = partial(execute, small, name=name, steps=steps, seed=seed, shrunk=changes, oracle=oracle, began=began)
    if engine == "numpy":
        return run()
    with TorchEngine(_ranks(small, together=True)) as processes:
        return run(engine=processes)


def _small(
    spec: Spec, stages: Mapping[Phase, Sequence[int]], max_ranks: int, *, together: bool, whole: bool
) -> tuple[Spec, tuple[Change, ...]]:
    """The spec shrunk until its ranks are few enough; ``together`` counts the ranks of all phases.

    ``whole`` leaves model and degrees as they are.
    """
    fewest = 0
    for limit in range(max_ranks, 0, -1) if together and not whole else (max_ranks,):
        small, changes = shrink(spec, stages, limit, whole=whole)
        ranks = _ranks(small, together=together)
        if ranks <= max_ranks:
            return small, changes
        fewest = min(fewest or ranks, ranks)
    message = f"no smaller strategy of this structure than one of {fewest:,} ranks"
    help_text = "allow more ranks (--max-ranks), which takes time and memory in proportion"
    raise DiagnosticError([Diagnostic("PD306", message, expected=f"at most {max_ranks:,}", help=help_text)])


def _ranks(spec: Spec, *, together: bool) -> int:
    """Ranks of the largest phase, or of all phases that run; in one pool they have the same."""
    if not together:
        return max(phase_mesh(spec, s.phase).replica_ranks for s in spec.strategies)
    meshes = [phase_mesh(spec, phase) for phase in phases_of(spec)]
    return len({r for m in meshes for stage in range(m.pp) for r in m.ranks(stage, {}, [a.name for a in m.axes])})


def execute(
    spec: Spec,
    *,
    name: str = "strategy",
    steps: int = STEPS,
    seed: int = 0,
    shrunk: tuple[Change, ...] = (),
    change: Mapping[Phase, Damage] | None = None,
    oracle: Oracle | None = None,
    engine: Engine | None = None,
    began: float | None = None,
) -> Verification:
    """Run a legal spec as it is, nothing shrunk.

    Args:
        spec: Legal spec of a model small enough to be run.
        name: Name for the report.
        steps: Decode steps.
        seed: First seed to try.
        shrunk: What was made smaller before.
        change: What is done to a lowered graph before it runs; the verifier does not see the result.
        oracle: Whose weights to load and whose logits to compare with; default the reference, with random weights.
        engine: What runs the ranks; default all in this process, in numpy.
        began: When the work began, as ``time.perf_counter`` tells.
    """
    began = time.perf_counter() if began is None else began
    if spec.workload.mode == "mixed":
        # Decode reads the caches of all prompts, so all micro-batches of them run, not the one that is costed.
        spec = spec.model_copy(update={"workload": spec.workload.model_copy(update={"mode": "both"})})
    story = tell(spec, steps, seed, oracle)
    engine = engine or NumpyEngine()
    session = _Session(spec, story, steps, dict(change or {}), engine)
    phases = session.run()
    return Verification(
        name=name,
        phases=phases,
        shrunk=shrunk,
        seed=story.seed,
        top_margin=story.top_margin,
        router_margin=story.router_margin,
        seconds=time.perf_counter() - began,
        engine=engine.name,
        backend=engine.backend,
        processes=engine.processes,
    )


def phases_of(spec: Spec) -> list[Phase]:
    """Phases that have a strategy and run in the workload's mode."""
    return [s.phase for s in spec.strategies if spec.workload.mode in ("both", "mixed", s.phase)]


# --- the phases -------------------------------------------------------------------------------------------------------


class _Session:
    """Both phases of a spec, one after the other."""

    def __init__(self, spec: Spec, story: Story, steps: int, change: dict[Phase, Damage], engine: Engine) -> None:
        self.spec = spec
        self.story = story
        self.steps = steps
        self.change = change
        self.engine = engine
        self.hardware, _ = resolve_hardware(spec.cluster, spec.model.dtype, pack=spec.pack)

    def run(self) -> dict[str, PhaseReport]:
        graphs = {p: self._lower(p) for p in phases_of(self.spec)}
        graphs |= {p: change(graphs[p]) for p, change in self.change.items()}
        reports: dict[str, PhaseReport] = {}
        prefill: Executor | None = None
        if (graph := graphs.get("prefill")) is not None:
            try:
                prefill = self._executor(graph, Inputs(prompts=self._prompts(graph)))
                reports["prefill"] = self._report(prefill, in_order(graph), 0)
            except _STOPS as stopped:
                reports["prefill"] = self._unrunnable(graph, stopped)
        if (graph := graphs.get("decode")) is not None:
            done = prefill if "prefill" in reports and not reports["prefill"].fault else None
            try:
                reports["decode"] = self._decode(graph, done)
            except _STOPS as stopped:
                reports["decode"] = self._unrunnable(graph, stopped)
        return reports

    def _unrunnable(self, graph: Graph, stopped: Exception) -> PhaseReport:
        """The report on a graph that does not unroll, or whose ranks cannot load their weights or their cache."""
        return PhaseReport(
            phase=graph.phase,
            ranks=graph.mesh.replica_ranks,
            steps=graph.steps,
            max_error=np.inf,
            tokens_equal=False,
            kernel_error=self._kernel_error(graph.phase),
            tolerance=self.story.tolerance,
            calls=0,
            ops=0,
            traffic=(),
            fault=f"{type(stopped).__name__}: {stopped}",
        )

    def _lower(self, phase: Phase) -> Graph:
        graph = build_graph(self.spec, phase, "verify", self.steps)
        return PassManager(lowering_passes(self.spec, phase)).run(graph).graph

    def _executor(self, graph: Graph, inputs: Inputs) -> Executor:
        return self.engine(unroll(graph), self.story.checkpoint, {}, inputs)

    def _prompts(self, graph: Graph) -> Callable[[int], np.ndarray]:
        seats = in_order(graph)
        return lambda item: self.story.prompts[seats[item]]

    def _decode(self, graph: Graph, prefill: Executor | None) -> PhaseReport:
        transfer = needs_transfer(self.spec)
        notes: list[str] = []
        if prefill is None:
            seats, pieces = in_order(graph), pieces_of_reference(self.story.cache)
            notes.append("the KV cache of the prompt comes from the reference: prefill was not executed")
        else:
            seats = in_order(graph) if transfer else staying(prefill.graph, graph)
            pieces = pieces_of_prefill(prefill, sent=transfer)
        given: dict[str, Handover] = {}
        inputs = Inputs(
            previous=lambda item: self.story.ids[0][seats[item]],
            received=lambda device, layer, item: given["all"].caches[device, layer, item],
        )
        run = self._executor(graph, inputs)
        devices = [[store.device for store in stage] for stage in run.stores]
        given["all"] = hand_over(graph, devices, pieces, seats, windowed=transfer)
        run.fetches = given["all"].fetches
        if not transfer:
            _seed_caches(run, given["all"])
        report = self._report(run, seats, 1, tuple(notes))
        if prefill is None:
            return report
        return _with_handover(report, given["all"], prefill.graph, graph, transfer)

    # --- comparison ---------------------------------------------------------------------------------------------------

    def _report(
        self, run: Executor, seats: Mapping[int, np.ndarray], first: int, notes: tuple[str, ...] = ()
    ) -> PhaseReport:
        """Execute and compare; ``first`` is the row of the reference's logits that step 0 must give."""
        graph, fault = run.graph, ""
        try:
            run.run()
        except _STOPS as stopped:
            fault = f"{type(stopped).__name__}: {stopped}"
        error, equal = _compare(run.run_result, seats, self.story, first, graph.steps)
        return PhaseReport(
            phase=graph.phase,
            ranks=graph.mesh.replica_ranks,
            steps=graph.steps,
            max_error=np.inf if fault else error,
            tokens_equal=equal and not fault,
            kernel_error=self._kernel_error(graph.phase),
            tolerance=self.story.tolerance,
            calls=run.run_result.calls,
            ops=run.run_result.ops,
            traffic=traffic_of(run, self.hardware),
            fault=fault,
            notes=notes,
        )

    def _kernel_error(self, phase: Phase) -> float:
        """Difference between the logical graph, run on one rank by the operators' kernels, and the reference."""
        alone = tuple(StrategySpec(phase=p) for p in phases_of(self.spec))
        workload = self.spec.workload.model_copy(update={"batch": batch_of(self.spec)})
        spec = self.spec.model_copy(update={"strategies": alone, "workload": workload})
        graph = build_graph(spec, phase, "logical", self.steps)
        seats = in_order(graph)
        inputs = Inputs(prompts=self._prompts(graph), previous=lambda item: self.story.ids[0][seats[item]])
        run = Executor(unroll(graph), self.story.checkpoint, {}, inputs)
        if phase == "decode":
            _seed_caches(run, hand_over(graph, [[0]], pieces_of_reference(self.story.cache), seats, windowed=False))
        run.run()
        return _compare(run.run_result, seats, self.story, int(phase == "decode"), graph.steps)[0]


def _seed_caches(run: Executor, given: Handover) -> None:
    """Put the caches into the stores as the version that the first step finds."""
    for block in run.graph.with_role("layer"):
        arg = next(a for a in block.args if a.carry == "version")
        for layer in block.layers:
            for store in run.stores[run.graph.stage_of_layer[layer]]:
                for item in range(len(run.graph.items)):
                    ref = Ref(block.name, arg.value.name, layer, item, -1)
                    store.put(ref, given.caches[store.device, layer, item], "kv_recv")


def _compare(
    result: PhaseRun, seats: Mapping[int, np.ndarray], story: Story, first: int, steps: int
) -> tuple[float, bool]:
    """(largest difference of a logit, whether all tokens are the reference's); no sequence may be missing."""
    worst, equal = 0.0, True
    seen = np.zeros((steps, len(story.prompts)), dtype=bool)
    for sample in result.sampled:
        rows = seats[sample.item][sample.rows]
        seen[sample.step, rows] = True
        expected = story.logits[first + sample.step, rows]
        if expected.shape != sample.logits.shape:
            return np.inf, False
        if len(rows):
            difference = float(np.abs(sample.logits - expected).max())
            worst = max(worst, difference if np.isfinite(difference) else np.inf)
            equal = equal and bool((sample.ids == story.ids[first + sample.step, rows]).all())
    return (worst, equal) if seen.all() else (np.inf, False)


def _with_handover(report: PhaseReport, given: Handover, prefill: Graph, decode: Graph, transfer: bool) -> PhaseReport:
    """The report with the bytes of the KV cache that moved between the phases."""
    if not transfer:
        if not given.moved:
            return report
        note = f"{given.moved:,.0f} bytes of KV cache changed their GPU between the phases without a node of the DAG"
        return replace(report, notes=(*report.notes, note))
    plan = plan_transfer(prefill, decode)
    agrees = bool(np.isclose(given.moved, plan.total_bytes, rtol=1e-9, atol=0.5))
    row = Traffic("KVTransfer", len(plan.of_layer) * len(decode.items), given.moved, plan.total_bytes, 0, False, agrees)
    return replace(report, traffic=(*report.traffic, row))
