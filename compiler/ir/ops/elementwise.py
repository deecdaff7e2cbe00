"""Norms, additions and activations: memory-bound operators over the residual stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...spec.model import NORM_EPSILON
from ..graph import Node
from ..mesh import Mesh
from ..types import Number, Placement, TensorType
from ._base import Array, Inference, Operator, Shard, Work, register


@register
class Norm(Operator):
    """RMSNorm over the first features of the last dimension:  ``%y = norm %x [weight]`` (arXiv 1910.07467).

    ``eps``, added to the mean square, is 1e-6 where it is not given.
    """

    name = "norm"
    public = "Norm"

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({node.outputs[0].type.names[-1]})

    def flops(self, work: Work) -> Number:
        return 4 * work.output_elements(0)

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        weight = params["weight"]
        head, rest = np.split(inputs[0], [weight.shape[-1]], axis=-1)
        scale = 1 / np.sqrt((head * head).mean(axis=-1, keepdims=True) + _epsilon(shard))
        return [np.concatenate([head * scale * weight, rest], axis=-1)]


def _epsilon(shard: Shard) -> float:
    return float(shard.attrs.get("eps", NORM_EPSILON))


@register
class SquareSum(Operator):
    """Sum of squares over heads and features, the part of a norm over all heads that needs every rank.

    ``[batch, seq, heads, head_dim] -> [batch, seq]``; Partial(sum) where heads are cut.
    """

    name = "square_sum"
    public = "Norm"

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"head_dim"})

    def flops(self, work: Work) -> Number:
        return 2 * work.input_elements(0)

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [(inputs[0] ** 2).sum(axis=(2, 3))]


@register
class ScaleByRoot(Operator):
    """The rest of a norm over all heads:  ``%y = scale_by_root %x, %squares [weight] {width = ...}``.

    ``width`` is heads times head_dim, the number of squares in the sum; ``eps`` as in ``norm``.
    """

    name = "scale_by_root"
    public = "Norm"

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"head_dim"})

    def flops(self, work: Work) -> Number:
        return 2 * work.output_elements(0)

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        scale = 1 / np.sqrt(inputs[1] / shard.attrs["width"] + _epsilon(shard))
        return [inputs[0] * scale[:, :, None, None] * params["weight"]]


@register
class Activation(Operator):
    """Gated activation:  ``%y = activation %gate, %up``, ``silu(gate) * up`` (SwiGLU, arXiv 2002.05202).

    ``form = clamped`` is gpt-oss's: gate at most 7, up within +-7, ``(up + 1) * gate * sigmoid(1.702 gate)``.
    """

    name = "activation"
    public = "Activation"

    def flops(self, work: Work) -> Number:
        return 5 * work.output_elements(0)

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [gated(inputs[0], inputs[1], shard.attrs.get("form", "silu"))]


def gated(gate: Array, up: Array, form: str) -> Array:
    """The gated activation of that form, see :class:`Activation`."""
    if form == "clamped":
        gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
        clamped: Array = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
        return clamped
    silu: Array = gate / (1 + np.exp(-gate)) * up
    return silu


@register
class Add(Operator):
    """Sum of two values:  ``%y = add %a, %b``.

    Partial sums over the same axes stay partial (reduced once, after the addition). Otherwise the first operand's cut
    decides,
    and an axis on which it is partial while the second is cut becomes a cut: a reduce-scatter instead of an all-reduce.
    """

    name = "add"
    public = "Add"
    linear_in = (0, 1)

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        first, second = (t.placement for t in inputs)
        want = self._common(first, second)
        return Inference((want, want), (), (node.outputs[0].type.placed(want),))

    @staticmethod
    def _common(first: Placement, second: Placement) -> Placement:
        kept = tuple(p for p in first.partial if p in second.partial and p[1] == "sum")
        reduced = first.partial_axes - {a for a, _ in kept}
        shards = tuple(
            (*mine, *(a for a in theirs[len(mine) :] if a in reduced)) if theirs[: len(mine)] == mine else mine
            for mine, theirs in zip(first.shards, second.shards, strict=True)
        )
        cut = {a for axes in shards for a in axes}
        return replace(first, shards=shards, partial=tuple(p for p in kept if p[0] not in cut))

    def flops(self, work: Work) -> Number:
        return work.output_elements(0)

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [inputs[0] + inputs[1]]


@register
class BiasAdd(Operator):
    """Bias of a projection whose input dimension may be cut:  ``%y = bias_add %x [bias]``.

    Not linear: on a partial sum the bias would be added once per rank.
    """

    name = "bias_add"
    public = "Add"

    def flops(self, work: Work) -> Number:
        return work.output_elements(0)

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [inputs[0] + params["bias"]]
