"""What stands in a drawing: boxes in nested clusters, and links between boxes. Nothing here knows Graphviz."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Look = Literal["compute", "communication", "kv", "control"]


@dataclass(frozen=True)
class Box:
    """A drawn node.

    Attributes:
        id: Unique in the drawing.
        title: Operator, and for communication over which ranks and how many bytes.
        lines: Name, dimensions, GPUs, time.
        shape: Graphviz shape of the operator.
        look: Which colour it has.
        share: Share in the busy time of its stage.
        critical: The critical path runs through it.
        folded: Stands for many nodes that are drawn elsewhere.
        tooltip: Costs of one call.
        ranks: GPUs of the box where it is one device group, for clustering.
    """

    id: str
    title: str
    lines: tuple[str, ...]
    shape: str
    look: Look
    share: float = 0.0
    critical: bool = False
    folded: bool = False
    tooltip: str = ""
    ranks: tuple[int, ...] = ()


@dataclass
class Cluster:
    """A frame around boxes and further clusters."""

    id: str
    title: str
    level: Literal["stage", "layer", "group"]
    children: list[Box | Cluster] = field(default_factory=list)

    def boxes(self) -> Iterator[Box]:
        """All boxes inside, in drawing order."""
        for child in self.children:
            if isinstance(child, Box):
                yield child
            else:
                yield from child.boxes()


@dataclass(frozen=True)
class Link:
    """A drawn edge. ``loose`` edges do not pull on the layout; several links between two boxes may differ in kind."""

    source: str
    target: str
    kind: str
    label: str = ""
    loose: bool = False


@dataclass(frozen=True)
class Scene:
    """A drawing: title lines, clusters, links."""

    title: tuple[str, ...]
    clusters: tuple[Cluster, ...]
    links: tuple[Link, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        return tuple(b for c in self.clusters for b in c.boxes())
