"""Every placement that an operator's rule accepts is right, and a wrong rule is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import comb, factorial

import numpy as np
import pytest

from paradag.compiler.ir.graph import Node
from paradag.compiler.ir.mesh import Mesh
from paradag.compiler.ir.ops import OPERATORS, Inference, Operator, Resharding, operator
from paradag.compiler.ir.ops.attention import Attention, KVRead, Rotary
from paradag.compiler.ir.ops.elementwise import Activation, Add, BiasAdd, Norm, ScaleByRoot
from paradag.compiler.ir.ops.linear import Linear
from paradag.compiler.ir.ops.moe import Expert, Router, Unroute
from paradag.compiler.ir.ops.tokens import Embedding, LastToken, Sample
from paradag.compiler.ir.types import Placement, TensorType
from paradag.tests.ir.samples import all_samples
from paradag.tests.ir.soundness import CANDIDATES, FEW, MESH, Report, check, faults, offered, settle
from paradag.tests.ir.soundness import Sample as Case

CASES = {s.label: s for s in all_samples()}
NO_OPERAND = {"kv_recv"}
"""Its value comes from another phase: there is nothing to place, and nothing to compute."""

FREE_DIMS = {
    "linear": 4, "lm_head": 3, "latent_expand": 3, "latent_absorb": 3, "latent_value": 3,
    "norm": 2, "square_sum": 3, "scale_by_root": 3, "activation": 3, "add": 3, "bias_add": 3,
    "rotary": 3, "kv_write": 3, "kv_read": 4, "attention": 3, "attention_merge": 3,
    "embedding": 4, "last_token": 3, "sample": 1, "prefill_end": 1, "chunk_end": 3, "decode_end": 1, "take_tokens": 1,
    "send": 3, "recv": 3, "kv_send": 4, "router": 2, "route": 2, "expert": 4,
}  # fmt: skip
"""Dimensions of the operator that may be cut independently of one another."""

FIXED = {"prefill_begin": 4, "decode_begin": 4, "unroute": 20, "attention_partial": 60}
"""Placements accepted by operators whose constraints or routing groups leave no choice."""


def layouts(dims: int) -> int:
    """Ways to cut ``dims`` dimensions by any of the mesh's axes, order included."""
    count = len(MESH.axes)
    return sum(comb(count, k) * factorial(k) * comb(k + dims - 1, dims - 1) for k in range(count + 1))


def test_layouts_counts_placements() -> None:
    assert [layouts(n) for n in (1, 2, 3)] == [16, 49, 106]


def test_no_operator_is_forgotten() -> None:
    sampled = {s.node.op for s in CASES.values()}
    moving = {name for name, rule in OPERATORS.items() if isinstance(rule, Resharding)}
    assert sampled | moving | NO_OPERAND == set(OPERATORS)
    assert set(FREE_DIMS) | set(FIXED) == sampled


def test_samples_have_distinct_labels() -> None:
    assert len(CASES) == len(all_samples())


def enough(op: str, counts: Mapping[str, int]) -> bool:
    """Whether as many placements were accepted as the operator must accept."""
    if op in FIXED:
        return sum(counts.values()) >= FIXED[op]
    return max(counts.values(), default=0) >= 0.5 * layouts(FREE_DIMS[op])


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "many"])
@pytest.mark.parametrize("op", sorted({s.node.op for s in CASES.values()}))
def test_what_the_rule_accepts_is_right(op: str, every: bool) -> None:
    counts: dict[str, int] = {}
    for sample in (s for s in CASES.values() if s.node.op == op):
        report = check(sample, most=FEW if enough(op, counts) and not every else CANDIDATES)
        assert not report.faults, "\n".join(report.faults[:5])
        counts[sample.label] = len(report.accepted)
    assert enough(op, counts), counts


# --- placements that must be accepted as they are -------------------------------------------------------------------


def laid(t: TensorType, cuts: Mapping[str, str], partial: str = "") -> Placement:
    """Placement by dimension name, axes as letters: ``{"heads": "ab"}``."""
    return Placement(tuple(tuple(cuts.get(n, "")) for n in t.names), tuple((a, "sum") for a in sorted(partial)))


Cuts = Mapping[str, str]
MUST_ACCEPT: list[tuple[str, list[tuple[Cuts, str]], Cuts, list[tuple[Cuts, str]]]] = [
    # label, operands, weights by dimension name, results
    ("linear down", [({"ffn": "a"}, "")], {"ffn": "a"}, [({}, "a")]),
    ("linear down", [({"ffn": "ba", "seq": "c"}, "")], {"ffn": "ba"}, [({"seq": "c"}, "ab")]),
    ("linear output", [({"heads": "ab"}, "")], {"heads": "ab"}, [({}, "ab")]),
    ("linear qkv", [({"batch": "c"}, "")], {"heads": "ab", "kv_heads": "a"},
     [({"batch": "c", "heads": "ab"}, ""), *2 * [({"batch": "c", "kv_heads": "a"}, "")]]),
    ("lm_head", [({}, "")], {"vocab": "abc"}, [({"vocab": "abc"}, "")]),
    ("attention grouped, KV heads fewer than ranks", [({"heads": "ab"}, ""), ({"kv_heads": "a"}, "")], {},
     [({"heads": "ab"}, "")]),
    ("attention grouped, KV heads fewer than ranks", [({"heads": "ab", "seq": "c"}, ""), ({"kv_heads": "a"}, "")], {},
     [({"heads": "ab", "seq": "c"}, "")]),
    ("attention one KV head", [({"heads": "ab"}, ""), ({}, "")], {}, [({"heads": "ab"}, "")]),
    ("attention latent", [({"heads": "ab", "batch": "c"}, ""), ({"batch": "c"}, "")], {},
     [({"heads": "ab", "batch": "c"}, "")]),
    ("attention window and sinks", [({"heads": "a"}, ""), ({"kv_heads": "a"}, "")], {"heads": "a"},
     [({"heads": "a"}, "")]),
    ("attention heads exchanged for tokens", [({"heads": "ba", "batch": "c"}, ""), ({"batch": "c"}, "")], {},
     [({"heads": "ba", "batch": "c"}, "")]),
    ("attention_merge", [({"seq": "ab", "heads": "c"}, ""), ({"seq": "ab", "heads": "c"}, "")], {},
     [({"seq": "ab", "heads": "c"}, "")]),
    ("kv_write first chunk", [({"context": "a", "kv_heads": "b"}, "")] + 2 * [({"seq": "a", "kv_heads": "b"}, "")], {},
     [({"context": "a", "kv_heads": "b"}, "")]),
    ("embedding", [({"batch": "b"}, "")], {"vocab": "ac"}, [({"batch": "b"}, "ac")]),
    ("last_token", [({"seq": "b", "batch": "a"}, "")], {}, [({"batch": "a"}, "b")]),
    ("square_sum", [({"heads": "ab"}, "")], {}, [({}, "ab")]),
    ("add", [({"seq": "b"}, "a"), ({"seq": "b"}, "a")], {}, [({"seq": "b"}, "a")]),
    ("expert groups (('a',), ()) with bias", [({"slot": "a"}, "")], {"slot": "a", "expert_ffn": "b"},
     [({"slot": "a"}, "b")]),
    ("unroute groups (('a',), ()), 3 experts in 4 slots", [({"group.a": "a"}, "bc"), ({"batch": "a"}, "")], {},
     [({"batch": "a"}, "bc")]),
]  # fmt: skip


@pytest.mark.parametrize("label, operands, weights, results", MUST_ACCEPT)
def test_useful_placements_are_accepted_as_they_are(
    label: str, operands: list[tuple[Cuts, str]], weights: Cuts, results: list[tuple[Cuts, str]]
) -> None:
    case = CASES[label]
    given = [laid(t, *where) for t, where in zip(case.inputs, operands, strict=True)]
    given += [laid(p.type, weights) for p in case.node.params if not p.const]
    settled = settle(case, operator(case.node), given)
    asked = offered(case, given)
    assert [t.placement for t in settled.inputs] == [t.placement for t in asked.inputs]
    assert [p.type.placement.shards for p in settled.node.params if not p.const] == [
        p.type.placement.shards for p in asked.node.params if not p.const
    ]
    expected = [laid(v.type, *where) for v, where in zip(settled.node.outputs, results, strict=True)]
    assert [v.type.placement for v in settled.node.outputs] == expected


def test_keys_that_are_cut_where_queries_are_not_make_a_partial_state() -> None:
    case = CASES["attention_partial all keys"]
    given = [laid(case.inputs[0], {"heads": "a"}), laid(case.inputs[1], {"context": "bc", "kv_heads": "a"})]
    node = settle(case, operator(case.node), given).node
    assert node.outputs[0].type.placement == Placement(((), (), ("a",), ()), (("b", "lse"), ("c", "lse")))
    with_sinks = CASES["attention_partial all keys and sinks"]
    kept = settle(with_sinks, operator(with_sinks.node), [*given, laid(with_sinks.node.params[0].type, {})])
    assert kept.inputs[1].axes_of("context") == (), "every rank would count the sinks"


def test_a_hop_wants_the_block_that_has_come_so_far() -> None:
    case = CASES["attention_partial hop 2 of a ring of 3, window"]
    settled = settle(case, operator(case.node), [laid(t, {}) for t in case.inputs])
    assert settled.inputs[0].axes_of("seq") == settled.inputs[1].axes_of("context") == ("b",)
    assert settled.inputs[1].shift_of("context") == settled.node.param("key_positions").type.shift_of("context") == 2


def test_a_down_bias_joins_a_partial_sum_as_a_partial_value() -> None:
    case = CASES["expert groups (('a',), ()) with bias"]
    given = [laid(case.inputs[0], {"slot": "a"})]
    given += [laid(p.type, {"slot": "a", "expert_ffn": "b"}) for p in case.node.params]
    node = settle(case, operator(case.node), given).node
    assert node.param("down_bias").type.placement.partial == (("b", "sum"),)
    assert node.param("up_bias").type.placement.partial == ()


# --- wrong rules are found ------------------------------------------------------------------------------------------


class _LinearBias(BiasAdd):
    linear_in = (0,)


class _LinearGate(Activation):
    linear_in = (0,)


class _CutNorm(Norm):
    def whole(self, node: Node) -> frozenset[str]:
        return frozenset()


class _PartialSquares(ScaleByRoot):
    linear_in = (1,)


class _HalfPartialAdd(Add):
    @staticmethod
    def _common(first: Placement, second: Placement) -> Placement:
        return first

    def infer(self, node: Node, inputs: tuple[TensorType, ...], mesh: Mesh) -> Inference:
        found = super().infer(node, inputs, mesh)
        return replace(found, wants=(found.wants[0], found.wants[1].without_partial()))


class _BiasedPartialSum(Linear):
    def whole(self, node: Node) -> frozenset[str]:
        return frozenset()


class _ForgottenSum(Linear):
    def contracted(self, node: Node, inputs: tuple[TensorType, ...]) -> frozenset[str]:
        return frozenset()


class _FreeKvHeads(Attention):
    def kv_axes(self, query: TensorType, cache: TensorType, heads: tuple[str, ...], mesh: Mesh) -> tuple[str, ...]:
        taken = set(query.axes_of("batch")) | set(query.axes_of("seq"))
        return tuple(a for a in cache.axes_of("kv_heads") if a not in taken)


class _AlwaysSplitKvHeads(Attention):
    def kv_axes(self, query: TensorType, cache: TensorType, heads: tuple[str, ...], mesh: Mesh) -> tuple[str, ...]:
        return query.axes_of("heads")


class _WholePositions(Rotary):
    def _param_types(self, node: Node, axes: Mapping[str, tuple[str, ...]]) -> tuple[TensorType, ...]:
        return tuple(p.type for p in node.params)


class _CutWindow(KVRead):
    def whole(self, node: Node) -> frozenset[str]:
        return frozenset()


class _WholeVocabulary(Embedding):
    def contracted(self, node: Node, inputs: tuple[TensorType, ...]) -> frozenset[str]:
        return frozenset()


class _EveryonesLastToken(LastToken):
    def contracted(self, node: Node, inputs: tuple[TensorType, ...]) -> frozenset[str]:
        return frozenset()


class _LocalSample(Sample):
    def whole(self, node: Node) -> frozenset[str]:
        return frozenset()


class _CutRouter(Router):
    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"experts", "pair", "top_k"})


class _ReplicatedDownBias(Expert):
    def _param_types(self, node: Node, axes: Mapping[str, tuple[str, ...]]) -> tuple[TensorType, ...]:
        return Operator._param_types(self, node, axes)


class _AnyChoice(Unroute):
    def infer(self, node: Node, inputs: tuple[TensorType, ...], mesh: Mesh) -> Inference:
        found = super().infer(node, inputs, mesh)
        choice = inputs[1].placement.without_partial()
        tokens = choice.shards[:2]
        kept = tuple(p for p in found.results[0].placement.partial if p[0] not in choice.used)
        result = found.results[0].placed(Placement((*tokens, ()), kept))
        return replace(found, wants=(found.wants[0], choice), results=(result,))


WRONG: list[tuple[type[Operator], str]] = [
    (_LinearBias, "bias_add"),
    (_LinearGate, "activation"),
    (_CutNorm, "norm"),
    (_PartialSquares, "scale_by_root"),
    (_HalfPartialAdd, "add"),
    (_BiasedPartialSum, "linear qkv with bias"),
    (_ForgottenSum, "linear down"),
    (_FreeKvHeads, "attention grouped"),
    (_AlwaysSplitKvHeads, "attention grouped, KV heads uneven"),
    (_WholePositions, "rotary"),
    (_CutWindow, "kv_read window"),
    (_WholeVocabulary, "embedding"),
    (_EveryonesLastToken, "last_token"),
    (_LocalSample, "sample"),
    (_CutRouter, "router softmax"),
    (_ReplicatedDownBias, "expert groups (('a',), ()) with bias"),
    (_AnyChoice, "unroute groups (('a',), ()), 3 experts in 3 slots"),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("rule, label", WRONG)
def test_a_wrong_rule_is_found(rule: type[Operator], label: str) -> None:
    executed = (f for f in faults(CASES[label], rule(), Report()) if "not stable" not in f)
    assert next(executed, None), f"{rule.__name__} went unnoticed"


def test_a_lost_token_is_found() -> None:
    """The check compares data, not only shapes: a kernel that is wrong on one rank is seen."""

    class _Forgetful(Norm):
        def kernel(self, shard, inputs, params):  # type: ignore[no-untyped-def]
            (result,) = super().kernel(shard, inputs, params)
            return [result if shard.start("seq") == 0 else np.zeros_like(result)]

    assert check(CASES["norm"], _Forgetful()).faults


def test_cases_are_uneven() -> None:
    """At least one rank of the mesh has less than its share of each sequence, and some have nothing."""
    case: Case = CASES["norm"]
    sizes = case.extents
    assert sizes["batch"] % 2 and sizes["new"] % 3 and sizes["batch"] < MESH.stage_ranks


@pytest.mark.parametrize("kind", ["max", "lse"])
@pytest.mark.parametrize("label", ["add", "unroute groups (('a',), ()), 3 experts in 3 slots"])
def test_only_sums_pass_through_a_linear_operator(label: str, kind: str) -> None:
    """The maximum of sums is not the sum of maxima."""
    case = CASES[label]
    given = [t.placed(replace(t.placement, partial=(("b", kind),))) for t in case.inputs]
    found = operator(case.node).infer(case.node, given, MESH)
    assert not any(want.partial for want in found.wants)
    assert not any(t.placement.partial for t in found.results)
