"""What each supported model type of ``transformers`` makes of its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..compiler.spec.model import MAX_LAYERS
from ._hf_fields import Fields, MalformedConfig
from ._hf_quantization import formats
from ._hf_rotary import Numerics, read_rotary

__all__ = ["FAMILIES"]

Model = dict[str, Any]

_USUAL = Numerics()


def _base(c: Fields) -> Model:
    """What all families share."""
    _refuse(c, "mlp_bias", "a biased FFN")
    if (activation := c.text("hidden_act", "silu")) not in ("silu", "swish"):
        raise c.unsupported("hidden_act", f"the activation `{activation[:40]}`")
    model: Model = {
        "layers": {"count": _layers(c)},
        "hidden": c.count("hidden_size"),
        "vocab": c.count("vocab_size"),
        "tied": c.flag("tie_word_embeddings", False),
    }
    if "max_position_embeddings" in c:
        model["max_context"] = c.count("max_position_embeddings")
    for key in ("num_nextn_predict_layers", "num_mtp_modules"):
        if c.count(key, 0, low=0):
            c.assume(
                "layers", f"{model['layers']['count']}", f"the multi-token-prediction layers of `{key}` are left out"
            )
    return model


def _layers(c: Fields) -> int:
    count: int = c.count("num_hidden_layers")
    if count > MAX_LAYERS:
        raise c.bad("num_hidden_layers", f"at most {MAX_LAYERS:,} layers")
    return count


def _refuse(c: Fields, key: str, feature: str) -> None:
    if c.flag(key, False):
        raise c.unsupported(key, feature)


def _heads(c: Fields, *, default_kv: int | None = None, default_dim: int | None = None, **extra: Any) -> Model:
    """Grouped-query attention, under the name that its number of KV heads earns."""
    heads = c.count("num_attention_heads")
    kv_heads = c.count("num_key_value_heads", default_kv or heads)
    head_dim = c.count("head_dim", default_dim)
    if head_dim is None:
        hidden = c.count("hidden_size")
        if hidden % heads:
            raise MalformedConfig(
                f"the config has no `head_dim`, and `hidden_size` {hidden} is no multiple of {heads} heads"
            )
        head_dim = hidden // heads
    kind = "mha" if kv_heads == heads else "mqa" if kv_heads == 1 else "gqa"
    return {"kind": kind, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, **extra}


def _finish(c: Fields, model: Model, numerics: Numerics = _USUAL) -> Model:
    """Number formats, rotary embedding and norms, and the dense width only where a layer has it."""
    model |= formats(c, model)
    attention = model["attention"]
    model["rotary"] = read_rotary(c, numerics, attention.get("rope_dim") or attention["head_dim"])
    model["norm_eps"] = c.number("rms_norm_eps", numerics.eps)
    layers, moe = model["layers"], model.get("moe")
    dense = layers["count"] if moe is None else min(layers.get("dense", 0), layers["count"]) or layers.get("dense_at")
    if dense:
        model["ffn"] = c.count("intermediate_size")
    return model


def _bias(c: Fields, kind: str = "all") -> str:
    return kind if c.flag("attention_bias", False) else "none"


# --- dense families


def _llama(c: Fields) -> Model:
    return _finish(c, _base(c) | {"attention": _heads(c, bias=_bias(c))})


def _mistral(c: Fields) -> Model:
    # A config without the key means the class's window of 4096 tokens; null means none.
    window = c.count("sliding_window", None if c.given("sliding_window") else 4096)
    return _finish(c, _base(c) | {"attention": _heads(c, default_kv=8, window=window)})


def _qwen2(c: Fields) -> Model:
    model = _base(c) | {"attention": _heads(c, bias="qkv")}
    _qwen_windows(c, model)
    return _finish(c, model)


def _qwen3(c: Fields) -> Model:
    model = _base(c) | {"attention": _heads(c, default_dim=128, bias=_bias(c), qk_norm="head")}
    _qwen_windows(c, model)
    return _finish(c, model)


def _qwen_windows(c: Fields, model: Model) -> None:
    """With ``use_sliding_window`` the layers from ``max_window_layers`` on slide."""
    window = _qwen_window(c)
    if window is None:
        return
    count = model["layers"]["count"]
    if "layer_types" in c:
        kinds = _layer_types(c, count)
    else:
        full = min(c.count("max_window_layers", 28, low=0), count)
        kinds = ["full"] * full + ["sliding"] * (count - full)
    _set_pattern(model, kinds, window)


def _qwen_window(c: Fields) -> int | None:
    """The window of a Qwen model, None without ``use_sliding_window``; null in the config means none."""
    if not c.flag("use_sliding_window", False):
        return None
    window: int | None = c.count("sliding_window", None if c.given("sliding_window") else 4096)
    return window


def _layer_types(c: Fields, count: int) -> list[str]:
    names = {"sliding_attention": "sliding", "full_attention": "full"}
    types = c.items("layer_types", str)
    if other := next((t for t in types if t not in names), None):
        raise c.unsupported("layer_types", f"`{other[:40]}`")
    if len(types) != count:
        raise MalformedConfig(f"`layer_types` names {len(types)} layers, `num_hidden_layers` is {count}")
    return [names[t] for t in types]


def _set_pattern(model: Model, kinds: list[str], window: int) -> None:
    """Store the shortest pattern that gives ``kinds`` when repeated."""
    if "full" not in kinds:
        model["attention"]["window"] = window
    elif "sliding" in kinds:
        period = next(p for p in range(1, len(kinds) + 1) if all(k == kinds[i % p] for i, k in enumerate(kinds)))
        model["layers"] |= {"pattern": tuple(kinds[:period]), "window": window}


# --- mixture of experts with softmax routing


def _mixtral(c: Fields) -> Model:
    attention = _heads(c, default_kv=8, window=c.count("sliding_window", None))
    moe = {
        "experts": c.count("num_local_experts", 8),
        "top_k": c.count("num_experts_per_tok", 2),
        "ffn": c.count("intermediate_size"),
    }
    numerics = Numerics(theta=1_000_000.0, eps=1e-5)
    return _finish(c, _base(c) | {"attention": attention, "moe": moe}, numerics)


def _qwen3_moe(c: Fields) -> Model:
    model = _base(c) | {"attention": _heads(c, bias=_bias(c), qk_norm="head")}
    model["moe"] = {
        # transformers 5 writes the key under its common name
        "experts": c.count("num_local_experts" if "num_local_experts" in c else "num_experts", 128),
        "top_k": c.count("num_experts_per_tok", 8),
        "ffn": c.count("moe_intermediate_size", 768),
        "renormalize": c.flag("norm_topk_prob", False),
    }
    step, listed = c.count("decoder_sparse_step", 1), set(c.items("mlp_only_layers", int))
    count = model["layers"]["count"]
    dense = [n for n in range(count) if n in listed or (n + 1) % step]
    if len(dense) == count:
        del model["moe"]
    elif dense:
        model["layers"]["dense_at"] = tuple(dense)
    model["attention"]["window"] = _qwen_window(c)  # this class knows no `max_window_layers`: all layers slide
    return _finish(c, model)


def _gpt_oss(c: Fields) -> Model:
    """Sliding and full layers alternate, attention has sinks, router and experts have biases."""
    for key, value in (("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)):
        if c.number(key, value) != value:
            raise c.unsupported(key, f"a clamped activation with another value than {value}")
    bias = "all" if c.flag("attention_bias", True) else "none"
    model = _base(c) | {"attention": _heads(c, default_kv=8, default_dim=64, bias=bias, sinks=True)}
    model["moe"] = {
        "experts": c.count("num_local_experts", 128),
        "top_k": c.count("num_experts_per_tok", 4),
        "ffn": c.count("intermediate_size"),
        "router": "topk_softmax",
        "bias": True,
    }
    count = model["layers"]["count"]
    kinds = _layer_types(c, count) if "layer_types" in c else [("sliding", "full")[n % 2] for n in range(count)]
    _set_pattern(model, kinds, c.count("sliding_window", 128))
    yarn = {"kind": "yarn", "factor": 32.0, "original": 4096, "truncate": False}
    return _finish(c, model, Numerics(theta=150_000.0, eps=1e-5, scaling=yarn))


# --- mixture of experts with sigmoid routing and correction bias (a buffer, not a parameter)


def _deepseek_v3(c: Fields) -> Model:
    _refuse(c, "attention_bias", "biased MLA projections")
    nope, rope = c.count("qk_nope_head_dim", 128), c.count("qk_rope_head_dim", 64)
    attention = {
        "kind": "mla",
        "heads": c.count("num_attention_heads"),
        "kv_heads": 1,
        "head_dim": nope + rope,
        "q_lora": c.count("q_lora_rank", None if c.given("q_lora_rank") else 1536),  # null: no query latent
        "kv_lora": c.count("kv_lora_rank", 512),
        "nope_dim": nope,
        "rope_dim": rope,
        "v_dim": c.count("v_head_dim", 128),
    }
    style = "interleaved" if c.flag("rope_interleave", True) else "half"
    model = _base(c) | _grouped_moe(c, groups=8, top_groups=4, scale=2.5)
    return _finish(c, model | {"attention": attention, "layers": _first_dense(c, 3)}, Numerics(style=style))


def _glm4_moe(c: Fields) -> Model:
    """Biases on the input projections only; the config's ``attention_bias`` does not reach the output projection."""
    norm = "head" if c.flag("use_qk_norm", False) else "none"
    attention = _heads(c, default_kv=8, default_dim=128, bias=_bias(c, "qkv"), qk_norm=norm)
    model = _base(c) | _grouped_moe(c, groups=1, top_groups=1, scale=1.0)
    return _finish(c, model | {"attention": attention, "layers": _first_dense(c, 1)}, Numerics(eps=1e-5, partial=0.5))


def _first_dense(c: Fields, default: int) -> Model:
    count, first = _layers(c), c.count("first_k_dense_replace", default, low=0)
    every = c.count("moe_layer_freq", 1)
    layers: Model = {"count": count, "dense": min(first, count)}
    if skipped := tuple(n for n in range(first, count) if n % every):
        layers["dense_at"] = skipped
    return layers


def _grouped_moe(c: Fields, *, groups: int, top_groups: int, scale: float) -> Model:
    """Experts in groups; the arguments are the class's defaults."""
    moe: Model = {
        "experts": c.count("n_routed_experts"),
        "top_k": c.count("num_experts_per_tok"),
        "ffn": c.count("moe_intermediate_size"),
        "shared": c.count("n_shared_experts", 1, low=0),
        "router": _scoring(c),
        "renormalize": c.flag("norm_topk_prob", True),
        "scale": c.number("routed_scaling_factor", scale),
        "groups": c.count("n_group", groups),
        "top_groups": c.count("topk_group", top_groups),
    }
    return {"moe": moe}


def _scoring(c: Fields) -> str:
    scoring = c.text("scoring_func", "sigmoid")
    if scoring not in ("sigmoid", "softmax"):
        raise c.unsupported("scoring_func", f"`{scoring[:40]}`")
    return scoring


def _minimax_m2(c: Fields) -> Model:
    """QK norms over all heads at once; ``intermediate_size`` is the experts' width."""
    if any(kind != 1 for kind in c.items("attn_type_list", int)):
        raise c.unsupported("attn_type_list", "linear attention")
    norms = {"per_layer": "full", "per_head": "head"}
    norm = norms.get(c.text("qk_norm_type", "per_layer"))
    if norm is None:
        raise c.bad("qk_norm_type", "`per_layer` or `per_head`")
    width = c.count("intermediate_size")
    shared = c.count("shared_intermediate_size", 0, low=0)
    if shared % width:
        raise c.unsupported("shared_intermediate_size", "a shared expert of another width than the routed ones")
    norm = norm if c.flag("use_qk_norm", True) else "none"
    attention = _heads(c, default_kv=8, default_dim=128, qk_norm=norm)
    moe = {
        "experts": c.count("num_local_experts"),
        "top_k": c.count("num_experts_per_tok"),
        "ffn": width,
        "shared": shared // width,
        "router": _scoring(c),
    }
    return _finish(c, _base(c) | {"attention": attention, "moe": moe}, Numerics(theta=5_000_000.0, partial=1.0))


FAMILIES: dict[str, Callable[[Fields], Model]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
    "kimi_k2": _deepseek_v3,
    "minimax_m2": _minimax_m2,
    "glm4_moe": _glm4_moe,
}
