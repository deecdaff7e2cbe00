"""All strategies of a phase, legal and fitting, with what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from ..spec.strategy import Phase
from .evaluate import Evaluator
from .layouts import Layouts
from .legality import layout_faults, schedule_faults
from .packs import refused_layouts, refused_schedules
from .phase import Needs, PhaseCosts
from .question import Progress, Question
from .result import PhaseCounts
from .space import Candidates, prompt_schedules, schedules, stage_layouts, turn_schedules
from .table import PhaseTable, first_fault

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

AT_ONCE = 1 << 17
"""Strategies of a phase that are evaluated at once; of more, those in chunks come later."""


class Tabulator:
    """Makes the tables of a question's phases.

    Args:
        question: What is asked.
        progress: Told what is being done.
    """

    def __init__(self, question: Question, progress: Progress) -> None:
        self.question, self.progress = question, progress
        self.capacity = question.capacity
        self._known: dict[tuple[Phase, int, int], Ints] = {}

    def table(self, phase: Phase) -> PhaseTable:
        """All strategies of a phase that are legal and whose weights and caches fit, not yet evaluated."""
        q = self.question
        model, prompt = q.spec.model, q.spec.workload.input
        layouts = stage_layouts(model, phase, q.ranks)
        faults = layout_faults(layouts, model, phase, prompt)
        own = refused_layouts(q.spec, phase, layouts)
        faults = {"law": ~q.law.fits(layouts), **own, **faults}
        legal, blamed = first_fault(faults, len(layouts))
        tried, staged = self._tried(layouts, phase)
        pruned = {code: int(tried[mask].sum()) for code, mask in blamed.items() if mask.any()}
        if int(tried[legal].sum()) > int(staged[legal].sum()):
            pruned["PD216"] = int(tried[legal].sum()) - int(staged[legal].sum())
        evaluator = Evaluator(model, q.hardware, phase, prompt, layouts[legal])
        costs = PhaseCosts(evaluator, q.context)
        candidates = self._candidates(costs, phase, self.capacity)
        fine, blamed = first_fault(self._faults(costs, candidates), len(candidates))
        for code, mask in blamed.items():
            if mask.any():
                pruned[code] = pruned.get(code, 0) + int(mask.sum())
        candidates = candidates[fine]
        counts = PhaseCounts(int(tried.sum()), pruned)
        counts = replace(counts, memory=counts.considered - sum(pruned.values()) - len(candidates))
        least = costs.least(candidates, q.kept(phase)[0])
        fits = least <= q.hardware.memory
        counts = replace(counts, memory=counts.memory + int((~fits).sum()))
        smallest = candidates[[int(least.argmin())]] if len(candidates) else self._smallest(costs, phase)
        evaluator.keep(np.unique(np.concatenate([candidates.layout[fits], smallest.layout])))
        zero = np.zeros(0)
        return PhaseTable(
            phase=phase, costs=costs, candidates=candidates[:0], seconds=zero, each=zero, spread=zero,
            needs=_NOTHING, alone=_NOTHING, transfer=zero, counts=counts, pending=candidates[fits], smallest=smallest,
        )  # fmt: skip

    def evaluated(self, table: PhaseTable, *, chunked: bool) -> PhaseTable:
        """The table with its pending strategies evaluated, without chunks first; few are all evaluated at once."""
        q, left = self.question, table.pending.chunk > 0
        if len(left) <= AT_ONCE or chunked:
            left = np.zeros(len(left), dtype=bool)
        candidates, costs, work = table.pending[~left], table.costs, q.spec.workload
        if not len(candidates):
            return table
        self.progress(f"{table.phase}: {len(candidates):,} strategies" + (" in chunks" if chunked else ""))
        longest = work.sequence[1] if work.sequence else None
        times = (2, 1) if q.continuous and table.phase == "prefill" else (1, 1)
        alone, needs = costs.needs(candidates, q.kept(table.phase), longest, times)
        fits = np.minimum(alone.longest, needs.longest) <= self.capacity
        lost = int((~fits).sum())
        candidates, alone, needs = candidates[fits], alone[fits], needs[fits]
        seconds, busy, spread = costs.seconds(candidates)
        limit = q.limit(table.phase)
        late = int((seconds > limit).sum()) if limit is not None else 0
        counts = replace(
            table.counts,
            memory=table.counts.memory + lost,
            evaluated=table.counts.evaluated + len(candidates),
            sla=table.counts.sla + late,
        )
        return replace(
            table,
            candidates=Candidates.joined((table.candidates, candidates)),
            seconds=np.concatenate([table.seconds, seconds]),
            each=np.concatenate([table.each, busy / np.maximum(1, candidates.batch)]),
            spread=np.concatenate([table.spread, spread]),
            needs=Needs.joined((table.needs, needs)),
            alone=Needs.joined((table.alone, alone)),
            transfer=np.concatenate([table.transfer, costs.transfer(candidates)]),
            counts=counts,
            pending=table.pending[left],
        )

    def nearest(self, tables: Mapping[Phase, PhaseTable]) -> dict[Phase, PhaseTable]:
        """Tables of the strategies that need least memory, evaluated as if they fitted."""
        self.capacity = np.inf
        found = {}
        for phase, table in tables.items():
            single = replace(
                table, candidates=table.candidates[:0], seconds=np.zeros(0), each=np.zeros(0), spread=np.zeros(0),
                needs=table.needs[:0], alone=table.alone[:0], transfer=np.zeros(0), pending=table.smallest,
            )  # fmt: skip
            found[phase] = self.evaluated(single, chunked=True)
        return found

    def _faults(self, costs: PhaseCosts, candidates: Candidates) -> dict[str, NDArray[np.bool_]]:
        """Rule code or place in the pack to the strategies of legal layouts that break it."""
        spec, phase, layouts = self.question.spec, costs.evaluator.phase, costs.layouts[candidates.layout]
        names = ("pp", "batch", "microbatches", "chunk")
        columns = {name: getattr(candidates, name) for name in names}
        faults = schedule_faults(layouts, spec.model, phase, costs.prompt, columns)
        del columns["batch"]
        return {**faults, **refused_schedules(spec, phase, layouts, **columns)}

    def _smallest(self, costs: PhaseCosts, phase: Phase) -> Candidates:
        """The strategy with the least weights and cache where no GPU holds those of any."""
        candidates = self._candidates(costs, phase, np.inf)
        candidates = candidates[first_fault(self._faults(costs, candidates), len(candidates))[0]]
        if len(candidates):
            candidates = candidates[[int(costs.least(candidates, self.question.kept(phase)[0]).argmin())]]
        return candidates

    def _replica_batches(self, replicas: int) -> tuple[int, ...]:
        """Sequences that a replica may hold with up to so many replicas; powers of two where the batch is searched."""
        q = self.question
        if q.spec.workload.batch is None:
            return tuple(b for b in q.batches if b & (b - 1) == 0)
        return tuple(sorted({-(-batch // dp) for batch in q.batches for dp in range(1, min(replicas, batch) + 1)}))

    def _schedules(self, phase: Phase, pp: int, replicas: int) -> Ints:
        """[3, schedules] of a replica of ``pp`` stages, of which there may be so many; see :func:`.space.schedules`."""
        q = self.question
        # Of a continuous batch a replica knows nothing of the others, and prompts nothing of the stages.
        key = (phase, 0 if q.continuous and phase == "prefill" else pp, 0 if q.continuous else replicas)
        if key not in self._known:
            prompt = q.spec.workload.input
            if not q.continuous:
                found = schedules(pp, self._replica_batches(replicas), phase, prompt, q.bounds)
            elif phase == "prefill":
                found = prompt_schedules(q.prompts, prompt, q.bounds)
            else:
                found = turn_schedules(q.batches, pp)
            self._known[key] = found
        return self._known[key]

    def _tried(self, layouts: Layouts, phase: Phase) -> tuple[Ints, Ints]:
        """Strategies that each layout stands for: all, and those with a layer for every stage."""
        q = self.question
        layers = q.spec.model.layers.count
        counts = np.zeros((2, int(layouts.ranks.max(initial=0)) + 1), dtype=np.int64)
        for ranks in np.unique(layouts.ranks).tolist():
            most = q.gpus // ranks
            each = [self._schedules(phase, pp, most // pp).shape[1] for pp in range(1, most + 1)]
            counts[:, ranks] = sum(each), sum(each[:layers])
        every, staged = counts[:, layouts.ranks]
        return every, staged

    def _candidates(self, costs: PhaseCosts, phase: Phase, capacity: float) -> Candidates:
        """Strategies of legal layouts whose weights fit."""
        q, ranks = self.question, costs.layouts.ranks
        parts: list[Ints] = [np.zeros((5, 0), dtype=np.int64)]
        for pp in range(1, min(q.gpus // int(ranks.min(initial=1)), q.spec.model.layers.count) + 1):
            fitting = np.flatnonzero((costs.weights(pp).max(axis=0) <= capacity) & (ranks * pp <= q.gpus))
            # Of a continuous batch a replica knows nothing of the others.
            replicas = np.zeros_like(fitting) if q.continuous else q.gpus // (ranks[fitting] * pp)
            for most in np.unique(replicas).tolist():
                mine = fitting[replicas == most]
                table = self._schedules(phase, pp, most)
                count = table.shape[1]
                first = np.stack([np.repeat(mine, count), np.full(count * len(mine), pp)])
                parts.append(np.concatenate([first, np.tile(table, len(mine))]))
        columns = np.concatenate(parts, axis=1)
        # Small stages first: of strategies that cost the same the first is taken.
        return Candidates(*columns[:, np.argsort(ranks[columns[0]], kind="stable")])


_NOTHING = Needs(*(np.zeros(0) for _ in fields(Needs)))
