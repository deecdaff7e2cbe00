"""Lowered DAGs on virtual ranks that loaded a ``transformers`` model's weights give that model's logits.

Prefill, then decode steps from the cache; the model keeps its own. The benchmark ``huggingface`` runs every case in
both precisions; here the combinations run in float32 and the other degrees in float64.
"""

from __future__ import annotations

from itertools import product

import pytest

from paradag.compiler.verification import execute
from paradag.tests.hf.cases import COMBINATIONS, MODELS, MOE, OTHERS, STEPS, Case, cases, oracle, spec_of

TIGHT = {"float32": 2e-5, "float64": 1e-12}
"""Largest difference of a logit here: closer than what is accepted of models of any size."""

CASES = [(m, c) for m in MODELS for c in cases(m)]
WITH_EP = [c for c in COMBINATIONS if "EP" in c.name]


@pytest.mark.parametrize("model, case", CASES, ids=[f"{m}-{c.name}" for m, c in CASES])
def test_logits_are_the_models(model: str, case: Case) -> None:
    judge = oracle(model, "float32" if case in COMBINATIONS else "float64")
    spec, errors = spec_of(case, judge.spec)
    assert not errors
    found = execute(spec, steps=STEPS, oracle=judge)
    assert set(found.phases) == {"prefill", "decode"} and found.phases["decode"].steps == STEPS
    assert found.equal, found
    assert all(p.max_error < TIGHT[judge.precision] for p in found.phases.values())


@pytest.mark.parametrize("model", OTHERS)
def test_other_architectures(model: str) -> None:
    judge = oracle(model, "float64")
    case = next(c for c in COMBINATIONS if c.name == ("SP+EP+TP" if judge.spec.moe else "SP+TP"))
    spec, errors = spec_of(case, judge.spec)
    assert not errors
    assert execute(spec, steps=STEPS, oracle=judge).equal


@pytest.mark.parametrize("model", MODELS)
def test_the_precisions_differ_by_rounding_alone(model: str) -> None:
    double, single = oracle(model, "float64"), oracle(model, "float32")
    spec, _ = spec_of(COMBINATIONS[-1] if model in MOE else COMBINATIONS[2], double.spec)
    exact, rounded = (execute(spec, steps=STEPS, oracle=o) for o in (double, single))
    for phase in exact.phases:
        assert exact.phases[phase].max_error < 1e-13
        assert 1e-8 < rounded.phases[phase].max_error < 2e-5


@pytest.mark.parametrize("model, case", list(product(("Llama", "Qwen3"), WITH_EP)))
def test_expert_parallelism_needs_experts(model: str, case: Case) -> None:
    _, errors = spec_of(case, oracle(model, "float64").spec)
    assert {d.code for d in errors} == {"PD209"}
