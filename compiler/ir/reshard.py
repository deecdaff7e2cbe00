"""From (have, want) to collectives: the one place where communication enters a graph.

Partial to Replicate is an all-reduce, Partial to Shard a reduce-scatter, Shard to Replicate an all-gather, Shard(i) to
Shard(j) an all-to-all, Replicate to Shard a local slice. Several axes resolve innermost first; axes that move together
share one collective. Chunks that are wanted further round a ring are passed on by a ring shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .graph import Node, Value, fresh_name
from .mesh import Mesh
from .ops import GROUP, operator
from .types import Placement, TensorType


@dataclass(frozen=True)
class Step:
    """One resharding operation: operator name and attributes."""

    op: str
    attrs: dict[str, Any]


class Unreachable(ValueError):
    """No sequence of collectives leads from one placement to the other (a wanted value is partial)."""


def plan(have: Placement, want: Placement, names: Sequence[str], mesh: Mesh) -> list[Step]:
    """The resharding steps from ``have`` to ``want`` for a tensor with the given dimension names.

    Raises:
        Unreachable: ``want`` is partial on an axis on which ``have`` is not.
    """
    if set(want.partial) - set(have.partial):
        raise Unreachable(f"{want} wants partial sums that {have} has not")
    planner = _Planner(have, want, tuple(names), mesh)
    if (have.shards, have.partial) != (want.shards, want.partial):
        planner.ring_shift(())
    planner.reduce_scatter()
    planner.all_reduce()
    planner.all_to_all()
    planner.all_gather()
    planner.slice()
    planner.ring_shift(want.shift)
    if planner.state != want:
        raise Unreachable(f"{have} does not lead to {want}")
    return planner.steps


class _Planner:
    def __init__(self, have: Placement, want: Placement, names: tuple[str, ...], mesh: Mesh) -> None:
        self.state = have
        self.want = want
        self.names = names
        self.mesh = mesh
        self.steps: list[Step] = []

    def _emit(self, op: str, **attrs: Any) -> None:
        step = Step(op, attrs)
        node = Node("plan", op, attrs=attrs)
        self.state = operator(op).moved(node, self.state, self.names)  # type: ignore[attr-defined]
        self.steps.append(step)

    def _missing(self, dim: int) -> tuple[str, ...]:
        """Axes still to be added to a dimension, outermost first; empty where others must go first."""
        have, want = self.state.shards[dim], self.want.shards[dim]
        return want[len(have) :] if want[: len(have)] == have else ()

    def _excess(self, dim: int) -> tuple[str, ...]:
        """Axes that must leave a dimension: all behind the common prefix."""
        have, want = self.state.shards[dim], self.want.shards[dim]
        if have == want:
            return ()
        common = 0
        while common < min(len(have), len(want)) and have[common] == want[common]:
            common += 1
        return have[common:]

    def ring_shift(self, shift: Sequence[int]) -> None:
        """Pass chunks on until they are shifted so."""
        for dim, name in enumerate(self.names):
            axes = self.state.shards[dim]
            ring = self.mesh.size(axes)
            hops = ((shift[dim] if shift else 0) - self.state.shift_of(dim)) % ring
            if hops:
                self._emit("ring_shift", axes=axes, of=name, hops=hops, ring=ring)

    def reduce_scatter(self) -> None:
        leaving = self.state.partial_axes - self.want.partial_axes
        for dim in range(len(self.names)):
            axes = _leading(self._missing(dim), lambda a, left=leaving: a in left and self.state.reduction(a) == "sum")
            if axes:
                self._emit("reduce_scatter", axes=axes, to=self.names[dim])
                leaving -= set(axes)

    def all_reduce(self) -> None:
        leaving = self.state.partial_axes - self.want.partial_axes
        for kind in sorted({self.state.reduction(a) for a in leaving}):
            axes = self.mesh.ordered(a for a in leaving if self.state.reduction(a) == kind)
            self._emit("all_reduce", axes=axes, **({} if kind == "sum" else {"reduction": kind}))

    def all_to_all(self) -> None:
        if not self._innermost():
            return
        self._combine()
        self._clear_the_way()
        for to in range(len(self.names)):
            missing = self._missing(to)
            if not missing:
                continue
            movable = self._innermost()
            axes = _leading(missing, lambda a, m=movable: a in m)
            while axes and not self._can_leave(axes, movable):
                axes = axes[:-1]
            if not axes:
                continue
            sources = tuple(self.names[movable[a]] for a in axes)
            if all(s.startswith(GROUP) for s in sources):
                self._emit("dispatch", axes=axes, of=sources, to=self.names[to])
            else:
                self._emit("all_to_all", axes=axes, of=sources, to=self.names[to])

    def _clear_the_way(self) -> None:
        """Gather axes that are wanted nowhere and lie inside of some that are wanted on another dimension."""
        wanted = {a for dim in range(len(self.names)) for a in self._missing(dim)}
        for dim, name in enumerate(self.names):
            excess = self._excess(dim)
            inner = tuple(reversed(_leading(excess[::-1], lambda a: a not in wanted)))
            if inner and wanted & set(excess):
                self._emit("all_gather", axes=inner, of=name)

    def _combine(self) -> None:
        """Axes that leave one dimension for several group dimensions together."""
        for of in range(len(self.names)):
            excess = self._excess(of)
            homes = {
                self.want.shards[d][-1]: self.names[d]
                for d in range(len(self.names))
                if self.names[d].startswith(GROUP) and self._missing(d)
            }
            axes = tuple(a for a in excess if a in homes)
            if axes and axes == excess:
                self._emit("combine", axes=axes, of=self.names[of], to=tuple(homes[a] for a in axes))

    def _innermost(self) -> dict[str, int]:
        """Excess axes by the dimension they have to leave."""
        return {a: d for d in range(len(self.names)) for a in self._excess(d)}

    def _can_leave(self, axes: tuple[str, ...], home: dict[str, int]) -> bool:
        """Whether the axes are the innermost of their dimensions, in an order that lets each go."""
        left = {d: list(self.state.shards[d]) for d in set(home.values())}
        for axis in reversed(axes):
            if not left[home[axis]] or left[home[axis]][-1] != axis:
                return False
            left[home[axis]].pop()
        return True

    def all_gather(self) -> None:
        for dim in range(len(self.names)):
            axes = self._excess(dim)
            if axes:
                self._emit("all_gather", axes=axes, of=self.names[dim])

    def slice(self) -> None:
        for dim in range(len(self.names)):
            axes = self._missing(dim)
            if axes:
                self._emit("slice", axes=axes, to=self.names[dim])


def _leading(axes: tuple[str, ...], keep: Any) -> tuple[str, ...]:
    count = 0
    while count < len(axes) and keep(axes[count]):
        count += 1
    return axes[:count]


def reshard_nodes(base: str, value: Value, want: Placement, mesh: Mesh, origin: str, like: Node) -> list[Node]:
    """Nodes that bring ``value`` into placement ``want``; the last one gives the value wanted.

    Args:
        base: Name from which node and value names are made.
        value: What there is.
        want: How it is wanted.
        mesh: The ranks.
        origin: Pass on whose behalf.
        like: The consumer, whose module and masks the nodes take over.
    """
    nodes: list[Node] = []
    current = value
    for step in plan(value.type.placement, want, value.type.names, mesh):
        name = fresh_name(f"{base}.{step.op}", (n.name for n in nodes))
        bare = Node(name, step.op, inputs=(current.name,), attrs=step.attrs)
        result = Value(name, _result(bare, current.type, mesh))
        routed = step.op in {"dispatch", "combine"}
        nodes.append(
            Node(
                name,
                step.op,
                inputs=(current.name,),
                outputs=(result,),
                attrs=step.attrs,
                module=like.module,
                view="expert" if routed else "attention",
                items=like.items,
                steps=like.steps,
                origin=origin,
            )
        )
        current = result
    return nodes


def _result(node: Node, have: TensorType, mesh: Mesh) -> TensorType:
    return operator(node).infer(node, [have], mesh).results[0]
