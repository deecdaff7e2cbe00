"""The IR: blocks of nodes, each node repeated over an iteration space.

A graph is a chain of blocks: a prologue, one block per *distinct* layer (repeated over its set of layers), boundaries
between pipeline stages, an epilogue. Values are local to a block and named; what crosses from one repetition to the
next enters through a block argument: the stream from the layer before, a KV version from the chunk or step before, ids
from the step before. Everything is immutable: a pass builds new blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from .mesh import Mesh
from .types import Number, TensorType

Phase = Literal["prefill", "decode"]
LEVELS = ("logical", "pp", "sp", "ep", "tp")

ItemMask = Literal["all", "first", "last", "early"]
StepMask = Literal["all", "first", "later", "early"]


@dataclass(frozen=True)
class Value:
    """An SSA value of a block."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Param:
    """A tensor that a node owns: a weight, or (``const``) a table that every rank can compute, such as positions.

    ``owner`` names the weight across blocks that share it (a tied embedding).
    """

    name: str
    type: TensorType
    const: bool = False


@dataclass(frozen=True)
class Node:
    """One operator, repeated over its iteration space.

    Attributes:
        name: Unique in its block.
        op: Name in the operator registry.
        inputs: Names of the values it takes.
        outputs: The values it gives.
        params: Weights and constants.
        attrs: Static attributes; values are numbers, strings or tuples of them.
        module: Part of the model: embedding, attention, ffn, moe, head, control.
        view: Which named axes it is repeated over: attention (adp, sp, tp) or expert (edp, ep, etp).
        constraints: Axes that must cut a dimension, set by a pass: dimension name to atomic axes.
        items: Which chunks of a micro-batch have it: ``early`` all but the last.
        steps: Which decode steps have it: ``later`` all but the first, ``early`` all but the last.
        origin: Pass that inserted it, or empty for nodes of the logical graph.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[Value, ...] = ()
    params: tuple[Param, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    module: str = "control"
    view: Literal["attention", "expert"] = "attention"
    constraints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    items: ItemMask = "all"
    steps: StepMask = "all"
    origin: str = ""

    def param(self, name: str) -> Param:
        """The parameter of that name.

        Raises:
            KeyError: the node has none.
        """
        for p in self.params:
            if p.name == name:
                return p
        raise KeyError(name)


@dataclass(frozen=True)
class Arg:
    """A block argument: what enters from another repetition.

    Attributes:
        value: Name and type inside the block.
        carry: ``layer`` the stream from the layer before; ``version`` the value ``source`` of this block at the chunk
            or step before; ``step`` the value ``source`` of the epilogue at the step before.
        source: See ``carry``.
        init: Value of this block that stands in where there is no repetition before, or empty.
    """

    value: Value
    carry: Literal["layer", "version", "step"]
    source: str = ""
    init: str = ""


@dataclass(frozen=True)
class Block:
    """A straight line of nodes, repeated over ``layers`` (layer blocks) or stage boundaries.

    ``layers`` of a boundary holds the first layers of the later stages; prologue and epilogue have none.
    """

    name: str
    role: Literal["prologue", "layer", "boundary", "epilogue"]
    layers: tuple[int, ...] = ()
    args: tuple[Arg, ...] = ()
    nodes: tuple[Node, ...] = ()
    result: str = ""

    @cached_property
    def types(self) -> dict[str, TensorType]:
        """Types of all values of the block."""
        known = {a.value.name: a.value.type for a in self.args}
        known.update((v.name, v.type) for n in self.nodes for v in n.outputs)
        return known

    @cached_property
    def producers(self) -> dict[str, Node]:
        return {v.name: n for n in self.nodes for v in n.outputs}

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            KeyError: the block has none.
        """
        for n in self.nodes:
            if n.name == name:
                return n
        raise KeyError(name)

    def map_nodes(self, change: Callable[[Node], Node]) -> Block:
        nodes = tuple([change(n) for n in self.nodes])
        same = all(after is before for after, before in zip(nodes, self.nodes, strict=True))
        return self if same else replace(self, nodes=nodes)


@dataclass(frozen=True)
class Item:
    """One trip through the pipeline: a micro-batch, or one chunk of it.

    Attributes:
        microbatch: Number of the micro-batch.
        chunk: Number of the chunk in it.
        batch: Sequences (over all attention-DP groups of the replica).
        new: New tokens per sequence.
        past: Tokens per sequence already in the KV cache before the first step.
        first: First chunk of its micro-batch.
        last: Last chunk of its micro-batch.
    """

    microbatch: int
    chunk: int
    batch: int
    new: int
    past: int
    first: bool = True
    last: bool = True


@dataclass(frozen=True)
class Graph:
    """One phase of one strategy.

    Attributes:
        name: Name of the input.
        phase: prefill or decode.
        level: How far it is lowered: logical, pp, sp, ep or tp.
        mesh: The ranks.
        items: Trips through the pipeline in the order they enter it.
        steps: Decode steps in the chain (1 for prefill).
        stages: Layers of each pipeline stage.
        blocks: Prologue, layer blocks, boundary, epilogue.
        stream: Type of the value that runs from layer to layer.
        meta: Facts for reports (model, token order, redundant experts), as plain values.
    """

    name: str
    phase: Phase
    level: str
    mesh: Mesh
    items: tuple[Item, ...]
    steps: int
    stages: tuple[int, ...]
    blocks: tuple[Block, ...]
    stream: TensorType
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        return sum(self.stages)

    @cached_property
    def stage_of_layer(self) -> tuple[int, ...]:
        return tuple(s for s, count in enumerate(self.stages) for _ in range(count))

    @cached_property
    def stage_starts(self) -> tuple[int, ...]:
        """First layer of each stage."""
        return tuple(accumulate((0, *self.stages[:-1])))

    def block(self, name: str) -> Block:
        for b in self.blocks:
            if b.name == name:
                return b
        raise KeyError(name)

    def with_role(self, role: str) -> tuple[Block, ...]:
        return tuple(b for b in self.blocks if b.role == role)

    def nodes(self) -> Iterator[tuple[Block, Node]]:
        for block in self.blocks:
            for node in block.nodes:
                yield block, node

    def extents(self) -> dict[str, Number]:
        """``batch``, ``new`` and ``context`` as arrays of shape [steps, items]."""
        batch = np.array([[i.batch for i in self.items]], dtype=np.int64)
        new = np.array([[i.new for i in self.items]], dtype=np.int64)
        past = np.array([[i.past for i in self.items]], dtype=np.int64)
        step = np.arange(self.steps, dtype=np.int64)[:, None]
        shape = (self.steps, len(self.items))
        return {
            "batch": np.broadcast_to(batch, shape),
            "new": np.broadcast_to(new, shape),
            "context": past + new + step,
        }

    def map_blocks(self, change: Callable[[Block], Block]) -> Graph:
        return replace(self, blocks=tuple(change(b) for b in self.blocks))

    def map_nodes(self, change: Callable[[Node], Node]) -> Graph:
        """The graph with every node replaced by ``change(node)``."""
        return self.map_blocks(lambda b: b.map_nodes(change))

    def stages_of(self, block: Block, node: Node) -> np.ndarray:
        """Pipeline stage of the node in each repetition of its block: one entry per layer, or one entry."""
        if block.role == "prologue":
            return np.zeros(1, dtype=np.int32)
        if block.role == "epilogue":
            return np.full(1, len(self.stages) - 1, dtype=np.int32)
        stages = np.array(self.stage_of_layer, dtype=np.int32)[list(block.layers)]
        return stages - 1 if block.role == "boundary" and node.op == "send" else stages


def fresh_name(base: str, taken: Iterable[str]) -> str:
    """``base``, or ``base_2``, ``base_3`` ... whichever is not taken."""
    used = set(taken)
    if base not in used:
        return base
    number = 2
    while f"{base}_{number}" in used:
        number += 1
    return f"{base}_{number}"
