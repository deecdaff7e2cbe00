"""The model: a decoder-only transformer, layer by layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ._base import SpecModel
from .rotary import RotarySpec, YarnSpec

DTypeName = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4", "nvfp4", "mxfp4"]

MAX_LAYERS = 10_000
"""More layers than any model has; a bound on the work that a file can ask for."""

MAX_SIZE = 2**31 - 1
"""Largest extent of any one dimension."""

NORM_EPSILON = 1e-6
"""What a norm adds to the mean square where a model names nothing else; the norms of MLA's latents always add this."""


class LayersSpec(SpecModel):
    """How many layers, which of them are dense, and how attention alternates."""

    count: int = Field(ge=1, le=MAX_LAYERS)
    dense: int = Field(default=0, ge=0)
    """The first so many layers of an MoE model have a dense FFN."""
    dense_at: tuple[int, ...] = ()
    """Further layers (numbered from 0) with a dense FFN."""
    pattern: tuple[Literal["sliding", "full"], ...] = ()
    """Attention kinds, repeated over the layers; empty means all alike."""
    window: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    """Tokens a sliding layer sees, itself included."""


class AttentionSpec(SpecModel):
    """Attention. ``mla`` uses the latent dimensions, the others ``kv_heads`` and ``head_dim``."""

    kind: Literal["mha", "mqa", "gqa", "mla"]
    heads: int = Field(ge=1, le=MAX_SIZE)
    kv_heads: int = Field(ge=1, le=MAX_SIZE)
    """mha: equal to ``heads``; mqa: 1; mla: 1 (the latent is one head)."""
    head_dim: int = Field(ge=1, le=MAX_SIZE)
    """mla: ``nope_dim + rope_dim``."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """``head``: an RMSNorm over each head's features (Qwen3); ``full``: over all heads at once (MiniMax-M2)."""
    bias: Literal["none", "qkv", "all"] = "none"
    """``qkv``: on the input projections (Qwen2); ``all``: on the output projection too (gpt-oss)."""
    sinks: bool = False
    window: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    q_lora: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    kv_lora: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    nope_dim: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    rope_dim: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    v_dim: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    dtype: DTypeName | None = None
    """Format of the projections where it differs from the model's."""


class MoeSpec(SpecModel):
    """Mixture-of-experts FFN."""

    experts: int = Field(ge=1, le=100_000)
    top_k: int = Field(ge=1, le=100_000)
    ffn: int = Field(ge=1, le=MAX_SIZE)
    shared: int = Field(default=0, ge=0, le=1000)
    """Shared experts, each ``ffn`` wide, that every token visits."""
    router: Literal["softmax", "sigmoid", "topk_softmax"] = "softmax"
    bias: bool = False
    """Biases on router and experts (gpt-oss)."""
    renormalize: bool = True
    scale: float = Field(default=1.0, gt=0)
    """Factor on the routed sum (DeepSeek-V3: 2.5)."""
    groups: int = Field(default=1, ge=1)
    """Expert groups of which a token may use ``top_groups``."""
    top_groups: int = Field(default=1, ge=1)
    dtype: DTypeName | None = None


class ModelSpec(SpecModel):
    """A decoder-only transformer."""

    name: str
    layers: LayersSpec
    hidden: int = Field(ge=1, le=MAX_SIZE)
    vocab: int = Field(ge=1, le=MAX_SIZE)
    ffn: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    """Width of the dense FFN; needed where any layer is dense."""
    attention: AttentionSpec
    moe: MoeSpec | None = None
    rotary: RotarySpec = RotarySpec()
    norm_eps: float = Field(default=NORM_EPSILON, gt=0, le=1)
    """What the norms add to the mean square (those of MLA's latents excepted, see ``NORM_EPSILON``)."""
    tied: bool = False
    max_context: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    dtype: DTypeName = "bf16"
    kv_dtype: DTypeName = "bf16"
    weights: float | None = Field(default=None, gt=0)
    """The file's claim of the parameter count, to be checked against the dimensions."""

    def is_moe_layer(self, layer: int) -> bool:
        return self.moe is not None and layer >= self.layers.dense and layer not in self.layers.dense_at

    def window_of(self, layer: int) -> int | None:
        """Tokens that ``layer`` sees, or None for all."""
        if self.layers.pattern and self.layers.pattern[layer % len(self.layers.pattern)] == "sliding":
            return self.layers.window
        return None if self.layers.pattern else self.attention.window

    @property
    def rotary_width(self) -> int:
        """Features of a head that turn with the position."""
        a = self.attention
        return (a.rope_dim if a.kind == "mla" else self.rotary.dim) or a.head_dim

    @property
    def score_scale(self) -> float:
        """Factor on the attention scores."""
        scale: float = self.attention.head_dim**-0.5
        scaling = self.rotary.scaling
        if self.attention.kind == "mla" and isinstance(scaling, YarnSpec):
            scale *= scaling.latent_score_factor
        return scale

    @property
    def projection_dtype(self) -> str:
        return self.attention.dtype or self.dtype

    @property
    def expert_dtype(self) -> str:
        return (self.moe.dtype if self.moe else None) or self.dtype
