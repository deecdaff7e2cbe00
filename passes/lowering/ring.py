"""Ring attention: the one Attention of a layer as partial attentions over blocks that travel, and their merges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...compiler.ir.graph import Block, Node, Value, fresh_name
from ...compiler.ir.ops import Resharding, operator
from ...compiler.ir.types import TensorType, tensor


def ring_attention(block: Block, axes: tuple[str, ...], ranks: int) -> Block:
    """The block with attention as a ring over ``axes``; unchanged where it has no Attention.

    Hop k attends to the block of keys and values that began k ranks before, and merges its state with what is there.
    Which block a hop wants is said by the placements of its operands, so that the ring shifts follow from them. A
    latent cache travels as it is, and every hop expands what it got with the weights of the first. Sinks are counted
    at hop 0, once.
    """
    attention = next((n for n in block.nodes if n.op == "attention"), None)
    if attention is None:
        return block
    query, cache = (_before_resharding(block, value) for value in attention.inputs)
    attention = replace(attention, inputs=(query, cache))
    maker = block.producers.get(cache)
    expand = maker if maker is not None and maker.op == "latent_expand" else None
    nodes: list[Node] = []
    for node in block.nodes:
        if node.name == attention.name:
            nodes += _Ring(block, attention, expand, axes, ranks).nodes()
        elif node is not expand:
            nodes.append(node)
    return replace(block, nodes=tuple(nodes))


def _before_resharding(block: Block, value: str) -> str:
    """The value that a resharded value carries; its wishes are stated anew."""
    producers = block.producers
    while value in producers and isinstance(operator(producers[value]), Resharding):
        value = producers[value].inputs[0]
    return value


class _Ring:
    """Makes the nodes of one ring."""

    def __init__(self, block: Block, attention: Node, expand: Node | None, axes: tuple[str, ...], ranks: int) -> None:
        self.attention = attention
        self.expand = expand
        self.axes = axes
        self.ranks = ranks
        self.names = set(block.types)
        self.query, self.cache = attention.inputs
        self.output = attention.outputs[0]

    def nodes(self) -> list[Node]:
        nodes: list[Node] = []
        merged = ""
        for hop in range(self.ranks):
            partial = list(self._hop(hop))
            nodes += partial
            state = partial[-1].outputs[0].name
            if hop:
                nodes.append(self._merge(hop, merged, state))
            merged = nodes[-1].outputs[0].name
        return nodes

    def _hop(self, hop: int) -> Iterator[Node]:
        """The partial attention of a hop, behind the expansion of the latent block where there is one."""
        cache = self.cache
        if self.expand is not None:
            expanded = self._expanded(self.expand, hop)
            cache = expanded.outputs[0].name
            yield expanded
        attrs = {**self.attention.attrs, "hop": hop, "ring": self.ranks}
        # nobody holds the key of a sink, so only one of the states may have it in its denominator
        params = tuple(p for p in self.attention.params if p.const or not hop)
        yield replace(
            self.attention,
            name=f"{self.attention.name}_hop{hop}",
            op="attention_partial",
            inputs=(self.query, cache),
            outputs=(self._state(f"{self.output.name}_hop{hop}"),),
            params=params,
            attrs=attrs,
            constraints={"seq": self.axes, "context": self.axes},
            origin="sp",
        )

    def _expanded(self, expand: Node, hop: int) -> Node:
        constraints = {**expand.constraints, "context": self.axes}
        if not hop:
            return replace(expand, constraints=constraints)
        name = fresh_name(f"{expand.outputs[0].name}_hop{hop}", self.names)
        return replace(
            expand,
            name=f"{expand.name}_hop{hop}",
            outputs=(Value(name, expand.outputs[0].type),),
            attrs={**expand.attrs, "hop": hop, "weights_of": expand.name},
            constraints=constraints,
            origin="sp",
        )

    def _merge(self, hop: int, before: str, state: str) -> Node:
        last = hop == self.ranks - 1
        return replace(
            self.attention,
            name=f"{self.attention.name}_merge{hop}",
            op="attention_merge",
            inputs=(before, state),
            outputs=(self.output if last else self._state(f"{self.output.name}_merge{hop}"),),
            params=(),
            attrs={},
            constraints={},
            origin="sp",
        )

    def _state(self, name: str) -> Value:
        return Value(fresh_name(name, self.names), state_type(self.output.type))


def state_type(output: TensorType) -> TensorType:
    """Type of the attention state whose output is of the given type: one feature more, and in 32 bits."""
    *dims, width = output.dims
    assert isinstance(width.size, int)
    return tensor("fp32", *((d.name, d.size) for d in dims), ("state", width.size + 1))
