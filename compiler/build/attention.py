"""Attention of one layer as logical nodes."""

from __future__ import annotations

from ..ir.graph import Arg, Param, Value
from ..ir.types import BATCH, CONTEXT, PAST, Extent, Size, TensorType, tensor
from ..spec import ACTIVATION_DTYPE, ModelSpec
from ..spec.model import NORM_EPSILON
from .block import BlockBuilder, Shape


def add_attention(b: BlockBuilder, model: ModelSpec, phase: str, window: int | None, *, transfer: bool) -> None:
    """Norm, projections, KV cache, attention and output projection; the block's stream advances past the residual."""
    residual = b.stream
    b.module = "attention"
    x = b.norm("attn_norm", residual, "hidden", model.hidden, model.norm_eps)
    if model.attention.kind == "mla":
        mixed = _attention_mla(b, model, phase, x, window, transfer)
    else:
        mixed = _attention_heads(b, model, phase, x, window, transfer)
    heads, width = b.type(mixed).dims[2].size, b.type(mixed).dims[3].size
    out = b.linear("o", mixed, [("wo", (("heads", heads), ("v_dim", width), ("hidden", model.hidden)))],
                   ["o_out"], model.projection_dtype)[0]  # fmt: skip
    b.stream = b.add("attn_residual", residual, out)
    if model.attention.bias == "all":
        b.stream = b.bias("o_bias", b.stream, model.hidden)


def _attention_heads(b: BlockBuilder, model: ModelSpec, phase: str, x: str, window: int | None, transfer: bool) -> str:
    a = model.attention
    weights = [
        ("wq", (("hidden", model.hidden), ("heads", a.heads), ("head_dim", a.head_dim))),
        ("wk", (("hidden", model.hidden), ("kv_heads", a.kv_heads), ("head_dim", a.head_dim))),
        ("wv", (("hidden", model.hidden), ("kv_heads", a.kv_heads), ("v_dim", a.head_dim))),
    ]
    q, k, v = b.linear("qkv", x, weights, ["q", "k", "v"], model.projection_dtype, bias=a.bias != "none")
    if a.qk_norm == "head":
        q = b.norm("q_norm", q, "head_dim", a.head_dim, model.norm_eps)
        k = b.norm("k_norm", k, "head_dim", a.head_dim, model.norm_eps)
    elif a.qk_norm == "full":
        q = b.norm_all_heads("q_norm", q, "heads", a.heads, a.head_dim, model.norm_eps)
        k = b.norm_all_heads("k_norm", k, "kv_heads", a.kv_heads, a.head_dim, model.norm_eps)
    q, k = b.rotary([q, k], model)
    features = 2 * a.head_dim
    kv = _cache(
        b, model, [k, v], (("kv_heads", a.kv_heads), ("kv_features", features)), window, phase=phase, transfer=transfer
    )
    sinks = [Param("sinks", tensor(ACTIVATION_DTYPE, ("heads", a.heads)))] if a.sinks else []
    return b.attention(q, kv, heads=a.heads, v_dim=a.head_dim, scale=model.score_scale, window=window, extra=sinks)


def _attention_mla(b: BlockBuilder, model: ModelSpec, phase: str, x: str, window: int | None, transfer: bool) -> str:
    a = model.attention
    assert a.kv_lora and a.nope_dim and a.rope_dim and a.v_dim
    latent, head_dim = a.kv_lora + a.rope_dim, a.nope_dim + a.rope_dim
    down: list[tuple[str, Shape]] = [("wkv_a", (("hidden", model.hidden), ("latent", latent)))]
    dtype = model.projection_dtype
    if a.q_lora:
        down.insert(0, ("wq_a", (("hidden", model.hidden), ("q_lora", a.q_lora))))
        q_low, compressed = b.linear("qkv_a", x, down, ["q_low", "latent"], dtype)
        q_low = b.norm("q_a_norm", q_low, "q_lora", a.q_lora, NORM_EPSILON)
        up = [("wq_b", (("q_lora", a.q_lora), ("heads", a.heads), ("head_dim", head_dim)))]
        q = b.linear("q_b", q_low, up, ["q"], dtype)[0]
    else:
        down.insert(0, ("wq", (("hidden", model.hidden), ("heads", a.heads), ("head_dim", head_dim))))
        q, compressed = b.linear("q_kv_a", x, down, ["q", "latent"], dtype)
    compressed = b.norm("kv_a_norm", compressed, "latent", a.kv_lora, NORM_EPSILON)
    q, compressed = b.rotary([q, compressed], model)
    cache = _cache(b, model, [compressed], (("latent", latent),), window, phase=phase, transfer=transfer)
    uk = tensor(dtype, ("heads", a.heads), ("nope_dim", a.nope_dim), ("kv_lora", a.kv_lora))
    uv = tensor(dtype, ("heads", a.heads), ("v_dim", a.v_dim), ("kv_lora", a.kv_lora))
    scale = model.score_scale
    if phase == "decode":
        q = b.emit("q_absorb", "latent_absorb", [q], [("q_latent", _like(b.type(q), "latent", latent))],
                   [Param("uk", uk)])[0]  # fmt: skip
        wide = b.attention(
            q, cache, heads=a.heads, v_dim=a.kv_lora, scale=scale, window=window, latent=True, width_name="kv_lora"
        )
        return b.emit("v_up", "latent_value", [wide], [("attn", _like(b.type(wide), "v_dim", a.v_dim))],
                      [Param("uv", uv)])[0]  # fmt: skip
    features = head_dim + a.v_dim
    expanded = tensor(
        ACTIVATION_DTYPE, ("batch", BATCH), ("context", CONTEXT), ("kv_heads", a.heads), ("kv_features", features)
    )
    kv = b.emit(
        "kv_up", "latent_expand", [cache], [("kv_full", expanded)],
        [Param("uk", _renamed(uk)), Param("uv", _renamed(uv))], constraints={"context": ()},
    )[0]  # fmt: skip
    return b.attention(q, kv, heads=a.heads, v_dim=a.v_dim, scale=scale, window=window)


def _cache(
    b: BlockBuilder,
    model: ModelSpec,
    new: list[str],
    tail: tuple[tuple[str, Size], ...],
    window: int | None,
    *,
    phase: str,
    transfer: bool,
) -> str:
    """Append to the layer's cache and read what attention needs; returns the value read."""
    before = tensor(model.kv_dtype, ("batch", BATCH), ("context", PAST), *tail)
    after = tensor(model.kv_dtype, ("batch", BATCH), ("context", CONTEXT), *tail)
    init = ""
    if transfer and phase == "decode":
        init = b.emit("kv_recv", "kv_recv", [], [("kv_received", before)], steps="first", attrs={"transfer": "kv"})[0]
    b.args.append(Arg(Value("kv_before", before), "version", "kv_after", init))
    b.values["kv_before"] = before
    written = b.emit("kv_write", "kv_write", ["kv_before", *new], [("kv_after", after)])[0]
    read: Size = CONTEXT if window is None or phase == "prefill" else Extent("window", window)
    seen = tensor(model.kv_dtype, ("batch", BATCH), ("context", read), *tail)
    keys = Param("key_positions", tensor("int32", ("context", read)), const=True)
    attrs = {"window": window} if window else {}
    result = b.emit("kv_read", "kv_read", [written], [("kv", seen)], [keys], attrs=attrs)[0]
    if transfer and phase == "prefill":
        b.emit("kv_send", "kv_send", [written], [], items="last", attrs={"transfer": "kv"})
    return result


def _like(t: TensorType, name: str, size: int) -> TensorType:
    """``t`` with another last dimension."""
    return tensor(t.dtype, *((d.name, d.size) for d in t.dims[:-1]), (name, size))


def _renamed(t: TensorType) -> TensorType:
    return tensor(t.dtype, *(("kv_heads" if d.name == "heads" else d.name, d.size) for d in t.dims))
