"""Attention and the KV cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from ...spec.dtypes import dtype
from ..graph import Node
from ..mesh import Mesh
from ..types import Extent, Number, Placement, TensorType
from ._base import Array, CostClass, Inference, Kind, Operator, Shard, Work, register


@register
class Rotary(Operator):
    """Rotary position embedding on the last ``rotary`` features of each operand.

    ``%q2, %k2 = rotary %q, %k``. Constant ``positions`` [seq]. Half style (Llama); RoFormer, arXiv 2104.09864.
    """

    name = "rotary"
    public = "Rotary"

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"head_dim", "latent"})

    def spaces(self, node: Node, inputs: Sequence[TensorType]) -> tuple[frozenset[str], ...]:
        return tuple(frozenset(t.names) for t in inputs)

    def flops(self, work: Work) -> Number:
        return 6 * sum(work.output_elements(i) for i in range(len(work.node.outputs)))

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        width = shard.attrs["rotary"]
        theta = shard.attrs.get("theta", 10000.0)
        frequency = theta ** (-np.arange(0, width, 2) / width)
        angle = params["positions"][:, None] * frequency
        return [_rotate(x, angle, width) for x in inputs]


def _rotate(x: Array, angle: Array, width: int) -> Array:
    """``x`` is [batch, seq, (heads,) features]; the last ``width`` features turn."""
    shape = (1, angle.shape[0], *([1] * (x.ndim - 3)), angle.shape[1])
    cos, sin = np.cos(angle).reshape(shape), np.sin(angle).reshape(shape)
    plain, turned = x[..., : x.shape[-1] - width], x[..., x.shape[-1] - width :]
    a, b = np.split(turned, 2, axis=-1)
    return np.concatenate([plain, a * cos - b * sin, b * cos + a * sin], axis=-1)


@register
class KVWrite(Operator):
    """Append to the KV cache:  ``%kv1 = kv_write %kv0, %k, %v``  (MLA: ``%kv0, %latent``).

    The cache is ``[batch, context, kv_heads, kv_features]`` (keys, then values) or ``[batch, context, latent]``. Its
    context is
    cut like the new tokens: whoever computes a token's key keeps it.
    """

    name = "kv_write"
    public = "KVWrite"
    kind = Kind.STATE
    shape = "cylinder"
    alias: ClassVar[Mapping[str, str]] = {"seq": "context"}

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"head_dim", "v_dim", "kv_features", "latent"})

    def factor_axes(self, node: Node, inputs: Sequence[TensorType]) -> dict[str, tuple[str, ...]]:
        # The new tokens decide, not the old version.
        return super().factor_axes(node, [*inputs[1:], inputs[0]])

    def hbm_bytes(self, work: Work) -> Number:
        new = sum(t.local_bytes(work.extents, work.mesh) for t in work.input_types[1:])
        stored = _element_bytes(work.node.outputs[0].type) / _element_bytes(work.input_types[1])
        return new * (1 + stored)

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        new = np.concatenate(inputs[1:], axis=-1)
        return [np.concatenate([inputs[0], new], axis=1)]


@register
class KVRead(Operator):
    """The part of the cache that attention needs:  ``%kv = kv_read %kv1``.

    Names what is read; the traffic is charged to Attention, which streams it. With ``window`` (and an uncut context)
    only the last tokens are taken.
    """

    name = "kv_read"
    public = "KVRead"
    kind = Kind.STATE
    cost_class = CostClass.FREE
    shape = "cylinder"

    def whole(self, node: Node) -> frozenset[str]:
        read = node.outputs[0].type
        size = read.dims[read.index("context")].size
        return frozenset({"context"} if isinstance(size, Extent) and size.kind == "window" else ())

    def hbm_bytes(self, work: Work) -> Number:
        return work.output_bytes()

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        keep = len(params["key_positions"])
        return [inputs[0][:, inputs[0].shape[1] - keep :]]


@register
class Attention(Operator):
    """Scaled dot-product attention, causal, optionally windowed and with sinks.

    ``[batch, seq, heads, head_dim] x [batch, context, kv_heads, kv_features] -> [batch, seq, heads, v_dim]``. With
    ``latent=True`` the cache is ``[batch, context, latent]``: one key/value head shared by all query heads, the value
    being the first ``v_dim`` features (absorbed MLA). Constants ``positions`` [seq] and ``key_positions`` [context]
    carry the causal mask, so the order of tokens does not matter. FLOPs count the visible (query, key) pairs, as flash
    kernels do; the pairs of a cut sequence are taken as balanced (zig-zag token order).
    """

    name = "attention"
    public = "Attention"
    cost_class = CostClass.ATTENTION

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        query, cache = inputs
        heads = query.axes_of("heads")
        batch, seq = query.axes_of("batch"), query.axes_of("seq")
        kv_axes = self._kv_axes(query, cache, mesh)
        want_query = Placement((batch, seq, heads, ()))
        per_dim = {"batch": batch, "kv_heads": kv_axes}
        want_cache = Placement(tuple(per_dim.get(d, ()) for d in cache.names))
        consts = {"positions": (seq,), "key_positions": ((),), "sinks": (heads,)}
        params = tuple(p.type.placed(Placement(consts[p.name])) for p in node.params)
        result = node.outputs[0].type.placed(Placement((batch, seq, heads, ())))
        return Inference((want_query, want_cache), params, (result,))

    @staticmethod
    def _kv_axes(query: TensorType, cache: TensorType, mesh: Mesh) -> tuple[str, ...]:
        """Axes that cut the KV heads: those of the query heads, outermost first, while KV heads are left to share out.

        Ranks along the others hold the same KV heads. Ceiling chunks keep a group of query heads beside its KV head
        only where they are even, or where every query head has a KV head of its own.
        """
        heads = query.axes_of("heads")
        if not cache.has("kv_heads"):
            return ()
        count, queries = _heads(cache, "kv_heads"), _heads(query, "heads")
        if count == queries:
            return heads
        even = (
            n for n in range(len(heads), 0, -1) if count % mesh.size(heads[:n]) == queries % mesh.size(heads[:n]) == 0
        )
        return heads[: next(even, 0)]

    def flops(self, work: Work) -> Number:
        q = work.input(0)
        width = q["head_dim" if "head_dim" in q else "latent"] + work.attrs["v_dim"]
        return 2 * q["batch"] * self._pairs(work) * q["heads"] * width

    def _pairs(self, work: Work) -> Number:
        """Visible (query, key) pairs per sequence on one rank, balanced over the ranks that cut the sequence."""
        new, context = work.extents["new"], work.extents["context"]
        window = work.attrs.get("window")
        share = work.input(0)["seq"] / new
        return causal_pairs(new, context - new, window) * share

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        query, cache = inputs
        key, value = _split_cache(cache, query.shape, shard)
        scores = np.einsum("bshd,bchd->bhsc", query, key) * shard.attrs["scale"]
        distance = params["positions"][:, None] - params["key_positions"][None, :]
        hidden = distance < 0
        if shard.attrs.get("window"):
            hidden |= distance >= shard.attrs["window"]
        scores = np.where(hidden, -np.inf, scores)
        sinks = params.get("sinks")
        peak = scores.max(axis=-1, keepdims=True, initial=-np.inf)
        if sinks is not None:
            peak = np.maximum(peak, sinks[None, :, None, None])
        peak = np.where(np.isfinite(peak), peak, 0.0)
        weight = np.exp(scores - peak)
        total = weight.sum(axis=-1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(sinks[None, :, None, None] - peak)
        return [np.einsum("bhsc,bchd->bshd", weight / np.where(total == 0, 1, total), value)]


def _split_cache(cache: Array, query: tuple[int, ...], shard: Shard) -> tuple[Array, Array]:
    """Keys and values with one entry per local query head."""
    heads, width = query[2], query[3]
    v_dim = shard.attrs["v_dim"]
    if shard.attrs.get("latent"):
        shared = np.broadcast_to(cache[:, :, None, :], (*cache.shape[:2], heads, cache.shape[2]))
        return shared, shared[..., :v_dim]
    per_kv_head = shard.global_size("heads", heads) // shard.global_size("kv_heads", cache.shape[2])
    served_by = (shard.start("heads") + np.arange(heads)) // per_kv_head - shard.start("kv_heads")
    repeated = cache[:, :, served_by]
    return repeated[..., :width], repeated[..., width : width + v_dim]


def _heads(t: TensorType, name: str) -> int:
    size = t.dims[t.index(name)].size
    if not isinstance(size, int):
        raise ValueError(f"the number of {name} is no constant")
    return size


def causal_pairs(new: Number, past: Number, window: int | None) -> Number:
    """Visible (query, key) pairs of one sequence: ``sum over j = 1..new of min(past + j, window)``."""
    if window is None:
        return new * past + new * (new + 1) / 2
    growing = np.clip(window - past, 0, new)
    return growing * past + growing * (growing + 1) / 2 + (new - growing) * window


def _element_bytes(t: TensorType) -> float:
    return dtype(t.dtype).bytes
