"""The undistributed model, written down straight from its definition, token by token where that is plainest.

It shares nothing with the operators' kernels but the weights, so that an error in a kernel shows too. Formulas:
Llama (RMSNorm, rotary in half style, SwiGLU), DeepSeek-V2/V3 (latent attention, sigmoid router with groups), Mixtral
and Qwen3-MoE (softmax router), gpt-oss (sinks, windows, biases, clamped activation), as in ``transformers``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..spec import ModelSpec
from .weights import Checkpoint

_EPSILON = 1e-6
_THETA = 10000.0


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
    weights: Checkpoint
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
            x = x + self._attention(layer, _norm(x, self._get(layer, "attn_norm")), positions)
            if self.model.is_moe_layer(layer):
                x = x + self._moe(layer, _norm(x, self._get(layer, "moe_norm")))
            else:
                x = x + self._swiglu(layer, "ffn.w_", _norm(x, self._get(layer, "ffn_norm")))
        logits: np.ndarray = _norm(x[:, -1], self._get(-1, "final_norm")) @ self._get(-1, "lm_head")
        return logits

    def _get(self, layer: int, name: str) -> np.ndarray:
        return self.weights[layer, name]

    # --- attention ----------------------------------------------------------------------------------------------------

    def _attention(self, layer: int, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        heads = self._latent if self.model.attention.kind == "mla" else self._grouped
        query, keys, values = heads(layer, x, positions)
        a = self.model.attention
        window = self.model.window_of(layer) or np.inf
        out = np.zeros(x.shape)
        for head in range(a.heads):
            scores = query[head] @ keys[head].transpose(0, 2, 1) / np.sqrt(query[head].shape[-1])
            distance = positions[:, None] - np.arange(keys[head].shape[1])
            weights = np.exp(np.where((distance >= 0) & (distance < window), scores, -np.inf))
            total = weights.sum(axis=-1, keepdims=True)
            if a.sinks and a.kind != "mla":
                total = total + np.exp(self._get(layer, "sinks")[head])
            out = out + (weights / total) @ values[head] @ self._get(layer, "wo")[head]
        return out + self._get(layer, "o_bias") if a.bias == "all" else out

    def _grouped(self, layer: int, x: np.ndarray, positions: np.ndarray) -> tuple[list[np.ndarray], ...]:
        a = self.model.attention
        q, k, v = (self._project(layer, x, name) for name in ("wq", "wk", "wv"))
        if a.qk_norm != "none":
            q, k = (self._head_norm(y, self._get(layer, f"{n}_norm")) for y, n in ((q, "q"), (k, "k")))
        q, k = ([_turn(y, positions) for y in heads] for heads in (q, k))
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
            return [_norm(y, weight) for y in heads]
        together = _norm(np.concatenate(heads, axis=-1), weight.ravel())
        return np.split(together, len(heads), axis=-1)

    def _latent(self, layer: int, x: np.ndarray, positions: np.ndarray) -> tuple[list[np.ndarray], ...]:
        """MLA with keys and values expanded for every head (the form of the paper, nothing absorbed)."""
        a = self.model.attention
        assert a.kv_lora and a.nope_dim
        low = _norm(x @ self._get(layer, "wq_a"), self._get(layer, "q_a_norm")) if a.q_lora else x
        weight = self._get(layer, "wq_b" if a.q_lora else "wq")
        down = x @ self._get(layer, "wkv_a")
        latent = _norm(down[..., : a.kv_lora], self._get(layer, "kv_a_norm"))
        cached = self._append(layer, np.concatenate([latent, _turn(down[..., a.kv_lora :], positions)], axis=-1))
        latent, rope = cached[..., : a.kv_lora], cached[..., a.kv_lora :]
        query, keys, values = [], [], []
        for head in range(a.heads):
            q = low @ weight[:, head]
            query.append(np.concatenate([q[..., : a.nope_dim], _turn(q[..., a.nope_dim :], positions)], axis=-1))
            keys.append(np.concatenate([latent @ self._get(layer, "uk")[head].T, rope], axis=-1))
            values.append(latent @ self._get(layer, "uv")[head].T)
        return query, keys, values

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


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + _EPSILON) * weight)


def _silu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / (1 + np.exp(-x)))


def _softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(x) / np.exp(x).sum())


def _turn(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rotary embedding of [batch, seq, width]: the pairs (i, i + width / 2) as complex numbers."""
    half = x.shape[-1] // 2
    speed = _THETA ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.outer(positions, speed))
    return np.concatenate([turned.real, turned.imag], axis=-1)
