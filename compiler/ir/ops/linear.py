"""Projections: matrix products over named dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..graph import Node
from ..mesh import Mesh
from ..types import Number, TensorType
from ._base import Array, CostClass, Inference, Operator, Shard, Work, passed_on, register


@register
class Linear(Operator):
    """Several projections of one input:  ``%q, %k, %v = linear %x [wq, wk, wv]``.

    Output i is the input times weight i, summed over the dimensions that both have and the output has not. ``biases``
    names the bias of each output or is empty; a biased output may not be a partial sum.
    """

    name = "linear"
    public = "Linear"
    cost_class = CostClass.GEMM

    def whole(self, node: Node) -> frozenset[str]:
        if not node.attrs.get("biases"):
            return frozenset()
        kept = {d for v in node.outputs for d in v.type.names}
        return frozenset(d for p in node.params for d in p.type.names if d not in kept)

    def weights(self, node: Node) -> tuple[str, ...]:
        """Names of the weights, one per output."""
        biases = node.attrs.get("biases", ())
        return tuple(p.name for p in node.params if p.name not in biases)

    def spaces(self, node: Node, inputs: Sequence[TensorType]) -> tuple[frozenset[str], ...]:
        given = frozenset(inputs[0].names)
        return tuple(given | frozenset(node.param(w).type.names) for w in self.weights(node))

    def flops(self, work: Work) -> Number:
        total: Number = 0
        for index, name in enumerate(self.weights(work.node)):
            total = total + 2 * work.output_elements(index) * self._summed(work, index, name)
        return total

    def depth(self, work: Work) -> Number:
        # all weights share the input, and so what is summed
        return self._summed(work, 0, self.weights(work.node)[0])

    def _summed(self, work: Work, index: int, weight: str) -> Number:
        kept = work.node.outputs[index].type.names
        size: Number = 1
        for dim, extent in work.param(weight).items():
            if dim not in kept:
                size = size * extent
        return size

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        node = shard.node
        biases = node.attrs.get("biases", ())
        results = []
        for index, name in enumerate(self.weights(node)):
            out = node.outputs[index].type.names
            weight_dims = node.param(name).type.names
            # The input has what the output keeps of it, then what the weight sums away.
            given = (*(d for d in out if d not in weight_dims), *(d for d in weight_dims if d not in out))
            value = np.einsum(_spec(given, weight_dims, out), inputs[0], params[name], optimize=True)
            if biases and biases[index]:
                value = value + params[biases[index]]
            results.append(value)
        return results

    def decompose(self, node: Node) -> tuple[Node, ...]:
        if len(node.outputs) == 1:
            return (node,)
        biases = node.attrs.get("biases", ())
        parts = []
        for index, name in enumerate(self.weights(node)):
            bias = (biases[index],) if biases else ()
            params = tuple(p for p in node.params if p.name == name or p.name in bias)
            attrs = {**node.attrs, **({"biases": bias} if biases else {})}
            outputs = node.outputs[index : index + 1]
            parts.append(replace(node, name=f"{node.name}.{name}", outputs=outputs, params=params, attrs=attrs))
        return tuple(parts)


@register
class LMHead(Linear):
    """Logits of the last token of each sequence:  ``%logits = lm_head %x [weight]``."""

    name = "lm_head"
    public = "LMHead"


@register
class LatentExpand(Operator):
    """MLA, naive form: keys and values of every head from the cached latent.

    ``[batch, context, latent] -> [batch, context, kv_heads, kv_features]``, features = (nope + rope) of the key, then
    the value. ``uk`` is [kv_heads, nope_dim, kv_lora], ``uv`` [kv_heads, v_dim, kv_lora]. Source: DeepSeek-V2 report,
    section 2.1.
    """

    name = "latent_expand"
    public = "Linear"
    cost_class = CostClass.GEMM

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"latent", "kv_features", "nope_dim", "v_dim", "kv_lora"})

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        return passed_on(node, inputs, super().infer(node, inputs, mesh))

    def flops(self, work: Work) -> Number:
        tokens = work.input(0)["batch"] * work.input(0)["context"]
        uk, uv = work.param("uk"), work.param("uv")
        return 2 * tokens * uk["kv_heads"] * uk["kv_lora"] * (uk["nope_dim"] + uv["v_dim"])

    def depth(self, work: Work) -> Number:
        return work.param("uk")["kv_lora"]

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        uk, uv = params["uk"], params["uv"]
        latent, rope = np.split(inputs[0], [uk.shape[2]], axis=-1)
        key = np.einsum("bcr,hdr->bchd", latent, uk)
        value = np.einsum("bcr,hdr->bchd", latent, uv)
        shared = np.broadcast_to(rope[:, :, None, :], (*key.shape[:3], rope.shape[-1]))
        return [np.concatenate([key, shared, value], axis=-1)]


@register
class LatentAbsorb(Operator):
    """MLA, absorbed form: the key projection folded into the query.

    ``[batch, seq, heads, nope + rope] -> [batch, seq, heads, kv_lora + rope]``; ``uk`` is [heads, nope_dim, kv_lora].
    """

    name = "latent_absorb"
    public = "Linear"
    cost_class = CostClass.GEMM

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"head_dim", "nope_dim", "kv_lora", "latent"})

    def flops(self, work: Work) -> Number:
        q, uk = work.input(0), work.param("uk")
        return 2 * q["batch"] * q["seq"] * uk["heads"] * uk["nope_dim"] * uk["kv_lora"]

    def depth(self, work: Work) -> Number:
        return work.param("uk")["nope_dim"]

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        nope, rope = np.split(inputs[0], [params["uk"].shape[1]], axis=-1)
        return [np.concatenate([np.einsum("bshd,hdr->bshr", nope, params["uk"]), rope], axis=-1)]


@register
class LatentValue(Operator):
    """MLA, absorbed form: the value projection after attention.

    ``[batch, seq, heads, kv_lora] -> [batch, seq, heads, v_dim]``; ``uv`` is [heads, v_dim, kv_lora].
    """

    name = "latent_value"
    public = "Linear"
    cost_class = CostClass.GEMM

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"v_dim", "kv_lora"})

    def flops(self, work: Work) -> Number:
        return 2 * work.output_elements(0) * work.param("uv")["kv_lora"]

    def depth(self, work: Work) -> Number:
        return work.param("uv")["kv_lora"]

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [np.einsum("bshr,hdr->bshd", inputs[0], params["uv"])]


def _spec(left: Sequence[str], right: Sequence[str], out: Sequence[str]) -> str:
    letters = {d: chr(ord("a") + i) for i, d in enumerate(dict.fromkeys([*left, *right, *out]))}
    a, b, c = ("".join(letters[d] for d in dims) for dims in (left, right, out))
    return f"{a},{b}->{c}"
