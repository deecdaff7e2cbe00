"""Which repairs: fault by fault in the order of stages, each step judged anew, none kept that is not needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from itertools import islice

from ....compiler.spec import Spec
from ....compiler.spec.strategy import Phase
from .._case import Case
from . import _chain as chain
from . import _degrees as degrees
from . import _work as work
from ._faults import Fault, Judge, as_compiled, as_written
from ._steps import Candidate, Kind, Step, same, together, without_decode_sp

MAX_ROUNDS = 32
"""Steps that one spec may need; real ones need one to three."""

MAX_TRIED = 256
"""Candidates that are judged for one fault."""

MAX_BUILT = 64
"""The same where judging means building."""

MAX_CHAIN = 64
"""Terms of a chain that repairs look at; there are five dimensions."""

Repair = Callable[[Case], Iterator[Candidate]]

CHAIN_REPAIRS: Mapping[str, Repair] = {
    "PD011": chain.misplaced_option,
    "PD201": chain.unknown_dimension,
    "PD202": chain.inverted_nesting,
    "PD203": chain.given_twice,
    "PD204": chain.sp_in_decode,
    "PD209": chain.nothing_to_split,
    "PD223": chain.unknown_option,
}
"""Repairs that see the chain as written."""

REPAIRS: Mapping[str, Repair] = {
    **CHAIN_REPAIRS,
    "PD205": degrees.no_whole_groups,
    "PD206": degrees.no_whole_groups,
    "PD207": degrees.too_many_gpus,
    "PD211": degrees.shapes_do_not_divide,
    "PD212": degrees.shapes_do_not_divide,
    "PD224": degrees.kind_does_not_fit,
    "PD213": degrees.shapes_do_not_divide,
    "PD214": degrees.shapes_do_not_divide,
    "PD215": degrees.experts_not_divisible,
    "PD216": degrees.stages_do_not_match,
    "PD217": degrees.fewer_tokens_than_shards,
    "PD218": work.fewer_sequences_than_microbatches,
    "PD220": work.chunk_too_small,
    "PD301": work.over_memory,
    "PD306": work.too_many_items,
}
"""All repairs by the code that they answer. Each yields candidates, the most welcome first."""


class Search:
    """Looks for the steps that make one spec legal."""

    def __init__(self, judge: Judge, blocks: Mapping[Phase, tuple[Phase, ...]], *, workload: bool) -> None:
        self.judge = judge
        self.blocks = blocks
        self.workload = workload

    def run(self, spec: Spec) -> tuple[Step, ...] | None:
        """The steps, in the order in which they were found; None where nothing safe makes the spec legal."""
        if any(len(s.chain) > MAX_CHAIN for s in spec.strategies):
            return None
        seen = {_key(spec)}
        steps: list[Step] = []
        now = spec
        for _ in range(MAX_ROUNDS):
            if not self.judge.faults(now):
                return self._needed(spec, steps)
            step = self._next(now, seen)
            if step is None:
                return None
            steps.append(step)
            now = step.apply(now)
            seen.add(_key(now))
        return None

    def _next(self, spec: Spec, seen: set[object]) -> Step | None:
        """A step that takes one fault away: the first that brings no new kind of fault, else the first at all."""
        before = Counter(self.judge.faults(spec))
        for fault in before:
            fallback = None
            for step in islice(self._steps(spec, fault), MAX_BUILT if fault.code == "PD301" else MAX_TRIED):
                after_spec = step.apply(spec)
                if _key(after_spec) in seen:
                    continue
                after = Counter(self.judge.faults(after_spec))
                if after[fault] >= before[fault]:
                    continue
                if after <= before:
                    return step
                fallback = fallback or step
            if fallback is not None:
                return fallback
        return None

    def _steps(self, spec: Spec, fault: Fault) -> Iterator[Step]:
        repair = REPAIRS.get(fault.code)
        if repair is None:
            return
        # A fault of both pools together may be taken away in either.
        phases = (fault.phase,) if fault.phase and fault.code != "PD207" else tuple(s.phase for s in spec.strategies)
        if fault.phase:
            phases = tuple(sorted(phases, key=lambda p: p != fault.phase))
        for phase in phases:
            case = as_written(spec, phase) if fault.code in CHAIN_REPAIRS else as_compiled(spec, phase)
            for candidate in repair(case):
                yield self._step(fault.code, candidate, phase)
        if fault.code == "PD301" and self.workload:
            yield from self._less_work(spec, fault)

    def _step(self, rule: str, candidate: Candidate, phase: Phase) -> Step:
        phases = self.blocks[phase] if candidate.phases is None else candidate.phases
        shared = len(self.blocks[phase]) > 1
        change = together(candidate.change, without_decode_sp) if shared else candidate.change
        return Step(rule, candidate.kind, phases, change, candidate.batch)

    def _less_work(self, spec: Spec, fault: Fault) -> Iterator[Step]:
        """The largest batch whose cache and activations fit."""
        batch = spec.workload.batch or 1
        fits, too_many = 0, batch

        def step(value: int) -> Step:
            return Step(fault.code, Kind.WORKLOAD, (), same, value)

        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.judge.faults(step(middle).apply(spec)):
                too_many = middle
            else:
                fits = middle
        if fits:
            yield step(fits)

    def _needed(self, spec: Spec, steps: list[Step]) -> tuple[Step, ...]:
        """Without the steps that later ones made needless."""
        index = 0
        while len(steps) > 1 and index < len(steps):
            rest = [*steps[:index], *steps[index + 1 :]]
            if self.judge.faults(apply_all(rest, spec)):
                index += 1
            else:
                steps, index = rest, 0
        return tuple(steps)


def apply_all(steps: list[Step], spec: Spec) -> Spec:
    """The spec with all steps done."""
    return reduce(lambda s, step: step.apply(s), steps, spec)


def _key(spec: Spec) -> object:
    return spec.strategies, spec.workload
