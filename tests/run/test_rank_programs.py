"""What each rank's process runs, on threads: the same numbers and bytes as all ranks in one loop, and no deadlock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings

from paradag import DiagnosticError, verify
from paradag.compiler.build import phase_mesh
from paradag.compiler.ir.ops import OPERATORS
from paradag.compiler.ir.ops.communication import Resharding
from paradag.compiler.run.collectives import is_collective
from paradag.compiler.run.report import PhaseReport
from paradag.compiler.run.shrink import shrink
from paradag.compiler.run.torch_engine import TorchEngine, moves
from paradag.compiler.spec import Spec
from paradag.compiler.verification import execute
from paradag.passes.validation import stage_layers
from paradag.tests.passes.validation import damage as d
from paradag.tests.run.builds import DENSE, LATENT, MOE, WINDOWED, spec_of
from paradag.tests.run.threads import thread_engine
from paradag.tests.strategies import small_specs

STRATEGIES = {
    "all-reduce and all-gather": (DENSE, "strategy { tp 4 }"),
    "tokens cut over TP": (DENSE, "strategy prefill { sp tp -> tp 4 }  strategy decode { tp 4 }"),
    "keys gathered over SP": (WINDOWED, "strategy prefill { sp 2 -> tp 2 }  strategy decode { tp 4 }"),
    "sends forward and back": (DENSE, "strategy { pp 2 -> tp 2  microbatches 2 }"),
    "chunks": (DENSE, "strategy prefill { pp 2 -> tp 2  microbatches 2  chunk 8 }  strategy decode { pp 2 -> tp 2 }"),
    "dispatch and combine": (MOE, "strategy { ep 4 -> tp 2 }"),
    "experts cut inside": (MOE, "strategy { ep 2 { etp 2 } -> tp 4 }"),
    "pools of their own": (
        LATENT,
        "strategy prefill { pp 2 -> tp 2  pools separate }  strategy decode { tp 2  pools separate }",
    ),
    "cache moves in one pool": (DENSE, "strategy prefill { tp 4 }  strategy decode { pp 2 -> tp 2 }"),
    "ring": (WINDOWED, "strategy prefill { sp 4 kind ring -> tp 2 }  strategy decode { tp 4 }"),
    "ulysses": (DENSE, "strategy prefill { sp 2 kind ulysses -> tp 2 }  strategy decode { tp 4 }"),
    "eight ranks": (MOE, "strategy prefill { ep 8 -> tp 2 }  strategy decode { ep 8 -> tp 4 }"),
}


def assert_alike(found: PhaseReport, expected: PhaseReport) -> None:
    """Two engines' reports on one phase say the same."""
    assert found.equal == expected.equal and found.fault == expected.fault
    assert (found.calls, found.ops, found.ranks) == (expected.calls, expected.ops, expected.ranks)
    for row, other in zip(found.traffic, expected.traffic, strict=True):
        assert row.sent == pytest.approx(other.sent, rel=1e-12)
        assert replace(row, sent=0.0) == replace(other, sent=0.0)


def assert_equal_on(engine: TorchEngine, spec: Spec) -> None:
    """A random strategy, made small enough for an engine's processes, computes what its model computes."""
    stages = {s.phase: stage_layers(spec, s.phase) for s in spec.strategies}
    small = shrink(spec, stages, engine.processes // 2)[0]
    assume(sum(phase_mesh(small, s.phase).replica_ranks for s in small.strategies) <= engine.processes)
    found = execute(small, steps=2, engine=engine)
    assert found.equal, found.to_json()


def test_every_resharding_operator_has_an_entry() -> None:
    """A new one needs one, in both tables."""
    names = {name for name, rule in OPERATORS.items() if isinstance(rule, Resharding)}
    assert set(moves.MOVES) == names == {name for name in OPERATORS if is_collective(name)}


@pytest.mark.parametrize("name, batch", [*((name, 7) for name in STRATEGIES), ("dispatch and combine", 8)])
def test_ranks_by_themselves_do_what_they_do_together(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an uneven batch the shards of the members differ in size."""
    spec = spec_of(*STRATEGIES[name], batch=batch, prompt=9)
    found, together = execute(spec, steps=2, engine=thread_engine(monkeypatch)), execute(spec, steps=2)
    for phase, report in found.phases.items():
        assert report.equal and report.max_error < 1e-12, report
        assert_alike(report, together.phases[phase])


@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(spec=small_specs())
def test_random_strategies_do_not_deadlock(spec: Spec) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert_equal_on(thread_engine(patch), spec)


@pytest.mark.parametrize(
    "node, says",
    [("o_out.all_reduce", ""), ("boundary.send", "nobody sent"), ("boundary.recv", "does not hold")],
)
def test_a_damaged_graph_differs_or_stops(node: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(DENSE, "strategy { pp 2 -> tp 2 }")
    block, name = node.split(".", 1) if node.startswith("boundary") else ("dense_layer", node)
    change = {"prefill": lambda graph: d.bypass(graph, block, name)}
    found = execute(spec, change=change, engine=thread_engine(monkeypatch)).phases["prefill"]  # type: ignore[arg-type]
    assert not found.equal and says in found.fault and bool(found.fault) == bool(says)


def test_processes_of_all_phases_are_counted_together() -> None:
    text = "strategy prefill { tp 2  pools separate }  strategy decode { tp 2  pools separate }"
    spec = spec_of(DENSE, text)
    with pytest.raises(DiagnosticError, match=r"PD306: .* one of 4 ranks"):
        verify(spec, engine="torch", max_ranks=3)


def test_an_engine_that_is_none() -> None:
    with pytest.raises(DiagnosticError, match="PD016"):
        verify(spec_of(DENSE, "strategy { }"), engine="abacus")  # type: ignore[arg-type]
