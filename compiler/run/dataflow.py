"""Which call gives what a node takes: values of the block itself, and those that enter from other repetitions."""

from __future__ import annotations

import numpy as np

from ..ir.graph import Block, Graph, Node
from ..ir.unrolled import Unrolled
from .store import ExecutionFault, Ref


class Dataflow:
    """Where operands come from, for one unrolled graph; remembers which call made what."""

    def __init__(self, unrolled: Unrolled) -> None:
        self.unrolled = unrolled
        self.graph: Graph = unrolled.graph
        self.number = {(b.name, n.name): i for i, (b, n) in enumerate(unrolled.templates)}
        columns = (unrolled.template.tolist(), unrolled.layer.tolist(), unrolled.item.tolist(), unrolled.step.tolist())
        self._present = {(t, i, s) for t, _, i, s in zip(*columns, strict=True)}
        self._left: dict[tuple[str, int, int, int], int] = {}
        for t, layer, item, step in zip(*columns, strict=True):
            key = (unrolled.templates[t][0].name, layer, item, step)
            self._left[key] = self._left.get(key, 0) + 1
        self._indptr = np.searchsorted(unrolled.target, np.arange(len(unrolled) + 1))
        self._streams = _stream_sources(self.graph)
        self._lasting = self._crossing()
        self._made: dict[Ref, int] = {}

    def made(self, ref: Ref, call: int) -> None:
        """A call has given a value."""
        self._made[ref] = call

    def source(self, block: Block, layer: int, item: int, step: int, name: str) -> Ref:
        """Where a value of a block comes from: the block itself, or another repetition of one."""
        producer = block.producers.get(name)
        if producer is not None:
            if (self.number[block.name, producer.name], item, step) in self._present:
                return Ref(block.name, name, layer, item, step)
            if not producer.inputs:
                raise ExecutionFault(f"{producer.name} of {block.name} does not run at item {item}, step {step}")
            # A transport that has nothing to carry at this step stands for its operand.
            return self.source(block, layer, item, step, producer.inputs[0])
        arg = next((a for a in block.args if a.value.name == name), None)
        if arg is None:
            raise ExecutionFault(f"nothing in {block.name} gives %{name}")
        if arg.carry == "layer":
            before, source_layer = self._streams[block.name, layer]
            return self.source(before, source_layer, item, step, before.result)
        if arg.carry == "step" and step > 0:
            (epilogue,) = self.graph.with_role("epilogue")
            return self.source(epilogue, -1, item, step - 1, arg.source)
        if arg.carry == "version":
            if self.graph.phase == "prefill" and not self.graph.items[item].first:
                return self.source(block, layer, item - 1, step, arg.source)
            if self.graph.phase == "decode" and step > 0:
                return self.source(block, layer, item, step - 1, arg.source)
            if arg.init:
                return self.source(block, layer, item, step, arg.init)
        return Ref(block.name, name, layer, item, -1)

    def check_edge(self, call: int, ref: Ref, node: Node) -> None:
        producer = self._made.get(ref)
        if producer is None:
            return
        sources = self.unrolled.source[self._indptr[call] : self._indptr[call + 1]]
        if producer not in sources:
            raise ExecutionFault(f"{node.name} takes {ref}, but the DAG has no edge between them")

    def finish(self, block: Block, layer: int, item: int, step: int) -> list[Ref]:
        """One call less of a block's repetition is left; the values that nobody needs once none is."""
        key = (block.name, layer, item, step)
        self._left[key] -= 1
        if self._left[key]:
            return []
        return [Ref(block.name, v, *key[1:]) for v in block.types if (block.name, v) not in self._lasting]

    def _crossing(self) -> set[tuple[str, str]]:
        """Values that leave their repetition of a block, by (block, value)."""
        found: set[tuple[str, str]] = set()
        for block in self.graph.blocks:
            found.add((block.name, block.result))
            for arg in block.args:
                found.add((block.name, arg.source))
                found |= {(e.name, arg.source) for e in self.graph.with_role("epilogue") if arg.carry == "step"}
        return found


def _stream_sources(graph: Graph) -> dict[tuple[str, int], tuple[Block, int]]:
    """Which block, at which layer, gives the stream that enters a block at a layer."""
    (prologue,) = graph.with_role("prologue")
    layers = {layer: b for b in graph.with_role("layer") for layer in b.layers}
    leaving: dict[int, tuple[Block, int]] = {0: (prologue, -1)} | {n + 1: (b, n) for n, b in layers.items()}
    sources: dict[tuple[str, int], tuple[Block, int]] = {}
    entering = dict(leaving)
    for boundary in graph.with_role("boundary"):
        for layer in boundary.layers:
            sources[boundary.name, layer] = leaving[layer]
            entering[layer] = (boundary, layer)
    sources |= {(b.name, layer): entering[layer] for layer, b in layers.items()}
    sources |= {(b.name, -1): entering[graph.layers] for b in graph.with_role("epilogue")}
    return sources
