"""Mutation proof of strategies: every damage is found by its rule before anything is built."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import Phase as Phases
from hypothesis import strategies as st

from paradag.compiler import driver
from paradag.compiler.diagnostics import Outcome
from paradag.compiler.ir.graph import Phase
from paradag.compiler.spec import LoadedSpec, Spec
from paradag.compiler.verification import verify
from paradag.passes.validation import check_spec
from paradag.passes.validation.fixes import fix_spec, over_memory
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


def is_fixed_and_right(case: Case) -> bool | None:
    """Whether the fixed strategy computes what its model computes; None where there is no fix."""
    fixed = fix_spec(LoadedSpec(case.harmed), memory=over_memory())
    return verify(fixed.loaded.spec, steps=2).equal if fixed.outcome is Outcome.FIXED else None


@pytest.mark.parametrize("name", [k.name for k in SPEC_KINDS if k.repaired])
@pytest.mark.parametrize("examples", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_fixed_strategy_computes_what_its_model_computes(name: str, examples: int) -> None:
    @settings(
        max_examples=examples, suppress_health_check=list(HealthCheck), derandomize=True, phases=[Phases.generate]
    )
    @given(damaged(KINDS[name]))
    def prove(case: Case) -> None:
        right = is_fixed_and_right(case)
        assume(right is not None)  # some models cannot be written in the strategy language, and so not fixed
        assert right

    prove()
