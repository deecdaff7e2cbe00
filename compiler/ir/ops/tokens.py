"""From token ids to hidden states and back, and the nodes that begin and end a phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..graph import Node
from ..types import Number
from ._base import Array, CostClass, Kind, Operator, Shard, Work, register


@register
class Embedding(Operator):
    """Table look-up:  ``%x = embedding %ids [table]``; a cut vocabulary gives Partial(sum)."""

    name = "embedding"
    public = "Embedding"

    def hbm_bytes(self, work: Work) -> Number:
        return work.input_bytes() + 2 * work.output_bytes()

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        table = params["table"]
        local = inputs[0].astype(int) - shard.start("vocab")
        held = (local >= 0) & (local < len(table))
        if not len(table):
            return [np.zeros((*local.shape, table.shape[1]))]
        return [np.where(held[..., None], table[np.clip(local, 0, len(table) - 1)], 0.0)]


@register
class LastToken(Operator):
    """The last token of every sequence:  ``%y = last_token %x``, ``[batch, seq, hidden] -> [batch, hidden]``.

    Whoever does not hold it gives zeros, so a cut sequence makes the result Partial(sum).
    """

    name = "last_token"
    public = "Split"
    kind = Kind.CONTROL
    shape = "parallelogram"

    def hbm_bytes(self, work: Work) -> Number:
        return 2 * work.output_bytes()

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        is_last = params["positions"] == params["last_position"]
        return [np.einsum("bsh,s->bh", inputs[0], is_last.astype(inputs[0].dtype))]


@register
class Sample(Operator):
    """Greedy choice of the next token:  ``%ids = sample %logits``, ``[batch, vocab] -> [batch]``."""

    name = "sample"
    public = "Sample"

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"vocab"})

    def flops(self, work: Work) -> Number:
        return work.input_elements(0)

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [inputs[0].argmax(axis=-1)]


class _Control(Operator):
    kind = Kind.CONTROL
    cost_class = CostClass.FREE

    def hbm_bytes(self, work: Work) -> Number:
        return 0


@register
class PrefillBegin(_Control):
    """A micro-batch enters:  ``%prompt = prefill_begin``, its token ids ``[batch, prompt]``."""

    name = "prefill_begin"
    public = "PrefillBegin"

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [params["prompt"]]


@register
class TakeTokens(_Control):
    """The tokens of this chunk, in the order of ``positions``:  ``%ids, %rest = take_tokens %prompt``."""

    name = "take_tokens"
    public = "Split"
    shape = "parallelogram"

    def whole(self, node: Node) -> frozenset[str]:
        return frozenset({"prompt"})

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [inputs[0][:, params["positions"].astype(int)], inputs[0]]


@register
class PrefillEnd(_Control):
    """A micro-batch leaves with its first tokens:  ``%first = prefill_end %ids``."""

    name = "prefill_end"
    public = "PrefillEnd"

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [inputs[0]]


@register
class ChunkEnd(_Control):
    """An early chunk ends; its hidden states are not needed:  ``chunk_end %x``."""

    name = "chunk_end"
    public = "Aggregate"
    shape = "parallelogram"

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return []


@register
class DecodeStepBegin(_Control):
    """A decode step of a micro-batch begins with one token per sequence:  ``%ids = decode_begin %previous``."""

    name = "decode_begin"
    public = "DecodeStepBegin"

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [inputs[0][:, None]]


@register
class DecodeStepEnd(_Control):
    """A decode step of a micro-batch ends:  ``%next = decode_end %ids``."""

    name = "decode_end"
    public = "DecodeStepEnd"

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        return [inputs[0]]


def is_phase_node(node: Node) -> bool:
    """Whether the node begins or ends a phase."""
    return node.op in {"prefill_begin", "prefill_end", "decode_begin", "decode_end"}
