"""Wrong graphs, run behind the verifier's back: other numbers, or an execution that stops and says why."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Phases

from paradag.compiler.ir.graph import Graph, Phase
from paradag.compiler.ir.ops.attention import Rotary
from paradag.compiler.run.weights import Checkpoint
from paradag.passes.validation.repair import repair
from paradag.tests.mutation import execution
from paradag.tests.mutation.execution import ALLOWED, Outcome, as_stated, is_like, outcome
from paradag.tests.mutation.test_graphs import KINDS, Case, damaged
from paradag.tests.passes.validation import damage as d
from paradag.tests.run.builds import BIASED_MOE, DENSE, LATENT, MOE, WINDOWED, run, spec_of

BLOCK = "dense_layer"
TP = "strategy { tp 4 }"
PP = "strategy { pp 2 -> tp 2 }"
EP = "strategy { ep 4 -> tp 2 }"
Lie = Callable[[Graph], Graph]


def swap_operands(block: str, node: str, first: int, second: int) -> Lie:
    def change(graph: Graph) -> Graph:
        inputs = list(graph.block(block).node(node).inputs)
        inputs[first], inputs[second] = inputs[second], inputs[first]
        return d.node(graph, block, node, inputs=tuple(inputs))

    return change


def bypass(block: str, node: str, value: str | None = None) -> Lie:
    return lambda graph: d.bypass(graph, block, node, value)


def read_before_write(graph: Graph) -> Graph:
    return d.rewire(graph, BLOCK, "kv_read", "kv_after", "kv_before")


def without_window(graph: Graph) -> Graph:
    return d.node(graph, "dense_sliding_layer", "attention", attrs={
        k: v for k, v in graph.block("dense_sliding_layer").node("attention").attrs.items() if k != "window"
    })  # fmt: skip


def whole_down_bias(graph: Graph) -> Graph:
    """The bias of the expert's down projection on every rank of an expert, as if the result were no partial sum."""
    node = graph.block("moe_layer").node("experts")
    params = tuple(
        replace(p, type=p.type.placed(p.type.placement.without_partial())) if p.name == "down_bias" else p
        for p in node.params
    )
    return d.node(graph, "moe_layer", "experts", params=params)


# what is done, model, strategies, phase, the lie, what the fault must say ("" where the numbers must be wrong)
LIES: list[tuple[str, str, str, Phase, Lie, str]] = [
    ("all-reduce of attention dropped", DENSE, TP, "prefill", bypass(BLOCK, "o_out.all_reduce"), ""),
    ("all-reduce of the FFN dropped", DENSE, TP, "decode", bypass(BLOCK, "down.all_reduce"), ""),
    ("all-reduce of the embedding dropped", DENSE, TP, "decode", bypass("prologue", "x.all_reduce"), ""),
    ("K and V swapped", DENSE, TP, "prefill", swap_operands(BLOCK, "kv_write", 1, 2), ""),
    ("K and V swapped in decode", DENSE, TP, "decode", swap_operands(BLOCK, "kv_write", 1, 2), ""),
    ("gate and up swapped", DENSE, TP, "decode", swap_operands(BLOCK, "act", 0, 1), ""),
    ("residual skipped", DENSE, TP, "prefill", bypass(BLOCK, "attn_residual", "o_out.all_reduce"), ""),
    ("norm skipped", DENSE, TP, "decode", bypass(BLOCK, "ffn_norm"), ""),
    ("rotary skipped on the key", DENSE, TP, "decode",
     lambda g: d.rewire(g, BLOCK, "kv_write", "k_rot", "k"), ""),
    ("window lost", WINDOWED, TP, "prefill", without_window, ""),
    ("bias of an expert counted once per rank", BIASED_MOE, "strategy { tp 2 }", "decode", whole_down_bias, ""),
    ("KV read before write", DENSE, TP, "prefill", read_before_write, "nothing gives"),
    ("KV read before write in decode", DENSE, TP, "decode", read_before_write, "its type says"),
    ("stage crossed without a send", DENSE, PP, "prefill",
     lambda g: replace(g, blocks=tuple(b for b in g.blocks if b.role != "boundary")), "does not hold"),
    ("boundary without nodes", DENSE, PP, "decode",
     lambda g: d.bypass(d.bypass(g, "boundary", "send"), "boundary", "recv"), "."),
    ("receive without a send", DENSE, PP, "decode", bypass("boundary", "send"), "nobody sent"),
    ("message sent and left", DENSE, PP, "prefill", bypass("boundary", "recv"), "does not hold"),
    ("dispatch skipped", MOE, EP, "prefill", bypass("moe_layer", "rows.dispatch"), "."),
    ("combine skipped", MOE, EP, "decode", bypass("moe_layer", "expert_rows.combine"), "."),
    ("attention on the cache itself", LATENT, TP, "prefill",
     lambda g: d.rewire(g, BLOCK, "kv_up", "kv", "kv_after"), "touches the KV cache"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie[0])
def test_a_lie_is_caught(lie: tuple[str, str, str, Phase, Lie, str]) -> None:
    _, model, strategies, phase, change, says = lie
    found = run(spec_of(model, strategies), phase, change)
    assert not found.equal
    if says:
        assert re.search(says, found.fault), found.fault
    else:
        assert not found.fault and found.max_error > 1e-3
    assert found.kernel_error < 1e-12, "the undamaged graph on one rank is right"


@pytest.mark.parametrize("model, strategies", sorted({(m, s) for _, m, s, *_ in LIES}))
def test_the_truth_is_not(model: str, strategies: str) -> None:
    for phase in ("prefill", "decode"):
        assert run(spec_of(model, strategies), phase).equal  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, model, strategies", [("experts", MOE, EP), ("o", DENSE, TP), ("lm_head", DENSE, TP), ("kv_up", LATENT, TP)]
)
def test_a_loader_that_gives_the_wrong_slice_is_caught(
    name: str, model: str, strategies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types and wiring are right, so nothing but execution can see it."""
    right = Checkpoint.shard

    def wrong(self: Checkpoint, node: Any, param: Any, layer: int, at: Mapping[str, int], mesh: Any) -> np.ndarray:
        if node.name == name:
            at = {a: (c + 1) % mesh.size((a,)) for a, c in at.items()}
        return right(self, node, param, layer, at, mesh)

    monkeypatch.setattr(Checkpoint, "shard", wrong)
    found = run(spec_of(model, strategies), "prefill")
    assert not found.fault and not found.equal and found.max_error > 1e-3


def test_a_wrong_kernel_is_caught_by_the_independent_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut or not, every rank computes the same wrong thing: only a model that shares no kernel tells."""
    right = Rotary.kernel

    def backwards(self: Rotary, shard: Any, inputs: Any, params: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        # not just the other direction, which attention would not notice
        return right(self, shard, inputs, {**params, "positions": params["positions"] ** 2})

    monkeypatch.setattr(Rotary, "kernel", backwards)
    found = run(spec_of(DENSE, TP), "prefill")
    assert found.max_error > 1e-3 and found.kernel_error > 1e-3
    assert abs(found.max_error - found.kernel_error) < 1e-12


def test_another_token_order_is_no_lie() -> None:
    """What only lays tokens out differently computes the same."""
    spec = spec_of(DENSE, "strategy prefill { sp 2 -> tp 2 }")
    for order in ("contiguous", "zigzag"):
        found = run(spec, "prefill", lambda g, o=order: replace(g, meta={**g.meta, "token_order": o}))  # type: ignore[misc]
        assert found.equal


# --- every kind of damage that the verifier finds ---------------------------------------------------------------------


def _outcomes(name: str, examples: int, *, compared: bool) -> list[Outcome]:
    """What came of random graphs damaged in one way; repaired ones are right, and ``compared`` with the legal one."""
    outcomes: list[Outcome] = []

    @settings(
        max_examples=examples, suppress_health_check=list(HealthCheck), derandomize=True, phases=[Phases.generate]
    )
    @given(damaged(KINDS[name], runnable=True))
    def one(case: Case) -> None:
        seen = outcome(case)
        assert seen in ALLOWED[case.kind.seen], seen
        outcomes.append(seen)
        if case.kind.repaired:
            mended, _ = repair(case.harmed, case.levels[0])
            found = execution.run(case, mended)
            assert found.equal
            assert not compared or is_like(found, execution.run(case, case.levels[-1]))

    one()
    return outcomes


# a third of the kinds of every sort; all of them at many places below
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if i % 3 else []) for i, n in enumerate(KINDS)]
)
def test_damage_is_seen_by_execution_as_stated(name: str) -> None:
    assert _outcomes(name, 1, compared=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_seen_by_execution_as_stated_at_many_places(name: str) -> None:
    outcomes = _outcomes(name, 8, compared=True)
    assert as_stated(KINDS[name].seen, outcomes), outcomes


def test_whatever_execution_may_miss_says_why() -> None:
    assert all(bool(k.unseen) == (k.seen != "always") for k in KINDS.values())
