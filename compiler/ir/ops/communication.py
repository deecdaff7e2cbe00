"""Collectives, local slices and point-to-point transfers.

Resharding nodes carry ``axes`` (the mesh axes that take part) and the dimensions they move between; every other part
of the placement passes through. They enter a graph only through :mod:`paradag.compiler.ir.reshard`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..graph import Node
from ..mesh import Mesh
from ..types import Number, Placement, TensorType
from ._base import Array, CostClass, Inference, Kind, Operator, Shard, Work, register


class Resharding(Operator):
    """Changes where a value lies, never what it is."""

    kind = Kind.COLLECTIVE
    cost_class = CostClass.NETWORK
    shape = "ellipse"

    def moved(self, node: Node, have: Placement, names: Sequence[str]) -> Placement:
        """Placement after the node.

        Raises:
            ValueError: the operand is not placed as the node needs it.
        """
        raise NotImplementedError

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        have = inputs[0]
        if have.placement.shift and not isinstance(self, RingShift):
            raise ValueError(f"{node.op} of chunks that are on their way round a ring")
        return Inference((have.placement,), (), (have.placed(self.moved(node, have.placement, have.names)),))

    def hbm_bytes(self, work: Work) -> Number:
        return 0


def _drop(node: Node, have: Placement, dim: int) -> tuple[tuple[str, ...], ...]:
    """Shards without the node's axes on ``dim``, of which they must be the innermost."""
    axes = node.attrs["axes"]
    kept = len(have.shards[dim]) - len(axes)
    if kept < 0 or have.shards[dim][kept:] != axes:
        raise ValueError(f"{node.op} over {axes} needs them innermost on the dimension, found {have.shards[dim]}")
    return (*have.shards[:dim], have.shards[dim][:kept], *have.shards[dim + 1 :])


def _cut(node: Node, shards: Sequence[tuple[str, ...]], dim: int) -> tuple[tuple[str, ...], ...]:
    return (*shards[:dim], (*shards[dim], *node.attrs["axes"]), *shards[dim + 1 :])


def _reduced(node: Node, have: Placement) -> Placement:
    missing = set(node.attrs["axes"]) - have.partial_axes
    if missing:
        raise ValueError(f"{node.op} over {node.attrs['axes']}: the value is not partial on {sorted(missing)}")
    return have.without_partial(node.attrs["axes"])


def _unused(node: Node, have: Placement) -> None:
    taken = set(node.attrs["axes"]) & have.used
    if taken:
        raise ValueError(f"{node.op} over {node.attrs['axes']}: {sorted(taken)} already cut the value")


@register
class AllReduce(Resharding):
    """Partial to Replicate:  ``%y = all_reduce %x {axes = (tp)}``."""

    name = "all_reduce"
    public = "AllReduce"

    def moved(self, node: Node, have: Placement, names: Sequence[str]) -> Placement:
        return _reduced(node, have)


@register
class ReduceScatter(Resharding):
    """Partial to Shard:  ``%y = reduce_scatter %x {axes = (tp), to = seq}``."""

    name = "reduce_scatter"
    public = "ReduceScatter"

    def moved(self, node: Node, have: Placement, names: Sequence[str]) -> Placement:
        left = _reduced(node, have)
        return Placement(_cut(node, left.shards, names.index(node.attrs["to"])), left.partial)


@register
class AllGather(Resharding):
    """Shard to Replicate:  ``%y = all_gather %x {axes = (tp), of = seq}``."""

    name = "all_gather"
    public = "AllGather"

    def moved(self, node: Node, have: Placement, names: Sequence[str]) -> Placement:
        return Placement(_drop(node, have, names.index(node.attrs["of"])), have.partial)


@register
class AllToAll(Resharding):
    """Shard(i) to Shard(j):  ``%y = all_to_all %x {axes = (sp), of = (seq), to = heads}``.

    ``of`` names one dimension per axis or one for all of them.
    """

    name = "all_to_all"
    public = "AllToAll"

    def moved(self, node: Node, have: Placement, names: Sequence[str]) -> Placement:
        shards = list(have.shards)
        sources = node.attrs["of"]
        for axis, dim in reversed(list(zip(node.attrs["axes"], sources, strict=True))):
            index = names.index(dim)
            if not shards[index] or shards[index][-1] != axis:
                raise ValueError(f"{node.op}: {axis} does not cut {dim} innermost")
            shards[index] = shards[index][:-1]
        return Placement(_cut(node, shards, names.index(node.attrs["to"])), have.partial)


@register
class Dispatch(AllToAll):
    """The all-to-all that takes routed tokens to the ranks of their experts: Shard(group) to Shard(slot)."""

    name = "dispatch"
    public = "Dispatch"


@register
class Combine(Resharding):
    """The all-to-all that brings the experts' results back: Shard(slot) to Shard(group).

    ``%y = combine %x {axes = (adp, tp), of = slot, to = (group.adp, group.tp)}``.
    """

    name = "combine"
    public = "Combine"

    def moved(self, node: Node, have: Placement, names: Sequence[str]) -> Placement:
        shards = list(_drop(node, have, names.index(node.attrs["of"])))
        for axis, dim in zip(node.attrs["axes"], node.attrs["to"], strict=True):
            index = names.index(dim)
            shards[index] = (*shards[index], axis)
        return Placement(tuple(shards), have.partial)


@register
class Slice(Resharding):
    """Replicate to Shard, a local slice:  ``%y = slice %x {axes = (tp), to = seq}``."""

    name = "slice"
    public = "Split"
    kind = Kind.CONTROL
    cost_class = CostClass.FREE
    shape = "parallelogram"

    def moved(self, node: Node, have: Placement, names: Sequence[str]) -> Placement:
        _unused(node, have)
        return Placement(_cut(node, have.shards, names.index(node.attrs["to"])), have.partial)


@register
class RingShift(Resharding):
    """Every rank sends its chunk ``hops`` ranks on round the ring and takes the one that arrives.

    ``%y = ring_shift %x {axes = (sp), of = context, hops = 1, ring = 4}``. ``axes`` are all those that cut ``of``;
    ``ring`` is the number of their ranks. A collective permute: one node for each ring, whose ranks all send and
    receive at the same time, each to and from one other.
    """

    name = "ring_shift"
    public = "RingShift"

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        ranks = mesh.size(node.attrs["axes"])
        if node.attrs["ring"] != ranks or not 0 < node.attrs["hops"] < ranks:
            raise ValueError(
                f"{node.attrs['hops']} hops in a ring of {node.attrs['ring']}: the group has {ranks} ranks"
            )
        return super().infer(node, inputs, mesh)

    def moved(self, node: Node, have: Placement, names: Sequence[str]) -> Placement:
        dim = names.index(node.attrs["of"])
        if have.shards[dim] != node.attrs["axes"]:
            raise ValueError(f"{node.op} over {node.attrs['axes']} of {node.attrs['of']} cut by {have.shards[dim]}")
        shift = list(have.shift or (0,) * len(names))
        shift[dim] = (shift[dim] + node.attrs["hops"]) % node.attrs["ring"]
        return Placement(have.shards, have.partial, tuple(shift))


class _Transfer(Operator):
    kind = Kind.P2P
    cost_class = CostClass.NETWORK
    shape = "ellipse"

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        return Inference(tuple(t.placement for t in inputs), (), tuple(inputs[: len(node.outputs)]))

    def hbm_bytes(self, work: Work) -> Number:
        return 0

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return list(inputs[: len(shard.node.outputs)])


@register
class Send(_Transfer):
    """To the same position of the next stage:  ``%wire = send %x``. The last stage sends sampled ids to the first."""

    name = "send"
    public = "Send"


@register
class Recv(_Transfer):
    """From the same position of the stage before:  ``%x = recv %wire``. Takes no time of its own."""

    name = "recv"
    public = "Recv"


@register
class KVSend(_Transfer):
    """The KV cache of a layer leaves the prefill pool:  ``kv_send %kv {transfer = "kv"}``."""

    name = "kv_send"
    public = "KVTransfer"


@register
class KVRecv(_Transfer):
    """The KV cache of a layer arrives in the decode pool:  ``%kv = kv_recv {transfer = "kv"}``."""

    name = "kv_recv"
    public = "KVTransfer"

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        axes = self.factor_axes(node, [])
        results = tuple(v.type.placed(Placement(self._shards(v.type, axes))) for v in node.outputs)
        return Inference((), (), results)
