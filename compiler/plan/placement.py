"""Placement within the chosen degrees: which axis lies on which link, which layer on which stage.

The search puts axes in their usual order and splits layers evenly by bytes. For its best deployments the other orders
and the neighbouring splits are tried; what is better by the objective is written into the strategies, and the
deployments are ranked anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..spec import Assumption
from .answer import chosen_spec, distance
from .arrangement import Arranger
from .joint import Pairs, pareto, ranking
from .result import Deployment, Plan

if TYPE_CHECKING:
    from .question import Question

ARRANGED = 3
"""Deployments that are arranged, the best ones."""

NAME = "placement"
"""Name of the assumption that tells what was compared."""


def placed(plan: Plan, question: Question) -> Plan:
    """The plan with the best order of axes and split of layers in each of its best deployments, ranked anew.

    Args:
        plan: The answer of a search.
        question: What was asked.
    """
    began = time.perf_counter()
    arranger = Arranger(
        question.spec, question.hardware, plan.objective, continuous=question.continuous, context=question.context
    )
    improved = [*(arranger.improved(d) for d in plan.top[:ARRANGED]), *plan.top[ARRANGED:]]
    made = (*plan.assumptions, *_told(arranger.compared, improved, plan.top))
    if any(a is not b for a, b in zip(improved, plan.top, strict=True)):
        plan = _ranked(plan, improved, question)
    return replace(plan, assumptions=made, seconds=plan.seconds + time.perf_counter() - began)


def _told(compared: int, improved: Sequence[Deployment], before: Sequence[Deployment]) -> Iterator[Assumption]:
    """What was compared, where there was anything."""
    better = sum(a is not b for a, b in zip(improved, before, strict=True))
    if compared:
        yield Assumption(
            NAME,
            f"{compared} arrangements compared within the chosen degrees; better in {better} of "
            f"{min(ARRANGED, len(before))} deployments",
            "the search lays axes out as pp adp sp tp and balances stages by bytes; other orders of axes and "
            "neighbouring splits of layers are tried for its best deployments only",
        )


def _ranked(plan: Plan, improved: Sequence[Deployment], question: Question) -> Plan:
    """The plan with other deployments in the place of its best, the best first."""
    work, per_gpu = question.spec.workload, question.per_gpu
    output = work.output if "decode" in question.phases else work.input
    pairs = _pairs(improved)
    worst = np.array([max((m.factor for m in d.misses), default=1.0) for d in improved])
    feasible = np.flatnonzero(worst <= 1.0)
    order = feasible[ranking(pairs[feasible], plan.objective, per_gpu, output, work.rate)]
    if not len(feasible):
        order = ranking(pairs, plan.objective, per_gpu, output, work.rate)
        order = order[np.argsort(worst[order], kind="stable")]
    top = tuple(improved[i] for i in order.tolist())
    chosen = top[0] if len(feasible) else None
    # Frontier and best have deployments in common, which have to be the same ones still.
    now = dict(zip((_key(d) for d in plan.top), improved, strict=True))
    front = [now.get(_key(d), d) for d in plan.pareto]
    kept = pareto(_pairs(front), output) if front else ()
    return replace(
        plan,
        spec=chosen_spec(question.spec, chosen, continuous=question.continuous),
        chosen=chosen,
        top=top,
        pareto=tuple(front[int(i)] for i in kept),
        runner_up=distance(question, top) if chosen else None,
    )


def _key(deployment: Deployment) -> tuple[object, ...]:
    return deployment.strategies, deployment.separate, deployment.numbers.batch


def _pairs(deployments: Sequence[Deployment]) -> Pairs:
    """Deployments as columns; of equal ones the earlier is the simpler."""
    numbers = [d.numbers for d in deployments]
    count = len(numbers)
    return Pairs(
        options=np.zeros(count, dtype=np.int64),
        batch=np.array([n.batch for n in numbers]),
        separate=np.array([d.separate for d in deployments]),
        prefill=np.full(count, -1),
        decode=np.full(count, -1),
        gpus=np.array([n.gpus for n in numbers]),
        ttft=np.array([n.ttft_s or 0.0 for n in numbers]),
        tpot=np.array([n.tpot_s or 0.0 for n in numbers]),
        requests=np.array([n.requests_per_s for n in numbers]),
        transfer=np.array([n.kv_transfer_s for n in numbers]),
        complexity=np.arange(count),
    )
