"""Random legal strategies compute what their models compute."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from paradag.compiler.run.shrink import shrink
from paradag.compiler.spec import Spec
from paradag.compiler.verification import execute
from paradag.passes.validation import stage_layers
from paradag.tests.strategies import small_specs


@settings(max_examples=5, suppress_health_check=list(HealthCheck))
@given(small_specs())
def test_a_random_strategy_is_equal_to_its_model(spec: Spec) -> None:
    small, changes = shrink(spec, {s.phase: stage_layers(spec, s.phase) for s in spec.strategies})
    assert not [c for c in changes if c.name.startswith("model.")], "it is small already"
    found = execute(small, steps=2)
    assert found.equal, found.to_json()
