"""The search: from a deployment condition to the best strategies."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from ..cost import Hardware
from ..spec import LoadedSpec
from .answer import answer
from .continuous import continuous_deployments
from .placement import placed
from .question import Progress, Question
from .replicas import Replicas
from .result import Objective, Plan
from .space import Bounds, Law
from .tabulate import Tabulator
from .whole_batch import batch_deployments


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
        KeyboardInterrupt: interrupted before there was any deployment; later the plan is the best so far.
    """
    with _uncollected():
        return _found(
            Question(
                loaded,
                objective,
                top=top,
                max_gpus=max_gpus,
                law=law,
                bounds=bounds,
                hardware=hardware,
                context=context,
            ),
            progress,
        )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of reference cycles: a search makes none, and collections would take a sixth of it."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


def _found(question: Question, progress: Progress) -> Plan:
    """The answer to a question; see :func:`find_plan`."""
    tabulator, replicas = Tabulator(question, progress), Replicas(question)
    tables = {phase: tabulator.table(phase) for phase in question.phases}
    complete = True
    for chunked in (False, True):
        for phase in question.phases:
            try:
                tables[phase] = tabulator.evaluated(tables[phase], chunked=chunked)
            except KeyboardInterrupt:
                # What is missing is told; without chunks there is an answer already.
                if not chunked:
                    raise
                complete = False
    made = continuous_deployments if question.continuous else batch_deployments
    find = partial(made, question, replicas, progress=progress)
    pairs, options, whole = find(tables, tabulator.capacity, strict=True)
    if not len(pairs):
        # Nothing meets the requirements: what comes closest?
        pairs, options, whole = find(tables, tabulator.capacity, strict=False)
    if not len(pairs) and all(len(table.smallest) for table in tables.values()):
        nearest = tabulator.nearest(tables)
        pairs, options, whole = find(nearest, tabulator.capacity, strict=False)
        return answer(question, nearest, pairs, options, complete=complete and whole, counts=tables)
    found = answer(question, tables, pairs, options, complete=complete and whole)
    try:
        progress("placement")
        return placed(found, question)
    except KeyboardInterrupt:
        return replace(found, complete=False)
