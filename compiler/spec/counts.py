"""Exact sizes of a model: parameters, parameters at work per token, KV-cache bytes per token.

Parameters are what a checkpoint trains: buffers (RoPE frequencies, the choice-only correction bias of a DeepSeek
router) are not counted, nor are multi-token-prediction layers. For the catalogue's models the totals equal those of
the reference implementations.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from ..diagnostics import Diagnostic, DiagnosticError
from .dtypes import DTYPES
from .model import AttentionSpec, ModelSpec, MoeSpec

__all__ = [
    "active_parameters",
    "attention_parameters",
    "dense_ffn_parameters",
    "embedding_parameters",
    "expert_parameters",
    "head_parameters",
    "kv_bytes_per_token",
    "kv_elements_per_token",
    "layer_norm_parameters",
    "layer_parameters",
    "moe_layers",
    "moe_parameters",
    "parameters",
    "router_parameters",
    "shared_expert_parameters",
]


def parameters(model: ModelSpec) -> int:
    """All parameters of ``model``, embedding and LM head included (tied ones once)."""
    return _total(model, active=False)


def active_parameters(model: ModelSpec) -> int:
    """Parameters that one token meets: of the routed experts only its ``top_k``.

    Embedding and LM head count whole. The weight traffic of a decode step of more than one token is not this figure but
    that of the distinct experts hit.
    """
    return _total(model, active=True)


def kv_bytes_per_token(model: ModelSpec) -> int:
    """Bytes of KV cache that one more token adds over all layers, in ``model.kv_dtype``, rounded up to whole bytes.

    Sliding layers count in full; past their window they add nothing.
    """
    # bits are sums of powers of two, so the fraction is exact
    bits = Fraction(DTYPES[model.kv_dtype].bits)
    return ceil(model.layers.count * kv_elements_per_token(model.attention) * bits / 8)


def kv_elements_per_token(attention: AttentionSpec) -> int:
    """Elements that one layer caches per token: keys and values, or for MLA the latent and the rotary key."""
    if attention.kind == "mla":
        return _dim(attention.kv_lora, "kv_lora") + _dim(attention.rope_dim, "rope_dim")
    return 2 * attention.kv_heads * attention.head_dim


def moe_layers(model: ModelSpec) -> int:
    """Number of layers whose FFN is a mixture of experts."""
    return sum(model.is_moe_layer(layer) for layer in range(model.layers.count))


def layer_parameters(model: ModelSpec, layer: int, *, active: bool = False) -> int:
    """Parameters of one layer (numbered from 0); ``active`` counts only the experts that one token visits."""
    ffn = moe_parameters(model, active=active) if model.is_moe_layer(layer) else dense_ffn_parameters(model)
    return layer_norm_parameters(model) + attention_parameters(model) + ffn


def embedding_parameters(model: ModelSpec) -> int:
    """The token embedding [vocab, hidden]."""
    return model.vocab * model.hidden


def head_parameters(model: ModelSpec) -> int:
    """The LM head [vocab, hidden], or 0 where it is tied to the embedding."""
    return 0 if model.tied else model.vocab * model.hidden


def layer_norm_parameters(model: ModelSpec) -> int:
    """The two RMSNorms of a layer, before attention and before the FFN."""
    return 2 * model.hidden


def attention_parameters(model: ModelSpec) -> int:
    """Projections of one layer's attention with their biases, norms and sinks."""
    attention, hidden = model.attention, model.hidden
    if attention.kind == "mla":
        return _mla_parameters(attention, hidden)
    q_width = attention.heads * attention.head_dim
    kv_width = attention.kv_heads * attention.head_dim
    projections = hidden * (q_width + 2 * kv_width) + q_width * hidden
    biases = 0 if attention.bias == "none" else q_width + 2 * kv_width
    if attention.bias == "all":
        biases += hidden
    norms = {"none": 0, "head": 2 * attention.head_dim, "full": q_width + kv_width}[attention.qk_norm]
    sinks = attention.heads if attention.sinks else 0
    return projections + biases + norms + sinks


def dense_ffn_parameters(model: ModelSpec) -> int:
    """A gated FFN: gate and up [ffn, hidden], down [hidden, ffn]."""
    return 3 * model.hidden * _dim(model.ffn, "ffn")


def moe_parameters(model: ModelSpec, *, active: bool = False) -> int:
    """Router, shared experts and routed experts of one layer; ``active`` counts ``top_k`` of the routed ones."""
    moe = _moe(model)
    routed = moe.top_k if active else moe.experts
    return router_parameters(model) + shared_expert_parameters(model) + routed * expert_parameters(model)


def router_parameters(model: ModelSpec) -> int:
    """The router [experts, hidden] and its bias."""
    moe = _moe(model)
    return moe.experts * model.hidden + (moe.experts if moe.bias else 0)


def expert_parameters(model: ModelSpec) -> int:
    """One routed expert: a gated FFN, with biases on its three projections where the model has them."""
    moe = _moe(model)
    biases = 2 * moe.ffn + model.hidden if moe.bias else 0
    return 3 * model.hidden * moe.ffn + biases


def shared_expert_parameters(model: ModelSpec) -> int:
    """The shared experts of one layer, together one gated FFN of ``shared * ffn`` width."""
    moe = _moe(model)
    return 3 * model.hidden * moe.shared * moe.ffn


def _total(model: ModelSpec, *, active: bool) -> int:
    with_experts = moe_layers(model)
    total = embedding_parameters(model) + head_parameters(model) + model.hidden  # the last norm
    total += model.layers.count * (layer_norm_parameters(model) + attention_parameters(model))
    if with_experts:
        total += with_experts * moe_parameters(model, active=active)
    if with_experts < model.layers.count:
        total += (model.layers.count - with_experts) * dense_ffn_parameters(model)
    return total


def _mla_parameters(attention: AttentionSpec, hidden: int) -> int:
    """DeepSeek's latent attention: low-rank query, joint latent of keys and values with its norm, shared rotary key."""
    heads = attention.heads
    latent = _dim(attention.kv_lora, "kv_lora")
    nope, rope = _dim(attention.nope_dim, "nope_dim"), _dim(attention.rope_dim, "rope_dim")
    value = _dim(attention.v_dim, "v_dim")
    query_width = heads * (nope + rope)
    if attention.q_lora is None:
        query = hidden * query_width
    else:
        query = hidden * attention.q_lora + attention.q_lora + attention.q_lora * query_width
    keys_values = hidden * (latent + rope) + latent + latent * heads * (nope + value)
    return query + keys_values + heads * value * hidden


def _moe(model: ModelSpec) -> MoeSpec:
    if model.moe is None:
        raise _contradiction(f"model {model.name!r} has no mixture of experts")
    return model.moe


def _dim(value: int | None, name: str) -> int:
    if value is None:
        raise _contradiction(f"the model's dimensions need `{name}`")
    return value


def _contradiction(message: str) -> DiagnosticError:
    return DiagnosticError([Diagnostic("PD101", message)])
