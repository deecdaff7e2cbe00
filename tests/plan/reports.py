"""Small plans whose reports the tests read."""

from __future__ import annotations

from functools import cache

import paradag
from paradag.compiler.plan import Bounds, Plan
from paradag.compiler.plan.report import Facts, Sensitivity, analyse_sensitivity, gather
from paradag.compiler.spec import LoadedSpec

from .conditions import MLA, MOE, condition

BOUNDS = Bounds(microbatches=4, trips=4, least_chunk=64)

CONDITIONS: dict[str, LoadedSpec] = {
    "chosen": condition(MOE, gpus="2 of 2", work="batch 8 input 512 tokens output 64 tokens  require ttft <= 100 ms"),
    "decode_only": condition(MLA, gpus="1 of 4", work="batch 4 input 64 tokens output 8 tokens  mode decode"),
    "infeasible": condition(MOE, gpus="1 of 2", work="batch 8 input 512 tokens output 64 tokens  require tpot <= 1 us"),
    "too_large": condition(MOE, gpus="1 of 1", work="batch 4096 input 512 tokens output 64 tokens"),
}


@cache
def planned(name: str) -> Plan:
    return paradag.plan(CONDITIONS[name], bounds=BOUNDS)


@cache
def moved(name: str) -> Sensitivity:
    return analyse_sensitivity(planned(name), CONDITIONS[name], bounds=BOUNDS)


@cache
def facts(name: str, *, sensitivity: bool = False) -> Facts:
    return gather(planned(name), CONDITIONS[name], moved(name) if sensitivity else Sensitivity())
