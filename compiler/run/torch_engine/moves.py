"""The resharding operators as one member of a group runs them: what it sends, and what it makes of what arrives.

One entry of the table per operator. The numpy meaning of each, over all members at once, is in
:mod:`paradag.compiler.run.collectives`; here a member sees its own shard and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..collectives import ROUTED, Position, chunk, concatenate, part_for
from ..shards import COMBINE

if TYPE_CHECKING:
    from .wire import Wire

NATIVE = frozenset({"sum", "max"})
"""Reductions that torch.distributed has; others are gathered and reduced by each member."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Member:
    """What a member knows of its group.

    Attributes:
        wire: Its way to the others.
        at: Its own position along the axes of the group.
        processes: Process of every position, positions in ascending order.
        shapes: Shape of every position's operand, as its type says.
        sizes: Ranks along each axis.
        op: Operator.
        attrs: Its attributes.
        names: Dimension names of the operand.
    """

    wire: Wire
    at: Position
    processes: Mapping[Position, int]
    shapes: Mapping[Position, Shape]
    sizes: Sequence[int]
    op: str
    attrs: Mapping[str, Any]
    names: Sequence[str]

    @property
    def group(self) -> tuple[int, ...]:
        """Processes as torch numbers them."""
        return tuple(sorted(self.processes.values()))

    @property
    def positions(self) -> list[Position]:
        """Positions in the order of :attr:`group`."""
        return sorted(self.processes, key=self.processes.__getitem__)


@dataclass(frozen=True)
class Outcome:
    """What a member has after a collective.

    Attributes:
        shard: Its new shard.
        sent: Elements that it sent to others; reductions and gathers as ring algorithms send.
        payload: Elements of its input that counted, rows without a routed token left out.
    """

    shard: np.ndarray
    sent: float
    payload: float


def move(member: Member, shard: np.ndarray) -> Outcome:
    """Take part in a collective.

    Raises:
        KeyError: not a resharding operator.
    """
    return MOVES[member.op](member, shard)


# --- reductions -------------------------------------------------------------------------------------------------------


def _all_reduce(member: Member, shard: np.ndarray) -> Outcome:
    reduction, others = member.attrs.get("reduction", "sum"), len(member.group) - 1
    if reduction in NATIVE:
        total = member.wire.all_reduce(shard, reduction, member.group)
    else:
        pieces = _gathered(member, shard)
        total = reduce(COMBINE[reduction], (pieces[at] for at in sorted(pieces)))
    return Outcome(total, 2 * shard.size * others / (others + 1), shard.size)


def _reduce_scatter(member: Member, shard: np.ndarray) -> Outcome:
    reduction, others = member.attrs.get("reduction", "sum"), len(member.group) - 1
    dim = member.names.index(member.attrs["to"])
    parts = {at: chunk(shard, dim, at, member.sizes) for at in member.positions}
    if reduction in NATIVE:
        flat = member.wire.reduce_scatter([p.ravel() for p in parts.values()], reduction, member.group)
        mine = flat.reshape(parts[member.at].shape)
    else:
        pieces = _exchanged(member, parts, dict.fromkeys(parts, parts[member.at].shape))
        mine = reduce(COMBINE[reduction], (pieces[at] for at in sorted(pieces)))
    return Outcome(mine, shard.size * others / (others + 1), shard.size)


# --- shards that change hands -----------------------------------------------------------------------------------------


def _all_gather(member: Member, shard: np.ndarray) -> Outcome:
    pieces = _gathered(member, shard)
    dims = [member.names.index(member.attrs["of"])] * len(member.sizes)
    return Outcome(concatenate(pieces, member.sizes, dims), shard.size * (len(pieces) - 1), shard.size)


def _gathered(member: Member, shard: np.ndarray) -> dict[Position, np.ndarray]:
    lengths = [prod(member.shapes[at]) for at in member.positions]
    flat = member.wire.all_gather(shard.ravel(), lengths, member.group)
    return {at: f.reshape(member.shapes[at]) for at, f in zip(member.positions, flat, strict=True)}


def _all_to_all(member: Member, shard: np.ndarray) -> Outcome:
    parts = {at: _part(member, shard, at) for at in member.positions}
    shapes = {at: _part(member, _nothing(member.shapes[at]), member.at).shape for at in member.positions}
    if member.op in ROUTED:
        pieces, counts = _routed(member, parts, shapes)
    else:
        pieces, counts = _exchanged(member, parts, shapes), {at: p.size for at, p in parts.items()}
    of = member.attrs["of"]
    dims = [member.names.index(d) for d in ((of,) * len(member.sizes) if isinstance(of, str) else of)]
    payload = sum(counts.values())
    return Outcome(concatenate(pieces, member.sizes, dims), payload - counts[member.at], payload)


def _part(member: Member, shard: np.ndarray, at: Position) -> np.ndarray:
    return part_for(shard, at, member.sizes, member.attrs, member.names)


def _nothing(shape: Shape) -> np.ndarray:
    """An array of a shape that takes no memory."""
    return np.broadcast_to(np.zeros(()), shape)


def _exchanged(
    member: Member, parts: Mapping[Position, np.ndarray], shapes: Mapping[Position, Shape]
) -> dict[Position, np.ndarray]:
    """One part for each member; parts may differ in size."""
    order = member.positions
    lengths = [prod(shapes[at]) for at in order]
    flat = member.wire.all_to_all([parts[at].ravel() for at in order], lengths, member.group)
    return {at: f.reshape(shapes[at]) for at, f in zip(order, flat, strict=True)}


def _routed(
    member: Member, parts: Mapping[Position, np.ndarray], shapes: Mapping[Position, Shape]
) -> tuple[dict[Position, np.ndarray], dict[Position, int]]:
    """Rows that hold a token, behind a message that says which they are: the counts differ from pair to pair."""
    filled = {at: (p != 0).any(axis=-1) for at, p in parts.items()}
    told = {at: mask.astype(np.uint8) for at, mask in filled.items()}
    masks = _exchanged(member, told, {at: shape[:-1] for at, shape in shapes.items()})
    width = next(iter(parts.values())).shape[-1]
    rows = {at: parts[at][filled[at]] for at in parts}
    arrived = _exchanged(member, rows, {at: (int(masks[at].sum()), width) for at in masks})
    pieces = {}
    for at, shape in shapes.items():
        pieces[at] = np.zeros(shape, dtype=arrived[at].dtype)
        pieces[at][masks[at].astype(bool)] = arrived[at]
    return pieces, {at: r.size for at, r in rows.items()}


def _ring_shift(member: Member, shard: np.ndarray) -> Outcome:
    ring = sorted(member.processes)
    place, hops = ring.index(member.at), member.attrs["hops"]
    source = ring[(place - hops) % len(ring)]
    member.wire.send(shard, member.processes[ring[(place + hops) % len(ring)]])
    taken = member.wire.receive(member.shapes[source], shard.dtype, member.processes[source])
    return Outcome(taken, shard.size, shard.size)


def _slice(member: Member, shard: np.ndarray) -> Outcome:
    return Outcome(chunk(shard, member.names.index(member.attrs["to"]), member.at, member.sizes), 0, 0)


MOVES: Mapping[str, Callable[[Member, np.ndarray], Outcome]] = {
    "all_reduce": _all_reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "all_to_all": _all_to_all,
    "dispatch": _all_to_all,
    "combine": _all_to_all,
    "ring_shift": _ring_shift,
    "slice": _slice,
}
"""Every operator that moves data inside groups of ranks."""
