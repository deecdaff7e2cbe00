"""The search: from a deployment condition to the best strategies."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..build import decode_context
from ..cost import Hardware, resolve_hardware
from ..spec import Assumption, LoadedSpec
from ..spec.pack_law import stated
from ..spec.strategy import Phase
from .answer import answer
from .evaluate import Evaluator
from .joint import Options, Pairs, separate_pairs, shared_pairs, single_phase
from .layouts import Layouts
from .legality import layout_faults, schedule_faults
from .packs import counted_gpus, refused_layouts, refused_replicas, refused_schedules
from .phase import Needs, PhaseCosts
from .result import Objective, PhaseCounts, Plan
from .space import COARSE, FINE_GPUS, Bounds, Candidates, Law, schedules, stage_layouts
from .table import PhaseTable, batches_searched, complexity, first_fault, gpus_searched

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Progress = Callable[[str], None]
"""Told what is being done."""

LAYERS = 2
"""Strategies that more than so many others beat in everything are left out of deployments: enough for the two best."""


class Search:
    """One search; see :func:`find_plan`."""

    def __init__(
        self,
        loaded: LoadedSpec,
        objective: Objective | None,
        top: int,
        max_gpus: int | None,
        law: Law,
        bounds: Bounds | None,
        progress: Progress,
    ) -> None:
        self.loaded, self.spec = loaded, loaded.spec
        self.top, self.law, self.progress = top, law, progress
        self.began = time.perf_counter()
        self.hardware, assumed = resolve_hardware(self.spec.cluster, self.spec.model.dtype, pack=self.spec.pack)
        self.assumptions: list[Assumption] = [*loaded.assumptions, *assumed, *stated(self.spec.pack)]
        require = self.spec.workload.require
        self.context = decode_context(self.spec)
        self.objective: Objective = objective or ("latency" if require.ttft is None else "throughput")
        self._known: dict[tuple[Phase, int, int], Ints] = {}
        self._layouts: dict[tuple[str | int, ...], int] = {}
        self._numbered: dict[tuple[Phase, str], Ints] = {}
        self._offsets: dict[int, Floats] = {}
        self._complexities: dict[Phase, tuple[PhaseTable, Ints]] = {}
        self._columns: dict[Phase, tuple[PhaseTable, tuple[int, bool], dict[str, Any]]] = {}
        self._staged: tuple[Ints, Candidates] | None = None
        self.capacity = self.hardware.memory
        self.gpus, made = gpus_searched(self.spec, self.capacity, max_gpus)
        self.assumptions += made
        self.batches, made = batches_searched(self.spec, self.capacity, self.gpus)
        self.assumptions += made
        small = self.spec.workload.batch is not None and self.gpus <= FINE_GPUS
        self.bounds = bounds or (Bounds() if small else COARSE)
        mode = self.spec.workload.mode
        self.phases: tuple[Phase, ...] = tuple(p for p in ("prefill", "decode") if mode in ("both", "mixed", p))

    # --- one phase --------------------------------------------------------------------------------------------------

    def phase(self, phase: Phase) -> PhaseTable:
        """All strategies of a phase: legal, fitting, evaluated."""
        model, prompt = self.spec.model, self.spec.workload.input
        layouts = stage_layouts(model, phase, self.gpus)
        faults = layout_faults(layouts, model, phase, prompt)
        own = refused_layouts(self.spec, phase, layouts)
        faults = {"law": ~self.law.fits(layouts), **own, **faults}
        legal, blamed = first_fault(faults, len(layouts))
        tried, staged = self._tried(layouts, phase)
        pruned = {code: int(tried[mask].sum()) for code, mask in blamed.items() if mask.any()}
        if int(tried[legal].sum()) > int(staged[legal].sum()):
            pruned["PD216"] = int(tried[legal].sum()) - int(staged[legal].sum())
        evaluator = Evaluator(model, self.hardware, phase, prompt, layouts[legal])
        costs = PhaseCosts(evaluator, self.context)
        candidates = self._candidates(costs, phase, self.capacity)
        fine, blamed = first_fault(self._faults(costs, candidates), len(candidates))
        for code, mask in blamed.items():
            if mask.any():
                pruned[code] = pruned.get(code, 0) + int(mask.sum())
        candidates = candidates[fine]
        counts = PhaseCounts(int(tried.sum()), pruned)
        counts = replace(counts, memory=counts.considered - sum(pruned.values()) - len(candidates))
        nothing = Needs(*(np.zeros(0) for _ in fields(Needs)))
        empty = candidates[:0]
        least = costs.least(candidates, self._kept(phase)[0])
        fits = least <= self.hardware.memory
        counts = replace(counts, memory=counts.memory + int((~fits).sum()))
        smallest = candidates[[int(least.argmin())]] if len(candidates) else self._smallest(costs, phase)
        evaluator.keep(np.unique(np.concatenate([candidates.layout[fits], smallest.layout])))
        pending = candidates[fits]
        return PhaseTable(phase, costs, empty, np.zeros(0), nothing, nothing, np.zeros(0), counts, pending, smallest)

    def _faults(self, costs: PhaseCosts, candidates: Candidates) -> dict[str, NDArray[np.bool_]]:
        """Rule code or place in the pack to the strategies of legal layouts that break it."""
        phase, layouts = costs.evaluator.phase, costs.layouts[candidates.layout]
        names = ("pp", "batch", "microbatches", "chunk")
        columns = {name: getattr(candidates, name) for name in names}
        faults = schedule_faults(layouts, self.spec.model, phase, costs.prompt, columns)
        del columns["batch"]
        return {**faults, **refused_schedules(self.spec, phase, layouts, **columns)}

    def _smallest(self, costs: PhaseCosts, phase: Phase) -> Candidates:
        """The strategy with the least weights and cache where no GPU holds those of any."""
        candidates = self._candidates(costs, phase, np.inf)
        candidates = candidates[first_fault(self._faults(costs, candidates), len(candidates))[0]]
        if len(candidates):
            candidates = candidates[[int(costs.least(candidates, self._kept(phase)[0]).argmin())]]
        return candidates

    def nearest(self, tables: Mapping[Phase, PhaseTable]) -> dict[Phase, PhaseTable]:
        """Tables of the strategies that need least memory, evaluated as if they fitted."""
        self.capacity = np.inf
        found = {}
        for phase, table in tables.items():
            single = replace(
                table, candidates=table.candidates[:0], seconds=np.zeros(0), needs=table.needs[:0],
                alone=table.alone[:0], transfer=np.zeros(0), pending=table.smallest,
            )  # fmt: skip
            for chunked in (False, True):
                single = self.evaluated(single, chunked=chunked)
            found[phase] = single
        self._offsets.clear()
        self._staged = None
        return found

    def _kept(self, phase: Phase) -> tuple[int, int]:
        """Tokens per sequence that the cache holds: in a pool of its own, and on GPUs of both phases."""
        work = self.spec.workload
        both = work.input + work.output
        return (work.input if phase == "prefill" else both), both

    def evaluated(self, table: PhaseTable, *, chunked: bool) -> PhaseTable:
        """The table with its pending strategies evaluated, those with chunks or those without."""
        mine = (table.pending.chunk > 0) == chunked
        candidates, costs, work = table.pending[mine], table.costs, self.spec.workload
        if not len(candidates):
            return table
        self.progress(f"{table.phase}: {len(candidates):,} strategies" + (" in chunks" if chunked else ""))
        longest = work.sequence[1] if work.sequence else None
        alone, needs = costs.needs(candidates, self._kept(table.phase), longest)
        fits = alone.longest <= self.capacity
        lost = int((~fits).sum())
        candidates, alone, needs = candidates[fits], alone[fits], needs[fits]
        seconds = costs.seconds(candidates)
        limit = self.limit(table.phase)
        late = int((seconds > limit).sum()) if limit is not None else 0
        counts = replace(
            table.counts,
            memory=table.counts.memory + lost,
            evaluated=table.counts.evaluated + len(candidates),
            sla=table.counts.sla + late,
        )
        return replace(
            table,
            candidates=table.candidates.joined(candidates),
            seconds=np.concatenate([table.seconds, seconds]),
            needs=table.needs.joined(needs),
            alone=table.alone.joined(alone),
            transfer=np.concatenate([table.transfer, costs.transfer(candidates)]),
            counts=counts,
            pending=table.pending[~mine],
        )

    def _replica_batches(self, replicas: int) -> tuple[int, ...]:
        """Sequences that a replica may hold with up to so many replicas; powers of two where the batch is searched."""
        if self.spec.workload.batch is None:
            return tuple(b for b in self.batches if b & (b - 1) == 0)
        return tuple(sorted({-(-batch // dp) for batch in self.batches for dp in range(1, min(replicas, batch) + 1)}))

    def _schedules(self, phase: Phase, ranks: int, pp: int) -> Ints:
        """[3, schedules] of the replicas of ``pp`` stages of so many ranks; see :func:`.space.schedules`."""
        replicas = self.gpus // (ranks * pp)
        key = (phase, pp, replicas)
        if key not in self._known:
            batches = self._replica_batches(replicas)
            self._known[key] = schedules(pp, batches, phase, self.spec.workload.input, self.bounds)
        return self._known[key]

    def _tried(self, layouts: Layouts, phase: Phase) -> tuple[Ints, Ints]:
        """Strategies that each layout stands for: all, and those with a layer for every stage."""
        layers = self.spec.model.layers.count
        counts: dict[int, tuple[int, int]] = {}
        for ranks in np.unique(layouts.ranks).tolist():
            each = [self._schedules(phase, ranks, pp).shape[1] for pp in range(1, self.gpus // ranks + 1)]
            counts[ranks] = sum(each), sum(each[:layers])
        table = np.array([counts[r] for r in layouts.ranks.tolist()], dtype=np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def _candidates(self, costs: PhaseCosts, phase: Phase, capacity: float) -> Candidates:
        """Strategies of legal layouts whose weights fit."""
        layouts, model = costs.layouts, self.spec.model
        parts: list[Ints] = []
        for ranks in np.unique(layouts.ranks).tolist():
            mine = np.flatnonzero(layouts.ranks == ranks)
            for pp in range(1, min(self.gpus // ranks, model.layers.count) + 1):
                possible = mine[costs.weights(pp)[:, mine].max(axis=0) <= capacity]
                table = self._schedules(phase, ranks, pp)
                count = table.shape[1]
                parts.append(
                    np.stack(
                        [
                            np.repeat(possible, count),
                            np.full(count * len(possible), pp),
                            *(np.tile(row, len(possible)) for row in table),
                        ]
                    )
                )
        return Candidates(*np.concatenate(parts, axis=1))

    # --- both phases ------------------------------------------------------------------------------------------------

    def options(self, table: PhaseTable, batch: int, *, separate: bool, strict: bool) -> Options:
        """Strategies of a phase with the replicas that share a batch; ``strict`` leaves out what is too slow."""
        needs, common = table.alone if separate else table.needs, self._common(table, batch, strict=strict)
        mine = common["strategy"]
        return Options(**common, need=needs.longest[mine], moving=needs.moving[mine], weights=needs.weights[mine])

    def _common(self, table: PhaseTable, batch: int, *, strict: bool) -> dict[str, Any]:
        """Columns of :meth:`options` that are the same on shared GPUs and in pools; kept for the last batch."""
        key, known = (batch, strict), self._columns.get(table.phase)
        if known is not None and known[0] is table and known[1] == key:
            return known[2]
        candidates = table.candidates
        limit = self.limit(table.phase) if strict else None
        mine = candidates.sharing(batch)
        if limit is not None:
            mine = mine[table.seconds[mine] <= limit]
        dp, gpus, mine = self._admitted(table, mine, -(-batch // candidates.batch[mine]), batch)
        # Of strategies that cost the same, the simplest comes first.
        several = self._complexity(table)[mine] + (dp > 1)
        order = np.argsort(several.astype(np.int16), kind="stable")
        dp, gpus, mine, several = (column[order] for column in (dp, gpus, mine, several))
        layout, pp = candidates.layout[mine], candidates.pp[mine]
        codes = {n: self._code(dp, pp, self._numbers(table, n)[layout]) for n in ("layout", "cache")}
        columns = {"strategy": mine, "dp": dp, "gpus": gpus, "complexity": several, **codes,
                   "latency": table.seconds[mine], "transfer": table.transfer[mine]}  # fmt: skip
        self._columns[table.phase] = table, key, columns
        return columns

    def _admitted(self, table: PhaseTable, mine: Ints, dp: Ints, batch: int) -> tuple[Ints, Ints, Ints]:
        """Replicas, GPUs and numbers of those strategies that law and pack admit with so many replicas."""
        phase, some = table.phase, table.candidates[mine]
        here = table.costs.layouts[some.layout]
        if self.spec.pack is not None and self.spec.pack.law.gpus is not None:
            gpus = counted_gpus(self.spec, phase, here, pp=some.pp, dp=dp)
        else:
            gpus = self.law.gpus(dp, some.pp, here)
        good = gpus <= self.gpus
        columns = {"pp": some.pp, "microbatches": some.microbatches, "chunk": some.chunk}
        for refused in refused_replicas(self.spec, phase, here, **columns, dp=dp, batch=batch).values():
            good &= ~refused
        return dp[good], gpus[good], mine[good]

    def _complexity(self, table: PhaseTable) -> Ints:
        """Of all strategies of a phase; see :func:`.table.complexity`."""
        known = self._complexities.get(table.phase)
        if known is None or known[0] is not table:
            layouts = table.costs.layouts
            known = self._complexities[table.phase] = table, complexity(table.candidates, layouts)
        return known[1]

    def _code(self, dp: Ints, pp: Ints, layout: Ints) -> Ints:
        """One number per combination of replicas, stages and layout."""
        wide = self.gpus + 1
        return (layout * wide + dp) * wide + pp

    def _numbers(self, table: PhaseTable, kind: str) -> Ints:
        """A number of each layout, the same in both phases: of all its degrees, or of those that place the cache."""
        if (table.phase, kind) not in self._numbered:
            own = table.costs.layouts
            names = ("ranks", "sp", "tp", "ep", "etp", "megatron") if kind == "layout" else ("adp", "sp", "tp")
            rows = zip(*(getattr(own, name).tolist() for name in names), strict=True)
            numbers = [self._layouts.setdefault((kind, *row), len(self._layouts)) for row in rows]
            self._numbered[table.phase, kind] = np.array(numbers, dtype=np.int64)
        return self._numbered[table.phase, kind]

    def limit(self, phase: Phase) -> float | None:
        """Required TTFT or TPOT."""
        require = self.spec.workload.require
        return require.ttft if phase == "prefill" else require.tpot

    def pairs(
        self, tables: Mapping[Phase, PhaseTable], *, strict: bool
    ) -> tuple[Pairs, list[dict[tuple[Phase, bool], Options]]]:
        """Deployments of all batches; ``batch`` of the columns numbers the options.

        Args:
            tables: Strategies of the phases.
            strict: Leave out strategies that alone miss a required latency.
        """
        found: list[Pairs] = []
        options: list[dict[tuple[Phase, bool], Options]] = []
        output, capacity = self.spec.workload.output, self.capacity
        for number, batch in enumerate(self.batches):
            mine = {
                (p, s): self.options(t, batch, separate=s, strict=strict)
                for p, t in tables.items()
                for s in (False, True)
            }
            options.append(mine)
            if len(self.phases) == 1:
                phase = self.phases[0]
                made = [single_phase(batch, mine[phase, False], phase, output, capacity, LAYERS)]
            else:
                made = [
                    shared_pairs(batch, output, mine["prefill", False], mine["decode", False], capacity, LAYERS),
                    *self._separate(tables["decode"], number, mine["prefill", True], mine["decode", True]),
                ]
            found += [replace(p, batch=np.full(len(p), number)) for p in made]
        return Pairs.joined(found), options

    def _separate(self, table: PhaseTable, number: int, prefill: Options, decode: Options) -> list[Pairs]:
        """Deployments with pools of their own, by where decode's first GPU lies in its scale-up domain.

        What a pipeline sends between stages may cross domains or not, depending on that.
        """
        output, capacity, domain = self.spec.workload.output, self.capacity, self.hardware.domain
        pipelined = np.flatnonzero(table.candidates.pp[decode.strategy] > 1)
        offsets = prefill.gpus % domain if len(pipelined) else np.zeros_like(prefill.gpus)
        made = []
        for offset in np.unique(offsets).tolist():
            mine = np.flatnonzero(offsets == offset)
            moved = decode
            if offset:
                latency = decode.latency.copy()
                latency[pipelined] = self._seconds_at(table, offset)[decode.strategy[pipelined]]
                moved = replace(decode, latency=latency)
            pairs = separate_pairs(self.batches[number], output, prefill[mine], moved, capacity, self.gpus, LAYERS)
            made.append(replace(pairs, prefill=mine[pairs.prefill]))
        return made

    def _pipelined(self, table: PhaseTable) -> tuple[Ints, Candidates]:
        """Strategies of several stages: their numbers, and themselves."""
        if self._staged is None:
            index = np.flatnonzero(table.candidates.pp > 1)
            self._staged = index, table.candidates[index]
        return self._staged

    def _seconds_at(self, table: PhaseTable, offset: int) -> Floats:
        """Latency of all strategies of a phase whose first GPU is number ``offset`` of its domain."""
        if offset not in self._offsets:
            moved = table.seconds.copy()
            moved[self._pipelined(table)[0]] = table.costs.seconds(self._pipelined(table)[1], offset)
            self._offsets[offset] = moved
        return self._offsets[offset]


def find_plan(
    loaded: LoadedSpec,
    objective: Objective | None = None,
    *,
    top: int = 5,
    max_gpus: int | None = None,
    law: Law | None = None,
    bounds: Bounds | None = None,
    progress: Progress = lambda what: None,
    hardware: Hardware | None = None,
    context: int | None = None,
) -> Plan:
    """The best strategies for a deployment condition.

    Args:
        loaded: Model, cluster and workload; strategies that it has are not looked at.
        objective: latency, throughput or balanced; default throughput where TTFT is required, else latency.
        top: How many deployments are told.
        max_gpus: Most GPUs; default the cluster's, with `nodes any` a stated bound.
        law: The GPU-count law.
        bounds: Where the search of schedules stops.
        progress: Told what is being done.
        hardware: Figures to reckon with instead of the cluster's, to see what hangs on them.
        context: Tokens per sequence of the costed decode step instead of the usual middle of the generation.

    Raises:
        DiagnosticError: the cluster lacks a figure (PD013).
        KeyboardInterrupt: interrupted before there was any answer; later the plan is the best so far.
    """
    search = Search(loaded, objective, max(1, top), max_gpus, law or Law(), bounds, progress)
    search.hardware, search.context = hardware or search.hardware, context or search.context
    search.capacity = search.hardware.memory
    tables = {phase: search.phase(phase) for phase in search.phases}
    complete = True
    for chunked in (False, True):
        for phase in search.phases:
            try:
                tables[phase] = search.evaluated(tables[phase], chunked=chunked)
            except KeyboardInterrupt:
                # What is missing is told; without chunks there is an answer already.
                if not chunked:
                    raise
                complete = False
    pairs, options = search.pairs(tables, strict=True)
    if not len(pairs):
        # Nothing meets the requirements: what comes closest?
        pairs, options = search.pairs(tables, strict=False)
    if not len(pairs) and all(len(table.smallest) for table in tables.values()):
        nearest = search.nearest(tables)
        pairs, options = search.pairs(nearest, strict=False)
        return answer(search, nearest, pairs, options, complete=complete, counts=tables)
    return answer(search, tables, pairs, options, complete=complete)
