"""Mixture of experts: routing, the expert FFN, and the way back.

Routed tokens are ``[group.<axis> ..., slot, rows, hidden]``: one group per token shard (one dimension per mesh axis
that cuts the tokens), the expert slots (redundant experts included), and the rows of the group. In numpy every slot
has a row for every token of the group, zero where the token does not visit the slot; costs use the expected share
``density = top_k / slots``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..graph import Node
from ..mesh import Mesh
from ..types import Dim, Extent, Number, Placement, TensorType
from ._base import Array, CostClass, Inference, Kind, Operator, Shard, Work, register
from .elementwise import gated

GROUP = "group."


@register
class Router(Operator):
    """Scores and choice of experts:  ``%choice = router %x [weight]``.

    ``[batch, seq, hidden] -> [batch, seq, 2, top_k]``. The result holds expert indices and weights. ``router`` is
    ``softmax`` (softmax, top-k, renormalise: Mixtral, Qwen3-MoE), ``topk_softmax`` (top-k, then softmax: gpt-oss) or
    ``sigmoid`` (DeepSeek-V3: correction bias for the choice only, groups scored by their two best, uncorrected
    weights, renormalised). All weights are scaled by ``scale``.
    """

    name = "router"
    public = "Router"
    cost_class = CostClass.GEMM
    shape = "parallelogram"

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"experts", "hidden", "pair", "top_k"})

    def flops(self, work: Work) -> Number:
        return 2 * work.input_elements(0) * work.param("weight")["experts"]

    def depth(self, work: Work) -> Number:
        return work.param("weight")["hidden"]

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        attrs = shard.attrs
        logits = np.einsum("bsh,he->bse", inputs[0], params["weight"])
        if "bias" in params:
            logits = logits + params["bias"]
        k = attrs["top_k"]
        if attrs["router"] == "topk_softmax":
            index = _top(logits, k)
            weight = _softmax(np.take_along_axis(logits, index, -1)) * attrs.get("scale", 1.0)
            return [np.stack([index.astype(weight.dtype), weight], axis=2)]
        scores = _softmax(logits) if attrs["router"] == "softmax" else 1 / (1 + np.exp(-logits))
        corrected = scores + params["correction"] if "correction" in params else scores
        index = _top(_mask_groups(corrected, attrs.get("groups", 1), attrs.get("top_groups", 1)), k)
        weight = np.take_along_axis(scores, index, -1)
        if attrs.get("renormalize", True):
            weight = weight / (weight.sum(-1, keepdims=True) + 1e-20)
        weight = weight * attrs.get("scale", 1.0)
        return [np.stack([index.astype(weight.dtype), weight], axis=2)]


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True, initial=-np.inf))
    shares: Array = e / e.sum(-1, keepdims=True)
    return shares


def _top(x: Array, k: int) -> Array:
    return np.argsort(-x, axis=-1, kind="stable")[..., :k]


def _mask_groups(scores: Array, groups: int, keep: int) -> Array:
    if groups == 1:
        return scores
    shape = scores.shape
    grouped = scores.reshape(*shape[:-1], groups, shape[-1] // groups)
    best = np.sort(grouped, axis=-1)[..., -2:].sum(-1)
    chosen = np.zeros(best.shape, dtype=bool)
    np.put_along_axis(chosen, _top(best, keep), True, -1)
    return np.where(chosen[..., None], grouped, -np.inf).reshape(shape)


def routed_type(
    x: TensorType, slots: int, top_k: int, batch: tuple[str, ...], new: tuple[str, ...], mesh: Mesh
) -> TensorType:
    """Type of routed tokens whose batch and sequence are cut by the given axes."""
    axes = (*batch, *new)
    dims = (
        *(Dim(f"{GROUP}{a}", mesh.size((a,))) for a in axes),
        Dim("slot", slots),
        Dim("rows", Extent("rows", batch_axes=batch, new_axes=new)),
        x.dims[x.index("hidden")],
    )
    shards = (*((a,) for a in axes), (), (), ())
    return TensorType(x.dtype, dims, Placement(shards), density=min(1.0, top_k / slots))


@register
class Route(Operator):
    """Sort tokens by expert slot:  ``%rows = route %x, %choice``. A local permutation, no communication.

    Slot s holds expert s, or, past the last expert, a further copy of expert ``(s - experts) % experts``; a token
    takes the copy that its row number picks.
    """

    name = "route"
    public = "Split"
    kind = Kind.CONTROL
    shape = "parallelogram"

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        x = inputs[0]
        batch = node.constraints.get("batch", x.axes_of("batch"))
        new = node.constraints.get("seq", x.axes_of("seq"))
        result = routed_type(x, node.attrs["slots"], node.attrs["top_k"], batch, new, mesh)
        # The rows may travel in a narrower format than the stream.
        result = replace(result, dtype=node.outputs[0].type.dtype)
        wants = (Placement((batch, new, ())), Placement((batch, new, (), ())))
        return Inference(wants, (), (result,))

    def hbm_bytes(self, work: Work) -> Number:
        return work.input_bytes() + work.output_bytes()

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        x, choice = inputs
        count = x.shape[0] * x.shape[1]
        tokens = x.reshape(count, x.shape[-1])
        index = choice[:, :, 0].reshape(count, choice.shape[-1])
        visits = _visits(index, shard.attrs["experts"], shard.attrs["slots"])
        rows = visits.T[:, :, None] * tokens[None]
        return [rows.reshape((1,) * (len(shard.node.outputs[0].type.dims) - 3) + rows.shape)]


def _visits(index: Array, experts: int, slots: int) -> Array:
    """[tokens, slots]: 1 where the token visits the slot."""
    copies = [range(e, slots, experts) for e in range(experts)]
    visits = np.zeros((len(index), slots))
    for row, chosen in enumerate(index.astype(int)):
        for expert in chosen:
            if not copies[expert]:
                raise ValueError(f"a token goes to expert {expert} of {experts}, which has none of the {slots} slots")
            visits[row, copies[expert][row % len(copies[expert])]] = 1
    return visits


@register
class Expert(Operator):
    """The expert FFN of every slot:  ``%y = expert %rows [gate, up, down]``, a grouped GEMM.

    Weights are ``[slot, hidden, expert_ffn]`` and ``[slot, expert_ffn, hidden]``. Cutting ``expert_ffn`` (expert TP)
    makes the result Partial(sum), and then the down bias must be partial itself: held by one rank, zero on the others.
    Memory traffic counts the distinct slots hit, ``slots * (1 - (1 - top_k / slots) ** tokens)`` under uniform routing.
    """

    name = "expert"
    public = "Expert"
    cost_class = CostClass.GROUPED_GEMM
    linear_in = ()

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        axes = self.factor_axes(node, inputs)
        wants = (self._want(0, inputs[0], axes),)
        result = replace(inputs[0], dtype=node.outputs[0].type.dtype).placed(Placement(wants[0].shards, _summed(axes)))
        return Inference(wants, self._param_types(node, axes), (result,))

    def _param_types(self, node: Node, axes: Mapping[str, tuple[str, ...]]) -> tuple[TensorType, ...]:
        types = super()._param_types(node, axes)
        return tuple(
            t.placed(replace(t.placement, partial=_summed(axes))) if p.name == "down_bias" else t
            for p, t in zip(node.params, types, strict=True)
        )

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"rows", "hidden"})

    def flops(self, work: Work) -> Number:
        return 6 * work.input_elements(0) * work.param("gate")["expert_ffn"]

    def slots_hit(self, work: Work) -> Number:
        """Expected distinct slots of one rank that any token visits."""
        rows = work.input(0)
        tokens: Number = rows["rows"]
        for dim, size in rows.items():
            if dim.startswith(GROUP):
                tokens = tokens * size
        return rows["slot"] * (1 - (1 - work.input_types[0].density) ** tokens)

    def hbm_bytes(self, work: Work) -> Number:
        share = self.slots_hit(work) / work.input(0)["slot"]
        return work.input_bytes() + work.output_bytes() + work.param_bytes() * share

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        x = inputs[0]
        visited = (x != 0).any(axis=-1, keepdims=True)
        gate = np.einsum("...srh,shf->...srf", x, params["gate"])
        up = np.einsum("...srh,shf->...srf", x, params["up"])
        if "gate_bias" in params:
            gate = gate + params["gate_bias"][:, None, :]
            up = up + params["up_bias"][:, None, :]
        y = np.einsum("...srf,sfh->...srh", gated(gate, up, shard.attrs.get("form", "silu")), params["down"])
        if "down_bias" in params:
            y = y + params["down_bias"][:, None, :]
        return [np.where(visited, y, 0.0)]


def _summed(axes: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, str], ...]:
    return tuple((a, "sum") for a in sorted(axes.get("expert_ffn", ())))


@register
class Unroute(Operator):
    """Weighted sum of the experts' results, back in token order:  ``%y = unroute %rows, %choice``."""

    name = "unroute"
    public = "Aggregate"
    kind = Kind.CONTROL
    shape = "parallelogram"
    linear_in = (0,)

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        rows = inputs[0]
        shards = tuple((d.removeprefix(GROUP),) if d.startswith(GROUP) else () for d in rows.names)
        cut = {a for s in shards for a in s}
        partial = tuple(p for p in rows.placement.partial if p[1] == "sum" and p[0] not in cut)
        group = rows.dims[rows.index("rows")].size
        if not isinstance(group, Extent):
            raise ValueError("the rows do not say how the tokens are grouped")
        tokens = (group.batch_axes, group.new_axes)
        result = node.outputs[0].type.placed(Placement((*tokens, ()), partial))
        return Inference((Placement(shards, partial), Placement((*tokens, (), ()))), (), (result,))

    def flops(self, work: Work) -> Number:
        return 2 * work.input_elements(0)

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        rows, choice = inputs
        batch, seq = choice.shape[0], choice.shape[1]
        hidden = rows.shape[-1]
        rows = rows.reshape(rows.shape[-3:])
        index, weight = (choice[:, :, i].reshape(batch * seq, choice.shape[-1]) for i in (0, 1))
        experts, slots = shard.attrs["experts"], shard.attrs["slots"]
        out = np.zeros((batch * seq, hidden))
        for k in range(index.shape[1]):
            slot = _visits(index[:, k : k + 1], experts, slots).argmax(axis=1)
            out += weight[:, k : k + 1] * rows[slot, np.arange(batch * seq)]
        return [out.reshape(batch, seq, hidden)]
