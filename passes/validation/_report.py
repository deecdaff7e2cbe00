"""Diagnostics on a graph: every one names its block and node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ...compiler.diagnostics import Diagnostic
from ...compiler.ir.graph import Block, Graph, Node
from ...compiler.ir.mesh import Mesh
from ...compiler.ir.ops import OPERATORS, Resharding

GraphCheck = Callable[[Graph], Iterator[Diagnostic]]


def finding(
    code: str,
    block: Block,
    node: Node | str | None,
    message: str,
    expected: str | None = None,
    help_: str | None = None,
) -> Diagnostic:
    """A diagnostic at a node of a block, at a value or argument (by name), or at the block as a whole."""
    place = f"block `{block.name}`"
    if node is not None:
        place += f", node `{node.name}`" if isinstance(node, Node) else f", value `{node}`"
    return Diagnostic(code, f"{place}: {message}", None, expected, help_)


def is_resharding(node: Node) -> bool:
    """Whether the node only changes where a value lies."""
    return isinstance(OPERATORS.get(node.op), Resharding)


def axes_text(mesh: Mesh, axes: Sequence[str]) -> str:
    """Axes in the user's words."""
    return mesh.describe(axes) or "no axis"


def listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{n}`" for n in names)


def op_text(op: str) -> str:
    """``all-reduce`` for ``all_reduce``."""
    return op.replace("_", "-")


def consumers(block: Block, value: str) -> list[Node]:
    """Nodes of the block that take the value."""
    return [n for n in block.nodes if value in n.inputs]
