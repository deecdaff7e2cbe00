"""The strategies of a phase with what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..spec.strategy import Phase
from .layouts import ALLGATHER, Layouts
from .phase import Needs, PhaseCosts
from .result import PhaseCounts
from .space import Candidates

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PhaseTable:
    """Strategies of one phase that are legal and fit into memory, with what they cost.

    Attributes:
        phase: prefill or decode.
        costs: Where the figures come from.
        candidates: The strategies.
        seconds: TTFT or TPOT of each.
        each: Seconds of the slowest stage or send that one sequence takes, of each; prefill.
        spread: By how much ``seconds`` of each may change with the number of the first GPU, at most; decode.
        needs: Memory of each, where the GPUs serve both phases.
        alone: Memory of each in a pool of its own. Of a continuous batch, prefill holds the caches of one step's
            prompts on shared GPUs and of two in a pool: one step's are made while those before are sent.
        transfer: Seconds that the busiest rank sends the batch's caches, of each.
        counts: What became of all strategies.
        pending: Strategies that are not evaluated yet.
        smallest: The strategy that needs least memory, one entry; none where none is legal.
    """

    phase: Phase
    costs: PhaseCosts
    candidates: Candidates
    seconds: Floats
    each: Floats
    spread: Floats
    needs: Needs
    alone: Needs
    transfer: Floats
    counts: PhaseCounts
    pending: Candidates
    smallest: Candidates

    def parts_sequences(self, mine: Ints) -> Bools:
        """Whether strategies cut sequences over ranks of their own: as decode never does, the cache then moves."""
        return np.asarray(self.costs.layouts.sp[self.candidates.layout[mine]] > 1)


def complexity(candidates: Candidates, layouts: Layouts) -> Ints:
    """How many ways of splitting each strategy of a replica uses: of equal ones the simplest is chosen.

    Args:
        candidates: The strategies.
        layouts: The layouts that they number.
    """
    degrees = (layouts.adp, layouts.sp, layouts.tp, layouts.edp, layouts.ep, layouts.etp)
    layout = sum((degree > 1).astype(np.int64) for degree in degrees) + (layouts.kind != ALLGATHER)
    schedule = (candidates.pp > 1) * 1 + (candidates.microbatches > 1) + (candidates.chunk > 0)
    return np.asarray(layout[candidates.layout] + schedule, dtype=np.int64)


def first_fault(faults: Mapping[str, NDArray[np.bool_]], count: int) -> tuple[Ints, dict[str, NDArray[np.bool_]]]:
    """Entries without a fault, and by rule those whose first fault it is."""
    left = np.ones(count, dtype=bool)
    blamed = {}
    for code, mask in faults.items():
        blamed[code] = mask & left
        left &= ~mask
    return np.flatnonzero(left), blamed
