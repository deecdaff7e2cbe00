"""Deployments that work a batch off: all of it is prefilled, then all of it decodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..spec.strategy import Phase
from .joint import LAYERS, Options, Pairs, separate_pairs, shared_pairs, single_phase, until_interrupted
from .question import Progress, Question
from .replicas import Replicas, behind
from .table import PhaseTable

Ints = NDArray[np.int64]

OptionSets = list[dict[tuple[Phase, bool], Options]]
"""Per batch, the options by phase and whether pools are separate."""


def batch_deployments(
    question: Question,
    replicas: Replicas,
    tables: Mapping[Phase, PhaseTable],
    capacity: float,
    *,
    strict: bool,
    progress: Progress,
) -> tuple[Pairs, OptionSets, bool]:
    """Deployments of all batches, and whether all were made; ``options`` of the pairs numbers the option sets.

    Args:
        question: What is asked.
        replicas: What is known of strategies with replicas.
        tables: Strategies of the phases.
        capacity: Bytes of a GPU.
        strict: Leave out strategies that alone miss a required latency.
        progress: Told what is being done.
    """
    sets: OptionSets = []
    output = question.spec.workload.output

    def of(batch: int, mine: Mapping[tuple[Phase, bool], Options]) -> Iterator[Pairs]:
        if len(question.phases) == 1:
            phase = question.phases[0]
            yield single_phase(batch, mine[phase, False], phase, output, capacity, LAYERS)
            return
        yield shared_pairs(batch, output, mine["prefill", False], mine["decode", False], capacity, LAYERS)
        yield from _separate(question, tables["decode"], batch, mine["prefill", True], mine["decode", True], capacity)

    def parts() -> Iterator[Pairs]:
        for number, batch in enumerate(question.batches):
            progress(f"deployments of batch {batch}")
            sets.append(
                {
                    (p, s): _options(question, replicas, t, batch, separate=s, strict=strict)
                    for p, t in tables.items()
                    for s in (False, True)
                }
            )
            for made in of(batch, sets[-1]):
                yield replace(made, options=np.full(len(made), number))

    pairs, complete = until_interrupted(parts())
    return pairs, sets, complete


def _options(
    question: Question, replicas: Replicas, table: PhaseTable, batch: int, *, separate: bool, strict: bool
) -> Options:
    """Strategies of a phase with the replicas that share a batch; ``strict`` leaves out what is too slow."""
    mine = table.candidates.sharing(batch)
    dp = -(-batch // table.candidates.batch[mine])
    good = replicas.admitted(table, mine, dp, np.full(len(mine), batch))[0]
    latency = table.seconds[mine] + replicas.queue(table, mine, dp)
    limit = question.limit(table.phase) if strict else None
    if limit is not None:
        good &= latency <= limit
    # Of strategies that cost the same, the simplest comes first.
    several = replicas.complexity(table)[mine] + (dp > 1)
    order = np.flatnonzero(good)
    order = order[np.argsort(several[order], kind="stable")]
    found = replicas.options(table, mine[order], dp[order], separate=separate)
    need = found.need
    if len(question.phases) == 2:
        need = np.where(table.parts_sequences(found.strategy), found.moving, need)
    return replace(found, latency=latency[order], need=need, complexity=several[order])


def _separate(
    question: Question,
    table: PhaseTable,
    batch: int,
    prefill: Options,
    decode: Options,
    capacity: float,
) -> Iterator[Pairs]:
    """Deployments with pools of their own, by where decode's first GPU lies in its scale-up domain.

    What a pipeline sends between stages may cross domains or not, depending on that.
    """
    output, domain = question.spec.workload.output, question.hardware.domain
    for mine, latency in behind(table, decode.strategy, prefill.gpus, domain):
        there = replace(decode, latency=latency)
        pairs = separate_pairs(batch, output, prefill[mine], there, capacity, question.gpus, LAYERS)
        yield replace(pairs, prefill=mine[pairs.prefill])
