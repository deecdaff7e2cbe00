"""Small nodes with data for every operator: odd sizes, so that chunks are uneven and some ranks come out empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from paradag.compiler.ir.graph import Node, Param, Value
from paradag.compiler.ir.mesh import Mesh
from paradag.compiler.ir.ops import Shard, operator, routed_type
from paradag.compiler.ir.types import BATCH, CONTEXT, NEW, PAST, Extent, Size, TensorType, chunk_bounds, tensor
from paradag.tests.ir.soundness import MESH, Array, Sample

Shape = tuple[tuple[str, Size], ...]

EXTENTS = {"batch": 3, "new": 5, "context": 8}
FRESH = {"batch": 3, "new": 5, "context": 5}
STEP = {"batch": 3, "new": 1, "context": 8}

TOKENS: Shape = (("batch", BATCH), ("seq", NEW))
STREAM: Shape = (*TOKENS, ("hidden", 6))
HEADS: Shape = (*TOKENS, ("heads", 4), ("head_dim", 2))
KV_HEADS: Shape = (*TOKENS, ("kv_heads", 2), ("head_dim", 2))
ORDER = np.array([0, 4, 1, 3, 2])
"""A token order that is neither sorted nor even over chunks, as zig-zag is."""


def build(
    op: str,
    inputs: Sequence[Shape],
    outputs: Sequence[Shape],
    weights: Mapping[str, Shape] | None = None,
    consts: Mapping[str, Shape] | None = None,
    *,
    label: str = "",
    attrs: Mapping[str, Any] | None = None,
    constraints: Mapping[str, tuple[str, ...]] | None = None,
    extents: Mapping[str, int] = EXTENTS,
    values: Mapping[int | str, Array] | None = None,
    **options: Any,
) -> Sample:
    """A sample node; data that is not given is random."""
    params = [Param(n, tensor("fp32", *s)) for n, s in (weights or {}).items()]
    params += [Param(n, tensor("int32", *s), const=True) for n, s in (consts or {}).items()]
    types = tuple(tensor("fp32", *s) for s in inputs)
    node = Node(
        "n",
        op,
        tuple(f"x{i}" for i in range(len(inputs))),
        tuple(Value(f"y{i}", tensor("fp32", *s)) for i, s in enumerate(outputs)),
        tuple(params),
        dict(attrs or {}),
        constraints=dict(constraints or {}),
    )
    return finish(node, types, extents, values, label, **options)


def finish(
    node: Node,
    types: tuple[TensorType, ...],
    extents: Mapping[str, int],
    values: Mapping[int | str, Array] | None,
    label: str,
    **options: Any,
) -> Sample:
    rng = np.random.default_rng(len(node.params) + len(types))
    data: dict[int | str, Array] = {}
    for key, t in (*enumerate(types), *((p.name, p.type) for p in node.params)):
        given = (values or {}).get(key)
        data[key] = rng.standard_normal(shape_of(t, extents)) if given is None else given
    return Sample(f"{node.op} {label}".strip(), node, types, data, extents, **options)


def shape_of(t: TensorType, extents: Mapping[str, int], mesh: Mesh = MESH) -> tuple[int, ...]:
    return tuple(int(d.value(extents, mesh)) for d in t.dims)


# --- projections ----------------------------------------------------------------------------------------------------


def _qkv(*, biased: bool) -> Sample:
    outputs = (("heads", 4), ("head_dim", 2)), (("kv_heads", 2), ("head_dim", 2)), (("kv_heads", 2), ("v_dim", 3))
    names = ("wq", "wk", "wv")
    weights: dict[str, Shape] = {n: (("hidden", 6), *o) for n, o in zip(names, outputs, strict=True)}
    attrs: dict[str, Any] = {"input_dims": ("batch", "seq", "hidden")}
    if biased:
        weights |= {f"{n}_bias": o for n, o in zip(names, outputs, strict=True)}
        attrs["biases"] = tuple(f"{n}_bias" for n in names)
    label = "qkv with bias" if biased else "qkv"
    return build("linear", [STREAM], [(*TOKENS, *o) for o in outputs], weights, attrs=attrs, label=label)


def linear_samples() -> list[Sample]:
    ffn: Shape = (*TOKENS, ("ffn", 6))
    mixed: Shape = (*TOKENS, ("heads", 4), ("v_dim", 3))
    last: Shape = (("batch", BATCH), ("hidden", 6))
    latent: Shape = (("batch", BATCH), ("context", CONTEXT), ("latent", 5))
    full: Shape = (("batch", BATCH), ("context", CONTEXT), ("kv_heads", 4), ("kv_features", 7))
    absorbed: Shape = (*TOKENS, ("heads", 4), ("kv_lora", 3))
    return [
        _qkv(biased=False),
        _qkv(biased=True),
        build("linear", [ffn], [(*TOKENS, ("hidden", 5))], {"w_down": (("ffn", 6), ("hidden", 5))}, label="down",
              attrs={"input_dims": ("batch", "seq", "ffn")}),
        build("linear", [mixed], [(*TOKENS, ("hidden", 5))], {"wo": (("heads", 4), ("v_dim", 3), ("hidden", 5))},
              label="output", attrs={"input_dims": ("batch", "seq", "heads", "v_dim")}),
        build("lm_head", [last], [(("batch", BATCH), ("vocab", 7))], {"weight": (("hidden", 6), ("vocab", 7))},
              attrs={"input_dims": ("batch", "hidden")}),
        build("latent_expand", [latent], [full], {"uk": (("kv_heads", 4), ("nope_dim", 2), ("kv_lora", 3)),
                                                  "uv": (("kv_heads", 4), ("v_dim", 3), ("kv_lora", 3))}),
        build("latent_absorb", [(*TOKENS, ("heads", 4), ("head_dim", 4))], [(*TOKENS, ("heads", 4), ("latent", 5))],
              {"uk": (("heads", 4), ("nope_dim", 2), ("kv_lora", 3))}),
        build("latent_value", [absorbed], [mixed], {"uv": (("heads", 4), ("v_dim", 3), ("kv_lora", 3))}),
    ]  # fmt: skip


# --- elementwise ----------------------------------------------------------------------------------------------------


def elementwise_samples() -> list[Sample]:
    ffn: Shape = (*TOKENS, ("ffn", 6))
    latent: Shape = (*TOKENS, ("latent", 5))
    return [
        build("norm", [STREAM], [STREAM], {"weight": (("hidden", 6),)}),
        build("norm", [HEADS], [HEADS], {"weight": (("head_dim", 2),)}, label="of each head"),
        build("norm", [latent], [latent], {"weight": (("latent", 3),)}, label="of the first features"),
        build("square_sum", [HEADS], [TOKENS]),
        build("scale_by_root", [HEADS, TOKENS], [HEADS], {"weight": (("heads", 4), ("head_dim", 2))},
              attrs={"width": 8}, values={1: np.random.default_rng(0).uniform(1, 9, (3, 5))}),
        build("activation", [ffn, ffn], [ffn]),
        build("activation", [ffn, ffn], [ffn], attrs={"form": "clamped"}, label="clamped"),
        build("add", [STREAM, STREAM], [STREAM]),
        build("bias_add", [STREAM], [STREAM], {"bias": (("hidden", 6),)}),
    ]  # fmt: skip


# --- attention ------------------------------------------------------------------------------------------------------


def cache_shape(kv_heads: int, features: int, context: Size = CONTEXT) -> Shape:
    return (("batch", BATCH), ("context", context), ("kv_heads", kv_heads), ("kv_features", features))


def attention(
    heads: int,
    kv_heads: int,
    label: str,
    *,
    extents: Mapping[str, int] = EXTENTS,
    window: int | None = None,
    sinks: bool = False,
    latent: bool = False,
    partial: bool = False,
    hop: int | None = None,
    ring: str = "",
    where: Mapping[str, tuple[str, ...]] | None = None,
) -> Sample:
    """Attention over permuted tokens: a key has 2 features, a value 3 (latent: 4, the first 3 are the value).

    ``partial`` gives its state; ``hop`` that of a hop of the ring over the axes ``ring``.
    """
    width = 4 if latent else 2
    cache = (("batch", BATCH), ("context", CONTEXT), ("latent", 4)) if latent else cache_shape(kv_heads, 5)
    attrs: dict[str, Any] = {"scale": 0.7, "v_dim": 3}
    attrs |= {"window": window} if window else {}
    attrs |= {"latent": True} if latent else {}
    if hop is not None:
        attrs |= {"hop": hop, "ring": MESH.size(ring)}
        where = {"seq": tuple(ring), "context": tuple(ring)}
    past, new = extents["context"] - extents["new"], extents["new"]
    query_order = ORDER if new == len(ORDER) else np.arange(new)
    return build(
        "attention_partial" if partial else "attention",
        [(*TOKENS, ("heads", heads), ("head_dim", width)), cache],
        [(*TOKENS, ("heads", heads), ("state", 4) if partial else ("v_dim", 3))],
        {"sinks": (("heads", heads),)} if sinks else None,
        {"positions": (("seq", NEW),), "key_positions": (("context", CONTEXT),)},
        attrs=attrs,
        constraints=where,
        extents=extents,
        values={"positions": past + query_order, "key_positions": np.r_[past + query_order, np.arange(past)]},
        label=label,
    )


def attention_samples() -> list[Sample]:
    cache, new = cache_shape(2, 5), (*TOKENS, ("kv_heads", 2), ("v_dim", 3))
    compressed: Shape = (("batch", BATCH), ("context", CONTEXT), ("latent", 4))
    window = Extent("window", 3)
    return [
        build("rotary", [HEADS, KV_HEADS], [HEADS, KV_HEADS], None, {"positions": (("seq", NEW),)},
              attrs={"rotary": 2}, values={"positions": ORDER}),
        build("rotary", [(*TOKENS, ("heads", 4), ("head_dim", 3)), (*TOKENS, ("latent", 5))],
              [(*TOKENS, ("heads", 4), ("head_dim", 3)), (*TOKENS, ("latent", 5))], None,
              {"positions": (("seq", NEW),)}, attrs={"rotary": 2, "theta": 100.0}, values={"positions": ORDER},
              label="of the last features"),
        build("kv_write", [cache_shape(2, 5, PAST), KV_HEADS, new], [cache], extents=FRESH, label="first chunk"),
        build("kv_write", [cache_shape(2, 5, PAST), KV_HEADS, new], [cache], label="later chunk",
              uncut=frozenset({"seq", "context"})),
        build("kv_write", [(compressed[0], ("context", PAST), compressed[2]), (*TOKENS, ("latent", 4))], [compressed],
              extents=FRESH, label="latent"),
        build("kv_read", [cache], [cache], None, {"key_positions": (("context", CONTEXT),)}),
        build("kv_read", [cache], [cache_shape(2, 5, window)], None, {"key_positions": (("context", window),)},
              extents=STEP, label="window", values={"key_positions": np.array([5, 6, 7])}),
        attention(4, 2, "grouped"),
        attention(12, 2, "grouped, KV heads fewer than ranks"),
        attention(6, 3, "grouped, KV heads uneven"),
        attention(5, 5, "a KV head per query head, uneven"),
        attention(6, 1, "one KV head", extents=STEP),
        attention(4, 2, "window and sinks", window=3, sinks=True),
        attention(4, 1, "latent", latent=True, extents=STEP),
        attention(12, 4, "heads exchanged for tokens", where={"seq": (), "heads": ("b", "a")}),
        *ring_samples(),
    ]  # fmt: skip


def ring_samples() -> list[Sample]:
    state: Shape = (*TOKENS, ("heads", 4), ("state", 4))
    latent: Shape = (("batch", BATCH), ("context", CONTEXT), ("latent", 5))
    full: Shape = (("batch", BATCH), ("context", CONTEXT), ("kv_heads", 4), ("kv_features", 7))
    return [
        attention(4, 2, "all keys", partial=True),
        attention(12, 3, "all keys of a window", partial=True, window=3),
        attention(4, 2, "all keys and sinks", partial=True, sinks=True),
        attention(4, 2, "hop 0 with sinks", partial=True, sinks=True, hop=0, ring="a"),
        attention(4, 2, "hop 1 of a ring of 2", partial=True, hop=1, ring="c"),
        attention(4, 2, "hop 2 of a ring of 3, window", partial=True, hop=2, ring="b", window=4),
        attention(4, 4, "hop 4 of a ring of 6", partial=True, hop=4, ring="ba",
                  extents={"batch": 2, "new": 6, "context": 12}),
        build("attention_merge", [state, state], [state]),
        build("attention_merge", [state, state], [(*TOKENS, ("heads", 4), ("v_dim", 3))], label="last"),
        build("latent_expand", [latent], [full], {"uk": (("kv_heads", 4), ("nope_dim", 2), ("kv_lora", 3)),
                                                  "uv": (("kv_heads", 4), ("v_dim", 3), ("kv_lora", 3))},
              attrs={"hop": 1}, constraints={"context": ("b",)}, label="of the block that arrives at hop 1"),
    ]  # fmt: skip


# --- tokens and phase nodes -----------------------------------------------------------------------------------------


def token_samples() -> list[Sample]:
    rng = np.random.default_rng(7)
    ids = rng.integers(7, size=(3, 5))
    prompt: Shape = (("batch", BATCH), ("prompt", 7))
    prompts = rng.integers(7, size=(3, 7))
    one: Shape = (("batch", BATCH),)
    hidden: Shape = (("batch", BATCH), ("hidden", 6))
    taken = {"positions": np.array([6, 2, 0, 5, 3]), 0: prompts}
    samples = [
        build("embedding", [TOKENS], [STREAM], {"table": (("vocab", 7), ("hidden", 6))}, values={0: ids}),
        build("last_token", [STREAM], [hidden], None, {"positions": (("seq", NEW),), "last_position": ()},
              values={"positions": ORDER, "last_position": np.array(4)}),
        build("sample", [(("batch", BATCH), ("vocab", 7))], [one]),
        build("prefill_end", [one], [one], values={0: ids[:, 0]}),
        build("chunk_end", [STREAM], []),
        build("decode_end", [one], [one], values={0: ids[:, 0]}),
        build("send", [STREAM], [STREAM]),
        build("recv", [STREAM], [STREAM]),
        build("kv_send", [cache_shape(2, 5)], []),
    ]  # fmt: skip
    for axes in ((), ("a",), ("a", "b"), ("b", "a")):
        where = {"batch": axes}
        samples.append(build("prefill_begin", [], [prompt], None, {"prompt": prompt}, values={"prompt": prompts},
                             constraints=where, label=f"on {axes}"))  # fmt: skip
        samples.append(build("decode_begin", [one], [TOKENS], values={0: ids[:, 0]}, constraints=where, extents=STEP,
                             label=f"on {axes}"))  # fmt: skip
    for where in ({}, {"batch": ("a",)}, {"seq": ("a",)}, {"batch": ("b",), "seq": ("a",)}):
        samples.append(build("take_tokens", [prompt], [TOKENS, prompt], None, {"positions": (("seq", NEW),)},
                             values=taken, constraints=where, label=f"on {where}"))  # fmt: skip
    return samples


# --- mixture of experts ---------------------------------------------------------------------------------------------

TOP_K = 2
CHOICE: Shape = (*TOKENS, ("pair", 2), ("top_k", TOP_K))
GRIDS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((), ()), (("a",), ()), (("b",), ()), (("a",), ("b",)), ((), ("b", "a")),
)  # fmt: skip
"""Axes that cut batch and sequence of routed tokens."""


def choices(experts: int, extents: Mapping[str, int] = EXTENTS, seed: int = 3) -> Array:
    """A router's result: distinct experts per token, and weights."""
    rng = np.random.default_rng(seed)
    tokens = extents["batch"] * extents["new"]
    index = np.array([rng.permutation(experts)[:TOP_K] for _ in range(tokens)], dtype=float)
    weight = rng.uniform(0.1, 1, (tokens, TOP_K))
    return np.stack([index, weight], axis=1).reshape(extents["batch"], extents["new"], 2, TOP_K)


def group_blocks(t: TensorType, extents: Mapping[str, int]) -> list[tuple[tuple[int, ...], slice, slice]]:
    """(coordinates, sequences, tokens) of every routing group of a type."""
    rows = t.dims[t.index("rows")].size
    assert isinstance(rows, Extent)
    axes = (*rows.batch_axes, *rows.new_axes)
    sizes = [MESH.size((a,)) for a in axes]
    blocks = []
    for at in product(*(range(s) for s in sizes)):
        where = dict(zip(axes, zip(sizes, at, strict=True), strict=True))
        batch = slice(*chunk_bounds(extents["batch"], (where[a] for a in rows.batch_axes)))
        new = slice(*chunk_bounds(extents["new"], (where[a] for a in rows.new_axes)))
        blocks.append((at, batch, new))
    return blocks


def by_expert(experts: int, slots: int, extents: Mapping[str, int]) -> Any:
    """Folds routed rows into ``[experts, batch, seq, hidden]``: copies of an expert added up, groups put together."""

    def fold(rows: Array, t: TensorType) -> Array:
        hidden = rows.shape[-1]
        whole = np.zeros((experts, extents["batch"], extents["new"], hidden))
        for at, batch, new in group_blocks(t, extents):
            size = (batch.stop - batch.start, new.stop - new.start)
            count = size[0] * size[1]
            assert not rows[at][:, count:].any(), "empty rows carry data"
            for slot in range(slots):
                whole[slot % experts, batch, new] += rows[at][slot, :count].reshape(*size, hidden)
        return whole

    return fold


def route(experts: int, slots: int, constraints: Mapping[str, tuple[str, ...]]) -> Sample:
    types = (tensor("fp32", *STREAM), tensor("fp32", *CHOICE))
    attrs = {"experts": experts, "slots": slots, "top_k": TOP_K}
    result = routed_type(types[0], slots, TOP_K, (), (), MESH)
    node = Node("n", "route", ("x", "c"), (Value("rows", result),), (), attrs, constraints=dict(constraints))
    label = f"{experts} experts in {slots} slots on {dict(constraints)}"
    return finish(node, types, EXTENTS, {1: choices(experts)}, label, fold=by_expert(experts, slots, EXTENTS))


def expert(grid: tuple[tuple[str, ...], tuple[str, ...]], *, biased: bool, slots: int = 4) -> Sample:
    stream = tensor("fp32", *STREAM)
    rows = routed_type(stream, slots, TOP_K, *grid, MESH)
    rows = rows.placed(tensor("fp32", *((d.name, d.size) for d in rows.dims)).placement)
    up: Shape = (("slot", slots), ("hidden", 6), ("expert_ffn", 5))
    weights: dict[str, Shape] = {"gate": up, "up": up, "down": (up[0], up[2], up[1])}
    if biased:
        weights |= {"gate_bias": (up[0], up[2]), "up_bias": (up[0], up[2]), "down_bias": (up[0], up[1])}
    params = tuple(Param(n, tensor("fp32", *s)) for n, s in weights.items())
    attrs = {"form": "clamped"} if biased else {}
    node = Node("n", "expert", ("rows",), (Value("y", rows),), params, attrs, view="expert")
    rng = np.random.default_rng(5)
    shape = shape_of(rows, EXTENTS)
    data = rng.standard_normal(shape) * (rng.random(shape[:-1]) < 0.6)[..., None]
    label = f"groups {grid}{' with bias' if biased else ''}"
    return finish(node, (rows,), EXTENTS, {0: data}, label)


def unroute(grid: tuple[tuple[str, ...], tuple[str, ...]], experts: int, slots: int) -> Sample:
    stream = tensor("fp32", *STREAM)
    rows = routed_type(stream, slots, TOP_K, *grid, MESH)
    rows = rows.placed(tensor("fp32", *((d.name, d.size) for d in rows.dims)).placement)
    attrs = {"experts": experts, "slots": slots, "top_k": TOP_K}
    node = Node("n", "unroute", ("rows", "choice"), (Value("y", stream),), (), attrs)
    values = {0: np.random.default_rng(6).standard_normal(shape_of(rows, EXTENTS)), 1: choices(experts)}

    def per_group() -> list[Array]:
        whole = np.zeros(shape_of(stream, EXTENTS))
        for at, batch, new in group_blocks(rows, EXTENTS):
            inputs = [values[0][at], values[1][batch, new]]
            whole[batch, new] = operator(node).kernel(Shard(node), inputs, {})[0]
        return [whole]

    types = (rows, tensor("fp32", *CHOICE))
    label = f"groups {grid}, {experts} experts in {slots} slots"
    return finish(node, types, EXTENTS, values, label, reference=per_group)


def router(kind: str, label: str = "", **attrs: Any) -> Sample:
    experts = 6
    weights: dict[str, Shape] = {"weight": (("hidden", 6), ("experts", experts))}
    if attrs.pop("biased", False):
        weights["bias"] = (("experts", experts),)
    consts: dict[str, Shape] = {"correction": (("experts", experts),)} if kind == "sigmoid" else {}
    return build("router", [STREAM], [CHOICE], weights, consts, label=label or kind,
                 attrs={"router": kind, "top_k": TOP_K, **attrs})  # fmt: skip


def moe_samples() -> list[Sample]:
    routes = [
        route(3, slots, where)
        for slots in (3, 4, 7)
        for where in ({}, {"batch": ("b",), "seq": ("a",)}, {"batch": (), "seq": ("a", "b")})
    ]
    return [
        router("softmax"),
        router("softmax", "softmax, scaled", renormalize=False, scale=2.5),
        router("topk_softmax", biased=True),
        router("sigmoid", groups=3, top_groups=2, scale=2.5),
        *routes,
        *(expert(grid, biased=biased) for grid in GRIDS for biased in (False, True)),
        *(unroute(grid, 3, slots) for grid in GRIDS for slots in (3, 4)),
    ]


def all_samples() -> list[Sample]:
    return [
        *linear_samples(), *elementwise_samples(), *attention_samples(), *token_samples(), *moe_samples(),
    ]  # fmt: skip
