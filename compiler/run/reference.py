"""The undistributed model, written down straight from its definition, token by token where that is plainest.

It shares nothing with the operators' kernels but the weights, so that an error in a kernel shows too. Formulas:
Llama (RMSNorm, rotary embedding with the stretched wavelengths of Llama 3.1 and YaRN, SwiGLU), DeepSeek-V2/V3 (latent
attention, sigmoid router with groups), Mixtral and Qwen3-MoE (softmax router), gpt-oss (sinks, windows, biases, clamped
activation), as in ``transformers``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..spec import ModelSpec, YarnSpec
from ._reference_rotary import turn
from .weights import Weights

_LATENT_EPSILON = 1e-6
"""DeepSeek-V3's norms of the latents take no epsilon from the model."""


@dataclass
class Reference:
    """One forward pass after another over the same sequences; the KV cache is kept in between.

    Attributes:
        model: The model.
        weights: Its weights.
        cache: Per layer, rows [batch, context, ...] as an engine caches them: keys and values per head side by side,
            or the latent.
        router_margin: Smallest distance so far between a chosen expert's (or group's) score and a refused one's.
    """

    model: ModelSpec
    weights: Weights
    cache: dict[int, np.ndarray] = field(default_factory=dict)
    router_margin: float = np.inf

    def forward(self, ids: np.ndarray) -> np.ndarray:
        """Logits [batch, vocab] of the last token.

        Args:
            ids: New tokens, [batch, new].
        """
        x = self._get(-1, "embedding")[ids]
        past = self.cache[0].shape[1] if self.cache else 0
        positions = past + np.arange(ids.shape[1])
        for layer in range(self.model.layers.count):
            x = x + self._attention(layer, self._norm(x, layer, "attn_norm"), positions)
            if self.model.is_moe_layer(layer):
                x = x + self._moe(layer, self._norm(x, layer, "moe_norm"))
            else:
                x = x + self._swiglu(layer, "ffn.w_", self._norm(x, layer, "ffn_norm"))
        logits: np.ndarray = self._norm(x[:, -1], -1, "final_norm") @ self._get(-1, "lm_head")
        return logits

    def _get(self, layer: int, name: str) -> np.ndarray:
        return self.weights[layer, name]

    def _norm(self, x: np.ndarray, layer: int, name: str) -> np.ndarray:
        return _norm(x, self._get(layer, name), self.model.norm_eps)

    # --- attention ----------------------------------------------------------------------------------------------------

    def _attention(self, layer: int, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        heads = self._latent if self.model.attention.kind == "mla" else self._grouped
        query, keys, values = heads(layer, x, positions)
        a = self.model.attention
        window = self.model.window_of(layer) or np.inf
        out, scale = np.zeros(x.shape), self._score_scale()
        for head in range(a.heads):
            scores = query[head] @ keys[head].transpose(0, 2, 1) * scale
            distance = positions[:, None] - np.arange(keys[head].shape[1])
            weights = np.exp(np.where((distance >= 0) & (distance < window), scores, -np.inf))
            total = weights.sum(axis=-1, keepdims=True)
            if a.sinks and a.kind != "mla":
                total = total + np.exp(self._get(layer, "sinks")[head])
            out = out + (weights / total) @ values[head] @ self._get(layer, "wo")[head]
        return out + self._get(layer, "o_bias") if a.bias == "all" else out

    def _score_scale(self) -> float:
        a, stretch = self.model.attention, self.model.rotary.scaling
        scale = 1 / np.sqrt(a.head_dim)
        if a.kind == "mla" and isinstance(stretch, YarnSpec):
            scale *= (1 + 0.1 * (stretch.mscale_all_dim or 0.0) * np.log(stretch.factor)) ** 2
        return float(scale)

    def _grouped(self, layer: int, x: np.ndarray, positions: np.ndarray) -> tuple[list[np.ndarray], ...]:
        a = self.model.attention
        q, k, v = (self._project(layer, x, name) for name in ("wq", "wk", "wv"))
        if a.qk_norm != "none":
            q, k = (self._head_norm(y, self._get(layer, f"{n}_norm")) for y, n in ((q, "q"), (k, "k")))
        q, k = ([self._turn(y, positions) for y in heads] for heads in (q, k))
        new = np.stack([np.concatenate(pair, axis=-1) for pair in zip(k, v, strict=True)], axis=2)
        cached = self._append(layer, new)
        group = a.heads // a.kv_heads
        keys = [cached[:, :, h // group, : a.head_dim] for h in range(a.heads)]
        values = [cached[:, :, h // group, a.head_dim :] for h in range(a.heads)]
        return q, keys, values

    def _project(self, layer: int, x: np.ndarray, name: str) -> list[np.ndarray]:
        weight = self._get(layer, name)
        heads = [x @ weight[:, head] for head in range(weight.shape[1])]
        if self.model.attention.bias != "none":
            heads = [y + b for y, b in zip(heads, self._get(layer, f"{name}_bias"), strict=True)]
        return heads

    def _head_norm(self, heads: list[np.ndarray], weight: np.ndarray) -> list[np.ndarray]:
        if self.model.attention.qk_norm == "head":
            return [_norm(y, weight, self.model.norm_eps) for y in heads]
        together = _norm(np.concatenate(heads, axis=-1), weight.ravel(), self.model.norm_eps)
        return np.split(together, len(heads), axis=-1)

    def _latent(self, layer: int, x: np.ndarray, positions: np.ndarray) -> tuple[list[np.ndarray], ...]:
        """MLA with keys and values expanded for every head (the form of the paper, nothing absorbed)."""
        a = self.model.attention
        assert a.kv_lora and a.nope_dim
        low = x
        if a.q_lora:
            low = _norm(x @ self._get(layer, "wq_a"), self._get(layer, "q_a_norm"), _LATENT_EPSILON)
        weight = self._get(layer, "wq_b" if a.q_lora else "wq")
        down = x @ self._get(layer, "wkv_a")
        latent = _norm(down[..., : a.kv_lora], self._get(layer, "kv_a_norm"), _LATENT_EPSILON)
        cached = self._append(layer, np.concatenate([latent, self._turn(down[..., a.kv_lora :], positions)], axis=-1))
        latent, rope = cached[..., : a.kv_lora], cached[..., a.kv_lora :]
        query, keys, values = [], [], []
        for head in range(a.heads):
            q = low @ weight[:, head]
            query.append(np.concatenate([q[..., : a.nope_dim], self._turn(q[..., a.nope_dim :], positions)], axis=-1))
            keys.append(np.concatenate([latent @ self._get(layer, "uk")[head].T, rope], axis=-1))
            values.append(latent @ self._get(layer, "uv")[head].T)
        return query, keys, values

    def _turn(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Rotary embedding: of the whole of what latent attention sets apart, of the first features of a head."""
        width = x.shape[-1] if self.model.attention.kind == "mla" else self.model.rotary.dim or x.shape[-1]
        return np.concatenate([turn(x[..., :width], positions, self.model.rotary), x[..., width:]], axis=-1)

    def _append(self, layer: int, new: np.ndarray) -> np.ndarray:
        self.cache[layer] = np.concatenate([self.cache[layer], new], axis=1) if layer in self.cache else new
        return self.cache[layer]

    # --- feed-forward -------------------------------------------------------------------------------------------------

    def _swiglu(self, layer: int, prefix: str, x: np.ndarray) -> np.ndarray:
        gate, up, down = (self._get(layer, f"{prefix}{part}") for part in ("gate", "up", "down"))
        return np.asarray((_silu(x @ gate) * (x @ up)) @ down)

    def _moe(self, layer: int, x: np.ndarray) -> np.ndarray:
        moe = self.model.moe
        assert moe is not None
        out = np.zeros_like(x)
        for at in np.ndindex(*x.shape[:2]):
            for expert, weight in self._route(layer, x[at]):
                out[at] += weight * self._expert(layer, expert, x[at])
        return out + self._swiglu(layer, "shared.w_", x) if moe.shared else out

    def _expert(self, layer: int, expert: int, x: np.ndarray) -> np.ndarray:
        gate, up, down = (self._get(layer, f"expert.{part}")[expert] for part in ("gate", "up", "down"))
        if not (self.model.moe and self.model.moe.bias):
            return np.asarray((_silu(x @ gate) * (x @ up)) @ down)
        g_bias, u_bias, d_bias = (self._get(layer, f"expert.{part}_bias")[expert] for part in ("gate", "up", "down"))
        g, u = np.minimum(x @ gate + g_bias, 7.0), np.clip(x @ up + u_bias, -7.0, 7.0)
        return np.asarray(((u + 1) * (g / (1 + np.exp(-1.702 * g)))) @ down + d_bias)

    def _route(self, layer: int, x: np.ndarray) -> list[tuple[int, float]]:
        """Experts of one token and their weights."""
        moe = self.model.moe
        assert moe is not None
        logits = x @ self._get(layer, "router.weight")
        if moe.bias:
            logits = logits + self._get(layer, "router.bias")
        if moe.router == "topk_softmax":
            chosen = self._best(logits, moe.top_k)
            shares = _softmax(logits[chosen])
        else:
            scores = _softmax(logits) if moe.router == "softmax" else 1 / (1 + np.exp(-logits))
            choice = scores + self._get(layer, "router.correction") if moe.router == "sigmoid" else scores
            chosen = self._best(self._in_groups(choice), moe.top_k)
            shares = scores[chosen]
            if moe.renormalize:
                shares = shares / (shares.sum() + 1e-20)
        return [(int(e), float(w * moe.scale)) for e, w in zip(chosen, shares, strict=True)]

    def _in_groups(self, scores: np.ndarray) -> np.ndarray:
        """Scores with those of all but the best groups struck out."""
        moe = self.model.moe
        assert moe is not None
        if moe.groups == 1:
            return scores
        groups = np.split(scores, moe.groups)
        kept = self._best(np.array([sum(sorted(g)[-2:]) for g in groups]), moe.top_groups)
        return np.concatenate([g if i in kept else np.full_like(g, -np.inf) for i, g in enumerate(groups)])

    def _best(self, scores: np.ndarray, count: int) -> np.ndarray:
        order = np.argsort(scores)[::-1]
        if count < len(order):
            margin = scores[order[count - 1]] - scores[order[count]]
            self.router_margin = min(self.router_margin, float(margin))
        return order[:count]


def _norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return np.asarray(x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + epsilon) * weight)


def _silu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / (1 + np.exp(-x)))


def _softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(x) / np.exp(x).sum())
