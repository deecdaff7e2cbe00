"""PP: layers to stages, and a send and a receive between neighbouring stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ...compiler.ir.graph import Arg, Block, Graph, Node, Value
from .resolve import resolve


@dataclass(frozen=True)
class LowerPp:
    """Give layers their stage; the stream crosses a boundary only through Send and Recv.

    Between decode steps the sampled ids return from the last stage to the first, the sole edge that skips stages.
    """

    name: ClassVar[str] = "pp"
    stages: tuple[int, ...] = ()

    def run(self, graph: Graph) -> Graph:
        # The logical graph is not placed yet; what is sent must be.
        return resolve(self.place(resolve(graph, self.name)), self.name)

    def place(self, graph: Graph) -> Graph:
        """The facts alone: stages, and sends and receives at their boundaries."""
        staged = replace(graph, stages=self.stages or graph.stages, level="pp")
        if len(staged.stages) > 1 and not graph.with_role("boundary"):
            staged = replace(staged, blocks=_with_boundary(staged))
            if graph.phase == "decode":
                staged = staged.map_blocks(_return_ids)
        return staged


def _with_boundary(graph: Graph) -> tuple[Block, ...]:
    stream = graph.stream
    arg = Arg(Value("x", stream), "layer")
    nodes = (
        Node("send", "send", ("x",), (Value("wire", stream),), origin="pp"),
        Node("recv", "recv", ("wire",), (Value("x_recv", stream),), origin="pp"),
    )
    boundary = Block("boundary", "boundary", graph.stage_starts[1:], (arg,), nodes, "x_recv")
    return (*(b for b in graph.blocks if b.role != "epilogue"), boundary, *graph.with_role("epilogue"))


def _return_ids(block: Block) -> Block:
    if block.role == "epilogue":
        ids = block.types["next"]
        send = Node("return_send", "send", ("next",), (Value("ids_wire", ids),), steps="early", origin="pp")
        return replace(block, nodes=(*block.nodes, send))
    if block.role == "prologue":
        previous = next(a for a in block.args if a.carry == "step")
        recv = Node(
            "return_recv", "recv", ("previous",), (Value("returned", previous.value.type),), steps="later", origin="pp"
        )
        begin = replace(block.node("begin"), inputs=("returned",))
        nodes = tuple(begin if n.name == "begin" else n for n in block.nodes)
        args = tuple(replace(a, source="ids_wire") if a is previous else a for a in block.args)
        return replace(block, args=args, nodes=(recv, *nodes))
    return block
