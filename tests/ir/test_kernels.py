"""Kernels against independent formulas, and chains of nodes on shards against the undistributed model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest

from paradag.compiler.ir.graph import Node, Param, Value
from paradag.compiler.ir.ops import Shard, operator, routed_type
from paradag.compiler.ir.ops.ring import merge_states
from paradag.compiler.ir.reshard import plan
from paradag.compiler.ir.types import CONTEXT, NEW, PAST, Placement, TensorType, replicated, tensor
from paradag.compiler.run import Shards, cut, join, reshard, run_collective, run_node
from paradag.tests.ir.samples import CHOICE, EXTENTS, STREAM, TOKENS, all_samples, cache_shape, choices
from paradag.tests.ir.soundness import MESH, Array, Sample

CASES = {s.label: s for s in all_samples()}


def computed(case: Sample) -> list[Array]:
    inputs = [case.values[i] for i in range(len(case.inputs))]
    return operator(case.node).kernel(Shard(case.node), inputs, {p.name: case.values[p.name] for p in case.node.params})


def softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum()


# --- single kernels -------------------------------------------------------------------------------------------------


def test_linear_multiplies_matrices() -> None:
    case = CASES["linear qkv with bias"]
    x = case.values[0].reshape(15, 6)
    for got, name in zip(computed(case), ("wq", "wk", "wv"), strict=True):
        weight, bias = case.values[name], case.values[f"{name}_bias"]
        want = x @ weight.reshape(6, -1) + bias.reshape(-1)
        np.testing.assert_allclose(got, want.reshape(3, 5, *bias.shape), atol=1e-12)


def test_linear_sums_over_heads_and_features() -> None:
    case = CASES["linear output"]
    want = case.values[0].reshape(15, 12) @ case.values["wo"].reshape(12, 5)
    np.testing.assert_allclose(computed(case)[0], want.reshape(3, 5, 5), atol=1e-12)


def test_norm_leaves_features_past_its_weight_alone() -> None:
    case = CASES["norm of the first features"]
    x, weight = case.values[0], case.values["weight"]
    got = computed(case)[0]
    for b, s in np.ndindex(3, 5):
        row = x[b, s]
        root = np.sqrt((row[0] ** 2 + row[1] ** 2 + row[2] ** 2) / 3 + 1e-6)
        np.testing.assert_allclose(got[b, s], [*(row[:3] / root * weight), *row[3:]], atol=1e-12)


def test_norm_over_all_heads_is_a_sum_of_squares_and_a_scaling() -> None:
    case = CASES["scale_by_root"]
    x, weight = case.values[0], case.values["weight"]
    squares = operator("square_sum").kernel(Shard(case.node), [x], {})[0]
    got = operator("scale_by_root").kernel(Shard(case.node), [x, squares], {"weight": weight})[0]
    flat = x.reshape(15, 8)
    want = flat / np.sqrt((flat**2).mean(axis=1, keepdims=True) + 1e-6) * weight.reshape(8)
    np.testing.assert_allclose(got, want.reshape(x.shape), atol=1e-12)


def test_rotary_turns_pairs_as_complex_numbers() -> None:
    case = CASES["rotary of the last features"]
    positions, theta, width = case.values["positions"], 100.0, 2
    for got, x in zip(computed(case), (case.values[0], case.values[1]), strict=True):
        np.testing.assert_array_equal(got[..., :-width], x[..., :-width])
        half = width // 2
        pairs = x[..., -width:-half] + 1j * x[..., -half:]
        for s, position in enumerate(positions):
            for i in range(half):
                want = pairs[:, s, ..., i] * np.exp(1j * position * theta ** (-2 * i / width))
                np.testing.assert_allclose(got[:, s, ..., -width + i], want.real, atol=1e-12)
                np.testing.assert_allclose(got[:, s, ..., -half + i], want.imag, atol=1e-12)


def test_rotary_of_neighbours_among_the_first_features() -> None:
    case = CASES["rotary of the last features"]
    attrs = {"rotary": 2, "theta": 100.0, "leading": True, "style": "interleaved", "amplitude": 1.5}
    got = computed(replace(case, node=replace(case.node, attrs=attrs)))
    for y, x in zip(got, (case.values[0], case.values[1]), strict=True):
        np.testing.assert_array_equal(y[..., 2:], x[..., 2:])
        for s, position in enumerate(case.values["positions"]):
            want = 1.5 * (x[:, s, ..., 0] + 1j * x[:, s, ..., 1]) * np.exp(1j * position)
            np.testing.assert_allclose(y[:, s, ..., 0] + 1j * y[:, s, ..., 1], want, atol=1e-12)


def test_norms_add_their_epsilon() -> None:
    small = CASES["norm"]
    node = replace(small.node, attrs={"eps": 0.5})
    x, weight = small.values[0], small.values["weight"]
    want = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 0.5) * weight
    np.testing.assert_allclose(computed(replace(small, node=node))[0], want, atol=1e-12)
    heads = CASES["scale_by_root"]
    rule, node = operator("scale_by_root"), replace(heads.node, attrs={**heads.node.attrs, "eps": 0.5})
    x, weight = heads.values[0], heads.values["weight"]
    squares = (x**2).sum(axis=(2, 3))
    want = x / np.sqrt(squares / 8 + 0.5)[:, :, None, None] * weight
    got = rule.kernel(Shard(node), [x, squares], {"weight": weight})[0]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    rule, node = operator("rotary"), replace(CASES["rotary"].node, attrs={"rotary": 4})
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 1, 4))

    def score(at_q: int, at_k: int) -> float:
        turned_q = rule.kernel(Shard(node), [q], {"positions": np.array([at_q])})[0]
        turned_k = rule.kernel(Shard(node), [k], {"positions": np.array([at_k])})[0]
        return float((turned_q * turned_k).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-12)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-6)


@pytest.mark.parametrize("label", [label for label in CASES if label.startswith("attention ")])
def test_attention_one_query_at_a_time(label: str) -> None:
    case = CASES[label]
    q, cache, attrs = case.values[0], case.values[1], case.node.attrs
    positions, keys_at = case.values["positions"], case.values["key_positions"]
    got = computed(case)[0]
    width, heads = q.shape[3], q.shape[2]
    for b, s, h in np.ndindex(q.shape[:3]):
        if attrs.get("latent"):
            keys, values = cache[b], cache[b][:, :3]
        else:
            kv_head = h * cache.shape[2] // heads
            keys, values = cache[b, :, kv_head, :width], cache[b, :, kv_head, width:]
        seen = [c for c, at in enumerate(keys_at) if 0 <= positions[s] - at < attrs.get("window", 10**9)]
        logits = [attrs["scale"] * (q[b, s, h] @ keys[c]) for c in seen]
        sink = [case.values["sinks"][h]] if "sinks" in case.values else []
        weights = softmax(np.array([*logits, *sink]))[: len(seen)]
        np.testing.assert_allclose(got[b, s, h], weights @ values[seen], atol=1e-12)


@pytest.mark.parametrize("label", ["grouped", "window and sinks", "one KV head"])
@pytest.mark.parametrize("ring", [1, 2, 3, 7])
def test_the_states_of_all_hops_merge_into_attention(label: str, ring: int) -> None:
    """In any order; the sinks are counted at one hop, and some hops of a large ring have no keys."""
    case = CASES[f"attention {label}"]
    inputs = [case.values[0], case.values[1]]
    params = {p.name: case.values[p.name] for p in case.node.params}
    states = []
    for hop in range(ring):
        node = replace(case.node, op="attention_partial", attrs={**case.node.attrs, "hop": hop, "ring": ring})
        given = {n: v for n, v in params.items() if n != "sinks" or hop == ring - 1}
        states += operator(node).kernel(Shard(node), inputs, given)
    for order in (states, states[::-1]):
        np.testing.assert_allclose(reduce(merge_states, order)[..., :-1], computed(case)[0], atol=1e-12)


def test_a_sink_that_every_hop_counts_makes_another_softmax() -> None:
    case = CASES["attention window and sinks"]
    node = replace(case.node, op="attention_partial", attrs={**case.node.attrs, "ring": 2})
    params = {p.name: case.values[p.name] for p in case.node.params}
    states = []
    for hop in range(2):
        there = replace(node, attrs={**node.attrs, "hop": hop})
        states += operator(there).kernel(Shard(there), [case.values[0], case.values[1]], params)
    assert np.abs(merge_states(*states)[..., :-1] - computed(case)[0]).max() > 1e-2


def _softmax_router(logits: Array) -> dict[int, float]:
    best = np.argsort(-logits)[:2]
    p = softmax(logits)[best]
    return dict(zip(best.tolist(), p / p.sum(), strict=True))


def _scaled_router(logits: Array) -> dict[int, float]:
    best = np.argsort(-logits)[:2]
    return dict(zip(best.tolist(), softmax(logits)[best] * 2.5, strict=True))


def _topk_router(logits: Array) -> dict[int, float]:
    best = np.argsort(-logits)[:2]
    return dict(zip(best.tolist(), softmax(logits[best]), strict=True))


def _sigmoid_router(logits: Array, correction: Array) -> dict[int, float]:
    scores = 1 / (1 + np.exp(-logits))
    corrected = scores + correction
    # three groups of two experts, each scored by the sum of its two; the worst group is out
    worst = min(range(3), key=lambda g: corrected[2 * g] + corrected[2 * g + 1])
    allowed = [e for e in range(6) if e // 2 != worst]
    best = sorted(allowed, key=lambda e: -corrected[e])[:2]
    total = sum(scores[e] for e in best)
    return {e: 2.5 * scores[e] / total for e in best}


@pytest.mark.parametrize(
    "label, formula",
    [
        ("router softmax", _softmax_router),
        ("router softmax, scaled", _scaled_router),
        ("router topk_softmax", _topk_router),
        ("router sigmoid", _sigmoid_router),
    ],
)
def test_router_formulas(label: str, formula: Callable[..., dict[int, float]]) -> None:
    case = CASES[label]
    logits = case.values[0] @ case.values["weight"] + case.values.get("bias", 0)
    extra = [case.values["correction"]] if "correction" in case.values else []
    got = computed(case)[0]
    for b, s in np.ndindex(3, 5):
        want = formula(logits[b, s], *extra)
        index, weight = got[b, s]
        assert set(index.astype(int)) == set(want)
        np.testing.assert_allclose(weight, [want[int(e)] for e in index], atol=1e-12)


def test_gated_activations() -> None:
    gate, up = CASES["activation"].values[0], CASES["activation"].values[1]
    sigmoid = 1 / (1 + np.exp(-gate))
    np.testing.assert_allclose(computed(CASES["activation"])[0], gate * sigmoid * up, atol=1e-12)
    rule, node = operator("activation"), CASES["activation clamped"].node
    got = rule.kernel(Shard(node), [np.array([9.0, -9.0, 1.0]), np.array([9.0, -9.0, 2.0])], {})[0]
    want = [8 * 7 / (1 + np.exp(-1.702 * 7)), -6 * -9 / (1 + np.exp(1.702 * 9)), 3 * 1 / (1 + np.exp(-1.702))]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_absorbed_mla_equals_the_naive_form() -> None:
    rng = np.random.default_rng(1)
    heads, nope, rope, lora, v_dim = 4, 2, 2, 3, 3
    q, latent = rng.standard_normal((2, 1, heads, nope + rope)), rng.standard_normal((2, 6, lora + rope))
    uk, uv = rng.standard_normal((heads, nope, lora)), rng.standard_normal((heads, v_dim, lora))
    positions = {"positions": np.array([5]), "key_positions": np.arange(6)}

    def attend(query: Array, cache: Array, **attrs: object) -> Array:
        node = Node("n", "attention", attrs={"scale": 0.5, **attrs})
        return operator(node).kernel(Shard(node), [query, cache], positions)[0]

    def apply(op: str, x: Array, **params: Array) -> Array:
        return operator(op).kernel(Shard(Node("n", op)), [x], params)[0]

    naive = attend(q, apply("latent_expand", latent, uk=uk, uv=uv), v_dim=v_dim)
    wide = attend(apply("latent_absorb", q, uk=uk), latent, v_dim=lora, latent=True)
    np.testing.assert_allclose(apply("latent_value", wide, uv=uv), naive, atol=1e-12)


# --- chains on shards -----------------------------------------------------------------------------------------------


class Chain:
    """Runs nodes one after another on shards, resharding operands as the rules want it."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.types: dict[str, TensorType] = {}
        self.shards: dict[str, Shards] = {}
        self.steps: list[str] = []

    def place(self, name: str, value: Array, t: TensorType) -> None:
        self.types[name], self.shards[name] = t, cut(value, t, MESH, EXTENTS, self.rng)

    def moved(self, name: str, want: Placement) -> Shards:
        t = self.types[name]
        steps = plan(t.placement, want, t.names, MESH)
        self.steps += [s.op for s in steps]
        return reshard(self.shards[name], steps, t.names, MESH)

    def run(self, node: Node, weights: Mapping[str, Array] | None = None) -> None:
        rule = operator(node)
        wants = rule.infer(node, [self.types[i] for i in node.inputs], MESH).wants
        types = [self.types[i].placed(w) for i, w in zip(node.inputs, wants, strict=True)]
        found = rule.infer(node, types, MESH)
        node = replace(
            node,
            params=tuple(replace(p, type=t) for p, t in zip(node.params, found.params, strict=True)),
            outputs=tuple(Value(v.name, t) for v, t in zip(node.outputs, found.results, strict=True)),
        )
        inputs = [self.moved(i, w) for i, w in zip(node.inputs, wants, strict=True)]
        params = {p.name: cut((weights or {})[p.name], p.type, MESH, EXTENTS, self.rng) for p in node.params}
        for value, shards in zip(node.outputs, run_node(node, inputs, types, params, MESH, EXTENTS), strict=True):
            self.types[value.name], self.shards[value.name] = value.type, shards

    def whole(self, name: str) -> Array:
        return join(self.shards[name], self.types[name], MESH, EXTENTS, 1e-10)


EXPERTS = 3


def dense_moe(x: Array, choice: Array, weights: Mapping[str, Array]) -> Array:
    """Each token through each of its experts, one at a time."""
    out = np.zeros_like(x)
    for b, s in np.ndindex(x.shape[:2]):
        for e, share in zip(choice[b, s, 0].astype(int), choice[b, s, 1], strict=True):
            gate = x[b, s] @ weights["gate"][e] + weights["gate_bias"][e]
            up = x[b, s] @ weights["up"][e] + weights["up_bias"][e]
            out[b, s] += share * ((gate / (1 + np.exp(-gate)) * up) @ weights["down"][e] + weights["down_bias"][e])
    return out


MoeCase = tuple[Mapping[str, tuple[str, ...]], tuple[str, ...], tuple[str, ...], int, list[str]]
MOE: dict[str, MoeCase] = {
    # tokens, slots, expert width, number of slots, collectives in order
    "attention DP": ({"batch": ("a", "b"), "seq": ()}, ("a", "b"), (), 3, ["dispatch", "combine"]),
    "tokens over two axes": ({"batch": ("a",), "seq": ("b",)}, ("a", "b"), (), 3, ["dispatch", "combine"]),
    "redundant slots": ({"batch": ("b",), "seq": ("c",)}, ("b", "c"), (), 7, ["dispatch", "combine"]),
    "expert TP": ({"batch": ("a",), "seq": ()}, ("a",), ("b", "c"), 4, ["dispatch", "combine"]),
    "replicas": ({"batch": ("a",), "seq": ("b",)}, ("b",), (), 3, ["dispatch", "combine"]),
    "masked": ({"batch": (), "seq": ()}, ("a", "b"), ("c",), 5, ["all_gather"]),
}


@pytest.mark.parametrize("case", MOE.values(), ids=MOE)
def test_routed_experts_equal_the_dense_formula(case: MoeCase) -> None:
    tokens, slot_axes, width_axes, slots, collectives = case
    rng = np.random.default_rng(2)
    x, choice = rng.standard_normal((3, 5, 6)), choices(EXPERTS)
    up = (("slot", slots), ("hidden", 6), ("expert_ffn", 5))
    shapes = {
        "gate": up, "up": up, "down": (up[0], up[2], up[1]),
        "gate_bias": (up[0], up[2]), "up_bias": (up[0], up[2]), "down_bias": (up[0], up[1]),
    }  # fmt: skip
    of_expert = {n: rng.standard_normal((EXPERTS, *(s for _, s in shape[1:]))) for n, shape in shapes.items()}
    of_slot = {n: w[[s % EXPERTS for s in range(slots)]] for n, w in of_expert.items()}
    axes = {"slot": slot_axes, "expert_ffn": width_axes}
    params = tuple(
        Param(n, tensor("fp32", *s).placed(Placement(tuple(axes.get(d, ()) for d, _ in s)))) for n, s in shapes.items()
    )
    stream = tensor("fp32", *STREAM)
    rows = routed_type(stream, slots, 2, (), (), MESH)
    attrs = {"experts": EXPERTS, "slots": slots, "top_k": 2}
    chain = Chain()
    chain.place("x", x, stream)
    chain.place("choice", choice, tensor("fp32", *CHOICE))
    chain.run(Node("r", "route", ("x", "choice"), (Value("rows", rows),), (), attrs, constraints=tokens))
    chain.steps.clear()
    chain.run(Node("e", "expert", ("rows",), (Value("mid", rows),), params), of_slot)
    chain.run(Node("u", "unroute", ("mid", "choice"), (Value("y", stream),), (), attrs))
    assert [s for s in chain.steps if s != "slice"] == collectives
    assert chain.types["y"].placement.partial == tuple((a, "sum") for a in width_axes)
    np.testing.assert_allclose(chain.whole("y"), dense_moe(x, choice, of_expert), atol=1e-10)


@pytest.mark.parametrize("axes", [("a",), ("b",), ("a", "b"), ("b", "c")])
def test_a_cache_cut_over_tokens_serves_attention(axes: tuple[str, ...]) -> None:
    """Past and new tokens are cut each by itself: a rank's part is no chunk of the context, and key positions tell."""
    case = CASES["attention grouped"]
    rng = np.random.default_rng(3)
    cache, past, new = case.values[1], EXTENTS["context"] - EXTENTS["new"], EXTENTS["new"]
    order = rng.permutation(past + new)
    cache = cache[:, np.argsort(order)]  # the reference: row c of the context holds position c
    old_shape, new_shape = cache_shape(2, 5, PAST), (*TOKENS, ("kv_heads", 2), ("kv_features", 5))
    by_token = replicated(4).shards[0], axes, (), ()
    old_type = tensor("fp32", *old_shape).placed(Placement(by_token))
    new_type = tensor("fp32", *new_shape).placed(Placement(by_token))
    out_type = tensor("fp32", *cache_shape(2, 5, CONTEXT)).placed(Placement(by_token))
    write = Node("w", "kv_write", ("old", "k"), (Value("kv", out_type),))
    inferred = operator(write).infer(write, [old_type, new_type], MESH)
    assert inferred.wants == (old_type.placement, new_type.placement)
    assert inferred.results[0].placement == out_type.placement
    parts = [
        cut(cache[:, :past], old_type, MESH, EXTENTS, rng),
        cut(cache[:, past:], new_type, MESH, EXTENTS, rng),
    ]
    written = run_node(write, parts, [old_type, new_type], {}, MESH, EXTENTS)[0]
    old_positions = tensor("int32", ("context", PAST)).placed(Placement((axes,)))
    new_positions = tensor("int32", ("seq", NEW)).placed(Placement((axes,)))
    stored = [
        cut(np.arange(past), old_positions, MESH, EXTENTS, rng),
        cut(np.arange(past, past + new), new_positions, MESH, EXTENTS, rng),
    ]
    positions = [np.concatenate(pair) for pair in zip(*stored, strict=True)]
    gather = {"axes": axes, "of": "context"}
    gathered = run_collective("all_gather", gather, written, out_type.names, MESH)
    keys_at = run_collective("all_gather", gather, positions, ("context",), MESH)
    assert sorted(keys_at[0].tolist()) == list(range(past + new))

    query = case.inputs[0].placed(Placement(((), axes, (), ())))
    found = operator("attention").infer(case.node, [query, case.inputs[1]], MESH)
    node = replace(
        case.node,
        params=tuple(replace(p, type=t) for p, t in zip(case.node.params, found.params, strict=True)),
        outputs=(Value("y", found.results[0]),),
    )
    queries_at = cut(case.values["positions"], node.param("positions").type, MESH, EXTENTS, rng)
    got = run_node(
        node, [cut(case.values[0], query, MESH, EXTENTS, rng), gathered], [query, case.inputs[1]],
        {"positions": queries_at, "key_positions": keys_at}, MESH, EXTENTS,
    )[0]  # fmt: skip
    plain = {"positions": case.values["positions"], "key_positions": np.arange(past + new)}
    want = operator("attention").kernel(Shard(case.node), [case.values[0], cache], plain)[0]
    np.testing.assert_allclose(join(got, found.results[0], MESH, EXTENTS, 1e-10), want, atol=1e-10)


def test_a_cut_vocabulary_is_looked_up_once() -> None:
    """Ranks that do not hold a token's row give zeros; ranks without rows too."""
    case = CASES["embedding"]
    table = case.node.params[0].type.placed(Placement((("a", "b", "c"), ())))
    node = replace(case.node, params=(replace(case.node.params[0], type=table),))
    chain = Chain()
    chain.place("x0", case.values[0], case.inputs[0])
    chain.run(node, {"table": case.values["table"]})
    holders = np.count_nonzero([(s != 0).any(axis=-1) for s in chain.shards["y0"]], axis=0)
    assert (holders == 1).all()
    np.testing.assert_allclose(chain.whole("y0"), case.values["table"][case.values[0]], atol=1e-12)


def shards_of(values: Sequence[float]) -> Shards:
    return [np.array([v]) for v in values]


def test_a_collective_needs_a_known_operator() -> None:
    with pytest.raises(KeyError):
        run_collective("send", {"axes": ("a",)}, shards_of(range(12)), ("hidden",), MESH)
