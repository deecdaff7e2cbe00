"""Every shipped example computes what its model computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from paradag import verify
from paradag.compiler.build import phase_mesh
from paradag.compiler.driver import load
from paradag.compiler.run.report import Verification
from paradag.compiler.run.shrink import MAX_RANKS

FILES = sorted((Path(__file__).resolve().parents[2] / "ir_examples").glob("*.strat"))

FEW_RANKS = 32
"""Ranks of a phase up to which an example takes a second."""
FEWER_RANKS = 16
"""Ranks that show what a larger example does: its degrees shrink, its axes stay."""


def ranks_of(path: Path) -> int:
    """Ranks of a replica of the larger phase."""
    spec = load(path).spec
    return max(phase_mesh(spec, s.phase).replica_ranks for s in spec.strategies)


SMALL = [f for f in FILES if ranks_of(f) <= FEW_RANKS]
LARGE = [f for f in FILES if f not in SMALL]


def is_right(found: Verification, ranks: int) -> bool:
    """Whether an example ran on so many ranks, in prefill and four decode steps, and gave the model's numbers."""
    assert max(p.ranks for p in found.phases.values()) == ranks
    for phase, report in found.phases.items():
        assert report.max_error < 1e-12 and report.kernel_error < 1e-12
        assert report.steps == (4 if phase == "decode" else 1)
        assert report.ops == report.calls * report.ranks / max(1, _stages(found, phase))
        assert bool(report.traffic) == (report.ranks > 1)
    assert {c.name for c in found.shrunk} >= {"model.hidden", "workload.input"}
    return found.equal


def _stages(found: Verification, phase: str) -> int:
    """Ranks execute only the nodes of their own stage."""
    stages = [c.after for c in found.shrunk if c.name == f"{phase}.stages"]
    return len(stages[0].split()) if stages else 1


@pytest.mark.parametrize("path", SMALL, ids=lambda p: p.stem)
def test_an_example_is_equal_to_its_model(path: Path) -> None:
    assert is_right(verify(path), ranks_of(path))


@pytest.mark.parametrize("path", LARGE, ids=lambda p: p.stem)
def test_a_large_example_on_fewer_ranks_is_equal_to_its_model(path: Path) -> None:
    found = verify(path, max_ranks=FEWER_RANKS)
    assert is_right(found, max(p.ranks for p in found.phases.values()))
    assert all(1 < p.ranks <= FEWER_RANKS for p in found.phases.values())


@pytest.mark.slow
@pytest.mark.parametrize("path", LARGE, ids=lambda p: p.stem)
def test_a_large_example_is_equal_to_its_model_on_all_its_ranks(path: Path) -> None:
    assert ranks_of(path) <= MAX_RANKS, "its degrees would shrink"
    assert is_right(verify(path), ranks_of(path))


def test_all_examples_are_covered() -> None:
    assert len(SMALL) >= 12 and len(LARGE) >= 4 and {*SMALL, *LARGE} == {*FILES}
