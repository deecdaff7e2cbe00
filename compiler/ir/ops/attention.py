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
from ._rotary import frequencies, rotate


@register
class Rotary(Operator):
    """Rotary position embedding on the last ``rotary`` features of each operand, with ``leading`` on the first.

    ``%q2, %k2 = rotary %q, %k``. Constant ``positions`` [seq]. RoFormer, arXiv 2104.09864. Attributes, each only where
    it is not the default: ``theta`` (10000), ``style`` (``half``: pairs (i, i + rotary / 2) as in Llama;
    ``interleaved``: pairs (2i, 2i + 1)), ``amplitude`` (1; factor on what turns), ``scaling`` (``yarn``, ``llama3`` or
    ``linear``) with its ``factor`` and the fields of its spec class.
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
        angle = params["positions"][:, None] * frequencies(shard.attrs)
        return [rotate(x, angle, shard.attrs) for x in inputs]


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
        where = node.constraints
        heads = where.get("heads", query.axes_of("heads"))
        batch, seq = (tuple(a for a in where.get(d, query.axes_of(d)) if a not in heads) for d in ("batch", "seq"))
        kv_axes = self.kv_axes(query, cache, heads, mesh)
        want_query = Placement((batch, seq, heads, ()))
        per_dim = {"batch": batch, "kv_heads": kv_axes}
        want_cache = Placement(tuple(per_dim.get(d, ()) for d in cache.names))
        consts = {"positions": (seq,), "key_positions": ((),), "sinks": (heads,)}
        params = tuple(p.type.placed(Placement(consts[p.name])) for p in node.params)
        result = node.outputs[0].type.placed(Placement((batch, seq, heads, ())))
        return Inference((want_query, want_cache), params, (result,))

    def kv_axes(self, query: TensorType, cache: TensorType, heads: tuple[str, ...], mesh: Mesh) -> tuple[str, ...]:
        """Axes that cut the KV heads, see :func:`kv_head_axes`."""
        return kv_head_axes(query, cache, heads, mesh)

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
        return [attend(shard, inputs, params)[0]]


def kv_head_axes(query: TensorType, cache: TensorType, heads: tuple[str, ...], mesh: Mesh) -> tuple[str, ...]:
    """Axes that cut the KV heads: those of the query heads, outermost first, while KV heads are left to share out.

    Ranks along the others hold the same KV heads. Ceiling chunks keep a group of query heads beside its KV head only
    where they are even, or where every query head has a KV head of its own.

    Args:
        query: Type of the queries.
        cache: Type of the keys and values.
        heads: Axes that cut the query heads.
        mesh: The ranks.
    """
    if not cache.has("kv_heads"):
        return ()
    count, queries = _heads(cache, "kv_heads"), _heads(query, "heads")
    if count == queries:
        return heads
    even = (n for n in range(len(heads), 0, -1) if count % mesh.size(heads[:n]) == queries % mesh.size(heads[:n]) == 0)
    return heads[: next(even, 0)]


def attend(
    shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array], unseen: Array | None = None
) -> tuple[Array, Array]:
    """Attention of a query over a cache.

    Args:
        shard: Where the rank is.
        inputs: Query and cache.
        params: ``positions``, ``key_positions`` and, where sinks are counted, ``sinks``.
        unseen: [seq, context] mask of further pairs that do not count.

    Returns:
        Output [batch, seq, heads, v_dim], and the logarithm of the softmax denominator [batch, seq, heads].
    """
    query, cache = inputs
    key, value = _split_cache(cache, query.shape, shard)
    scores = np.einsum("bshd,bchd->bhsc", query, key) * shard.attrs["scale"]
    distance = params["positions"][:, None] - params["key_positions"][None, :]
    hidden = distance < 0
    if shard.attrs.get("window"):
        hidden |= distance >= shard.attrs["window"]
    if unseen is not None:
        hidden |= unseen
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
    output = np.einsum("bhsc,bchd->bshd", weight / np.where(total == 0, 1, total), value)
    with np.errstate(divide="ignore"):
        return output, np.moveaxis((np.log(total) + peak)[..., 0], 1, 2)


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
