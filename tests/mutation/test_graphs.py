"""Mutation proof of lowered graphs: every damage is found by its rule, and repaired or rejected."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from paradag.compiler.diagnostics import Fix
from paradag.compiler.ir.graph import Block, Graph, Node, Phase, Value
from paradag.compiler.ir.mesh import Axis, Mesh
from paradag.compiler.ir.types import tensor
from paradag.compiler.run.shrink import shrink
from paradag.compiler.spec import Spec
from paradag.passes.validation import GRAPH_RULES, erase, stage_layers, verify
from paradag.passes.validation._report import is_resharding
from paradag.passes.validation.repair import repair
from paradag.tests.mutation.damage import Damage, NoPlace
from paradag.tests.mutation.graph_kinds import GRAPH_KINDS
from paradag.tests.mutation.meaning_kinds import MEANING_KINDS
from paradag.tests.mutation.ring_kinds import RING_KINDS
from paradag.tests.strategies import lowered_levels, small_specs

KINDS = {k.name: k for k in (*GRAPH_KINDS, *MEANING_KINDS, *RING_KINDS)}


@dataclass(frozen=True)
class Case:
    """The levels of a legal graph, and the last of them damaged."""

    kind: Damage[Graph]
    spec: Spec = field(repr=False)
    strategy: str
    steps: int
    levels: list[Graph] = field(repr=False)
    harmed: Graph = field(repr=False)

    @property
    def phase(self) -> Phase:
        """The phase whose graph it is."""
        return self.levels[0].phase


_LEVELS: dict[tuple[str, Phase, int], list[Graph]] = {}
"""Levels of legal graphs: many kinds of damage begin with the same ones."""


def legal_levels(spec: Spec, phase: Phase, steps: int) -> list[Graph]:
    key = (spec.model_dump_json(), phase, steps)
    if key not in _LEVELS:
        _LEVELS[key] = lowered_levels(spec, phase, steps)
    return _LEVELS[key]


@st.composite
def damaged(draw: st.DrawFn, kind: Damage[Graph], *, runnable: bool = False) -> Case:
    """A random legal graph, damaged at a random place; a runnable one has one replica and a step after the first."""
    phase: Phase = draw(st.sampled_from(kind.phases))
    phases: tuple[Phase, ...] = ("prefill", "decode") if draw(st.booleans()) else (phase,)
    spec: Spec = draw(small_specs(phases, kind.must))
    if runnable:
        spec, _ = shrink(spec, {p: stage_layers(spec, p) for p in phases})
    steps = draw(st.integers(1 + runnable, 3))
    levels = legal_levels(spec, phase, steps)
    try:
        harmed = kind.apply(levels[-1], random.Random(draw(st.integers(0, 2**32))))
    except NoPlace:
        assume(False)
        raise
    return Case(kind, spec, str(spec.strategy(phase)), steps, levels, harmed)


def collectives(graph: Graph) -> list[object]:
    """What moves data, in program order."""
    moving = [(b, n) for b, n in graph.nodes() if is_resharding(n) or n.op in {"send", "recv"}]
    return [(b.name, n.name, n.op, n.inputs, dict(n.attrs)) for b, n in moving]


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_found_and_repaired_or_rejected(name: str) -> None:
    @settings(max_examples=2, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(damaged(KINDS[name]))
    def prove(case: Case) -> None:
        found, mended, fixes = outcome(case)
        assert case.kind.codes & found, f"found {sorted(found)}"
        assert {f.rule for f in fixes} <= found
        if not case.kind.repaired:
            assert mended is case.harmed and not fixes, fixes
            return
        assert fixes, "not repaired"
        assert is_as_before(case, mended)
        again, more = repair(mended, case.levels[0])
        assert again is mended and not more

    prove()


def outcome(case: Case) -> tuple[set[str], Graph, list[Fix]]:
    """Rules found, and what repair made of it."""
    found = {f.code for f in verify(case.harmed, case.levels[0]) if f.is_error}
    return found, *repair(case.harmed, case.levels[0])


def is_as_before(case: Case, mended: Graph) -> bool:
    """Whether a graph is legal, means the same as the one that was damaged, and communicates alike."""
    original, logical = case.levels[-1], case.levels[0]
    same = erase(mended) == erase(original) and collectives(mended) == collectives(original)
    return same and verify(mended, logical) == []


def test_every_rule_is_proved() -> None:
    proved = {code for kind in KINDS.values() for code in kind.codes}
    # no mesh has an axis of one rank, so a group of one takes a mesh made by hand
    assert set(GRAPH_RULES) - proved == {"PD439"}


def test_a_group_of_one_is_found() -> None:
    mesh = Mesh((Axis("tp", 1, 1),), {"tp": ("tp",)})
    value = Value("x", tensor("bf16", ("hidden", 8)))
    node = Node("alone", "all_reduce", ("x",), (value,), attrs={"axes": ("tp",)})
    graph = Graph("g", "prefill", "tp", mesh, (), 1, (1,), (Block("b", "layer", (0,), (), (node,), "x"),), value.type)
    assert [f.code for f in GRAPH_RULES["PD439"](graph)] == ["PD439"]
