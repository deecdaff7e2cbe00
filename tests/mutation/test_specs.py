"""Mutation proof of strategies: every damage is found by its rule before anything is built."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from paradag.compiler import driver
from paradag.compiler.ir.graph import Phase
from paradag.compiler.spec import LoadedSpec, Spec
from paradag.passes.validation import check_spec
from paradag.tests.mutation.damage import Damage, NoPlace
from paradag.tests.mutation.spec_kinds import SPEC_KINDS
from paradag.tests.strategies import small_specs

KINDS = {k.name: k for k in SPEC_KINDS}


@dataclass(frozen=True)
class Case:
    """A damaged spec."""

    kind: Damage[Spec]
    harmed: Spec


@st.composite
def damaged(draw: st.DrawFn, kind: Damage[Spec]) -> Case:
    """A random legal spec, damaged at a random place."""
    phases: tuple[Phase, ...] = (draw(st.sampled_from(kind.phases)),)
    spec = draw(small_specs(phases, kind.must))
    try:
        return Case(kind, kind.apply(spec, random.Random(draw(st.integers(0, 2**32)))))
    except NoPlace:
        assume(False)
        raise


def found_in(case: Case) -> set[str]:
    """Codes on checking a spec; where that finds no error, on compiling it."""
    found = check_spec(LoadedSpec(case.harmed))[1]
    if not case.kind.codes & {d.code for d in found} and not any(d.is_error for d in found):
        found = list(driver.compile(case.harmed).diagnostics)
    return {d.code for d in found}


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_found(name: str) -> None:
    @settings(max_examples=4, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(damaged(KINDS[name]))
    def prove(case: Case) -> None:
        found = found_in(case)
        assert case.kind.codes & found, f"found {sorted(found)}"

    prove()
