"""Every shipped example computes what its model computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from paradag import verify

FILES = sorted((Path(__file__).resolve().parents[2] / "ir_examples").glob("*.strat"))
LARGE = [f for f in FILES if f.stem in {"deepseek-v3-decode-ep144", "deepseek-v3-decode-ep320",
                                        "deepseek-v3-disaggregated", "qwen3-235b-a22b-pp4-ep32-tp16"}]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_example_is_equal_to_its_model(path: Path) -> None:
    found = verify(path, max_ranks=32)
    assert found.equal, found
    assert found.seconds < 10
    for phase, report in found.phases.items():
        assert report.max_error < 1e-12 and report.kernel_error < 1e-12
        assert report.steps == (4 if phase == "decode" else 1)
        assert report.ops == report.calls * report.ranks / max(1, _stages(found, phase))
        assert bool(report.traffic) == (report.ranks > 1)
    assert {c.name for c in found.shrunk} >= {"model.hidden", "workload.batch", "workload.input"}


def _stages(found: object, phase: str) -> int:
    """Ranks execute only the nodes of their own stage."""
    stages = [c.after for c in found.shrunk if c.name == f"{phase}.stages"]  # type: ignore[attr-defined]
    return len(stages[0].split()) if stages else 1


def test_degrees_are_kept_where_they_may_be() -> None:
    found = verify(FILES[0].parent / "qwen3-235b-a22b-ep32.strat")
    assert not [c for c in found.shrunk if c.name.split(".")[-1] in ("ep", "tp", "pp", "ranks")]
    assert found.phases["decode"].ranks == 32


@pytest.mark.slow
@pytest.mark.parametrize("path", LARGE, ids=lambda p: p.stem)
def test_a_large_example_runs_on_all_its_ranks(path: Path) -> None:
    found = verify(path)
    assert found.equal and max(p.ranks for p in found.phases.values()) >= 128
    assert found.seconds < 60
