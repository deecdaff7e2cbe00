"""The strategies of a phase with what they cost, and how far the search goes where the file sets no bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from ..spec import Assumption, Spec
from ..spec.counts import kv_bytes_per_token, parameters
from ..spec.dtypes import dtype
from ..spec.strategy import Phase
from .layouts import ALLGATHER, Layouts
from .phase import Needs, PhaseCosts
from .result import PhaseCounts
from .space import Candidates

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

MOST_GPUS = 64
"""GPUs that `nodes any` is searched up to, unless asked otherwise or the weights need more."""

MOST_BATCH = 4096
"""Sequences in flight that are tried up to where the file gives no batch."""


@dataclass(frozen=True)
class PhaseTable:
    """Strategies of one phase that are legal and fit into memory, with what they cost.

    Attributes:
        phase: prefill or decode.
        costs: Where the figures come from.
        candidates: The strategies.
        seconds: TTFT or TPOT of each.
        needs: Memory of each, where the GPUs serve both phases.
        alone: Memory of each in a pool of its own.
        transfer: Seconds that the busiest rank sends the batch's caches, of each.
        counts: What became of all strategies.
        pending: Strategies that are not evaluated yet.
        smallest: The strategy that needs least memory, one entry; none where none is legal.
    """

    phase: Phase
    costs: PhaseCosts
    candidates: Candidates
    seconds: Floats
    needs: Needs
    alone: Needs
    transfer: Floats
    counts: PhaseCounts
    pending: Candidates
    smallest: Candidates


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


def gpus_searched(spec: Spec, memory: float, asked: int | None) -> tuple[int, list[Assumption]]:
    """Most GPUs that the search may use, and what was assumed for it.

    Args:
        spec: The request.
        memory: Bytes of a GPU.
        asked: Most GPUs that the user allows, if any.
    """
    cluster, model = spec.cluster, spec.model
    if cluster.gpus is not None:
        return (min(cluster.gpus, asked) if asked else cluster.gpus), []
    if asked:
        return asked, []
    least = parameters(model) * min(dtype(model.dtype).bytes, dtype(model.expert_dtype).bytes)
    nodes = ceil(2 * least / memory / cluster.gpus_per_node)
    bound = max(MOST_GPUS, nodes * cluster.gpus_per_node)
    return bound, [Assumption("GPUs searched", f"up to {bound}", "`nodes any` sets no limit; `--max-gpus` moves it")]


def batches_searched(spec: Spec, memory: float, gpus: int) -> tuple[tuple[int, ...], list[Assumption]]:
    """Batches that are tried, and what was assumed: the file's, or 1, 2, 3, 4, 6, 8, 12 ... as far as caches fit.

    Args:
        spec: The request.
        memory: Bytes of a GPU.
        gpus: Most GPUs.
    """
    work = spec.workload
    if work.batch is not None:
        return (work.batch,), []
    per_sequence = max(1, kv_bytes_per_token(spec.model)) * (work.input + work.output)
    most = max(1, min(MOST_BATCH, int(gpus * memory / per_sequence)))
    found = sorted({base << shift for base in (1, 3) for shift in range(14) if base << shift <= most})
    made = Assumption("batch", f"searched over {len(found)} sizes from 1 to {found[-1]}", "the file gives none")
    return tuple(found), [made]


def first_fault(faults: Mapping[str, NDArray[np.bool_]], count: int) -> tuple[Ints, dict[str, NDArray[np.bool_]]]:
    """Entries without a fault, and by rule those whose first fault it is."""
    left = np.ones(count, dtype=bool)
    blamed = {}
    for code, mask in faults.items():
        blamed[code] = mask & left
        left &= ~mask
    return np.flatnonzero(left), blamed
