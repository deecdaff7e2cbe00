"""Weights of ``transformers`` models under the operators' names and in their layouts, without a copy.

A linear layer of torch is [out, in] and puts heads, or gate and up, next to one another in one dimension; operators
name every dimension. Names and layouts are those of ``transformers`` 5, where the experts of a layer are one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ..spec import ModelSpec
from .weights import Key

Layout = Callable[[np.ndarray, ModelSpec], np.ndarray]


class UnknownWeights(ValueError):
    """The model has weights that no operator takes, or lacks some that one does."""


def renamed(state: Mapping[str, np.ndarray], model: ModelSpec) -> dict[Key, np.ndarray]:
    """Views of a state dict's arrays by (layer, operators' name).

    Works on a rank's shard of every tensor as well as on whole ones: sizes of cut dimensions are read off the arrays.

    Raises:
        UnknownWeights: a name that is no weight of a supported architecture.
    """
    tensors: dict[Key, np.ndarray] = {}
    for full, array in state.items():
        layer, name = _place(full)
        if layer >= 0 and name == "post_attention_layernorm.weight":
            tensors[layer, "moe_norm" if model.is_moe_layer(layer) else "ffn_norm"] = array
            continue
        try:
            parts = _WEIGHTS[name] if layer >= 0 else _ENDS[name]
        except KeyError:
            raise UnknownWeights(f"`{full}` is no weight of a supported architecture") from None
        tensors |= {(layer, ours): layout(array, model) for ours, layout in parts}
    return tensors


def check_complete(tensors: Iterable[Key], wanted: Iterable[Key]) -> None:
    """Whether a model's weights are exactly those that the operators take.

    Raises:
        UnknownWeights: some are missing or too many.
    """
    have, want = set(tensors), set(wanted)
    for keys, what in ((want - have, "the model lacks"), (have - want, "the description lacks")):
        if keys:
            layer, name = min(keys)
            raise UnknownWeights(f"{what} `{name}`" + (f" of layer {layer}" if layer >= 0 else ""))


def _place(name: str) -> Key:
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else (-1, name)


# --- layouts ----------------------------------------------------------------------------------------------------------


def _same(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    return w


def _transposed(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    """[out, in] to [in, out]."""
    return w.T


def _to_heads(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    """[heads x width, in] to [in, heads, width]."""
    return w.reshape(-1, model.attention.head_dim, w.shape[-1]).transpose(2, 0, 1)


def _from_heads(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    """[out, heads x width] to [heads, width, out]."""
    width = model.attention.v_dim or model.attention.head_dim
    return w.reshape(len(w), -1, width).transpose(1, 2, 0)


def _by_head(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    """[heads x width] to [heads, width]."""
    return w.reshape(-1, model.attention.head_dim)


def _head_norm(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    return _by_head(w, model) if model.attention.qk_norm == "full" else w


def _latent_up(w: np.ndarray, model: ModelSpec, part: slice) -> np.ndarray:
    """[heads x (nope + v), latent] to [heads, nope or v, latent]."""
    a = model.attention
    return w.reshape(-1, (a.nope_dim or 0) + (a.v_dim or 0), w.shape[-1])[:, part]


def _keys_up(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    return _latent_up(w, model, slice(None, model.attention.nope_dim))


def _values_up(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    return _latent_up(w, model, slice(model.attention.nope_dim, None))


def _packed(w: np.ndarray, model: ModelSpec, part: int) -> np.ndarray:
    """Gate (0) or up (1) of all experts, to [experts, in, width].

    Halves of [experts, 2 x width, in], or of gpt-oss, whose experts have biases, every other one of [experts, in, 2 x
    width].
    """
    if model.moe and model.moe.bias:
        return w[..., part::2]
    width = w.shape[1] // 2
    return w[:, part * width : (part + 1) * width].transpose(0, 2, 1)


def _gate(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    return _packed(w, model, 0)


def _up(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    return _packed(w, model, 1)


def _gate_bias(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    return w[:, ::2]


def _up_bias(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    return w[:, 1::2]


def _down(w: np.ndarray, model: ModelSpec) -> np.ndarray:
    """[experts, out, width] to [experts, width, out]; in gpt-oss it is so already."""
    return w if model.moe and model.moe.bias else w.transpose(0, 2, 1)


# --- names ------------------------------------------------------------------------------------------------------------

_ENDS: Mapping[str, tuple[tuple[str, Layout], ...]] = {
    "model.embed_tokens.weight": (("embedding", _same),),
    "model.norm.weight": (("final_norm", _same),),
    "lm_head.weight": (("lm_head", _transposed),),
}
"""Weights outside the layers."""

_WEIGHTS: Mapping[str, tuple[tuple[str, Layout], ...]] = {
    "input_layernorm.weight": (("attn_norm", _same),),
    **{f"self_attn.{x}_proj.weight": ((f"w{x}", _to_heads),) for x in "qkv"},
    **{f"self_attn.{x}_proj.bias": ((f"w{x}_bias", _by_head),) for x in "qkv"},
    **{f"self_attn.{x}_norm.weight": ((f"{x}_norm", _head_norm),) for x in "qk"},
    "self_attn.o_proj.weight": (("wo", _from_heads),),
    "self_attn.o_proj.bias": (("o_bias", _same),),
    "self_attn.sinks": (("sinks", _same),),
    "self_attn.q_a_proj.weight": (("wq_a", _transposed),),
    "self_attn.q_a_layernorm.weight": (("q_a_norm", _same),),
    "self_attn.q_b_proj.weight": (("wq_b", _to_heads),),
    "self_attn.kv_a_proj_with_mqa.weight": (("wkv_a", _transposed),),
    "self_attn.kv_a_layernorm.weight": (("kv_a_norm", _same),),
    "self_attn.kv_b_proj.weight": (("uk", _keys_up), ("uv", _values_up)),
    **{f"mlp.{x}_proj.weight": ((f"ffn.w_{x}", _transposed),) for x in ("gate", "up", "down")},
    **{f"mlp.shared_experts.{x}_proj.weight": ((f"shared.w_{x}", _transposed),) for x in ("gate", "up", "down")},
    **{f"mlp.{x}.weight": (("router.weight", _transposed),) for x in ("gate", "router")},
    "mlp.router.bias": (("router.bias", _same),),
    "mlp.gate.e_score_correction_bias": (("router.correction", _same),),
    "mlp.e_score_correction_bias": (("router.correction", _same),),
    "mlp.experts.gate_up_proj": (("expert.gate", _gate), ("expert.up", _up)),
    "mlp.experts.gate_up_proj_bias": (("expert.gate_bias", _gate_bias), ("expert.up_bias", _up_bias)),
    "mlp.experts.down_proj": (("expert.down", _down),),
    "mlp.experts.down_proj_bias": (("expert.down_bias", _same),),
}
"""Weights of a layer; ``post_attention_layernorm``, whose name depends on the layer's kind, is left out."""
