"""The ranks of one phase as a mesh of atomic axes.

Attention lays (adp, sp, tp) over the R ranks of a stage, experts lay (edp, ep, etp) over the same R ranks, and KV
heads may be replicated over part of tp. The mesh of the stage is the common refinement of all of them: every named
axis is a list of atomic axes, outermost first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import prod

ATTENTION_VIEW = ("adp", "sp", "tp")
EXPERT_VIEW = ("edp", "ep", "etp")


class AxesDoNotNest(ValueError):
    """The running products of two views do not divide one another, so no common refinement exists."""


@dataclass(frozen=True)
class Axis:
    """An atomic axis. ``stride`` is the distance in ranks between neighbours on it, as placed on the hardware."""

    name: str
    size: int
    stride: int


@dataclass(frozen=True)
class Mesh:
    """Ranks of one phase.

    Attributes:
        axes: Atomic axes of one stage, outermost first in the stage's logical order.
        views: Named axes (adp, sp, tp, edp, ep, etp, kv) to their atomic axes, outermost first.
        pp: Pipeline stages.
        pp_stride: Distance in ranks between the same position of neighbouring stages.
        dp: Replicas of the whole; replica 0 is drawn.
        first_rank: Global number of this phase's first rank (separate pools put decode behind prefill).
    """

    axes: tuple[Axis, ...]
    views: Mapping[str, tuple[str, ...]]
    pp: int = 1
    pp_stride: int = 1
    dp: int = 1
    first_rank: int = 0
    _sizes: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)
    _products: dict[tuple[str, ...], int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._sizes.update({a.name: a.size for a in self.axes})

    @cached_property
    def stage_ranks(self) -> int:
        """R, the ranks of one stage."""
        return prod(a.size for a in self.axes)

    @property
    def replica_ranks(self) -> int:
        return self.pp * self.stage_ranks

    @property
    def gpus(self) -> int:
        """GPUs of the phase over all replicas."""
        return self.dp * self.replica_ranks

    def size(self, axes: Iterable[str]) -> int:
        """Ranks along a set of atomic axes."""
        key = tuple(axes)
        if key not in self._products:
            self._products[key] = prod(self._sizes[a] for a in key)
        return self._products[key]

    def degree(self, view: str) -> int:
        """Degree of a named axis, 1 where it is absent."""
        return self.size(self.views.get(view, ()))

    def view(self, name: str) -> tuple[str, ...]:
        """Atomic axes of a named axis, outermost first."""
        return self.views.get(name, ())

    def axis(self, name: str) -> Axis:
        return next(a for a in self.axes if a.name == name)

    def ordered(self, axes: Iterable[str]) -> tuple[str, ...]:
        """The given atomic axes in the mesh's own order."""
        wanted = set(axes)
        return tuple(a.name for a in self.axes if a.name in wanted)

    def describe(self, axes: Sequence[str]) -> str:
        """A set of atomic axes in the user's words: ``tp``, ``adp+tp``, or the atoms themselves."""
        rest = set(axes)
        names: list[str] = []
        for view in (*ATTENTION_VIEW, "ep", "etp", "edp"):
            atoms = self.views.get(view, ())
            if atoms and set(atoms) <= rest:
                names.append(view)
                rest -= set(atoms)
        return "+".join([*names, *(a.name for a in self.axes if a.name in rest)])

    def ranks(self, stage: int, fixed: Mapping[str, int], varying: Sequence[str]) -> list[int]:
        """Global ranks of a device group.

        Args:
            stage: Pipeline stage.
            fixed: Coordinates of the atomic axes that the group does not span (others default to 0).
            varying: Atomic axes that the group spans, outermost first.
        """
        base = self.first_rank + stage * self.pp_stride
        base += sum(self.axis(name).stride * coordinate for name, coordinate in fixed.items())
        ranks = [base]
        for name in varying:
            axis = self.axis(name)
            ranks = [r + axis.stride * i for r in ranks for i in range(axis.size)]
        return ranks


def build_mesh(
    *,
    attention: Mapping[str, int],
    experts: Mapping[str, int],
    kv_groups: int = 1,
    sp_kv_groups: int = 1,
    pp: int = 1,
    dp: int = 1,
    placement: Sequence[str] = (),
    first_rank: int = 0,
) -> Mesh:
    """The common refinement of the attention view, the expert view and KV-head replication.

    Args:
        attention: Degrees of adp, sp and tp; their product is R.
        experts: Degrees of edp, ep and etp; their product is R.
        kv_groups: Ranks of one TP group that hold the same KV head (tp / kv_heads where tp > kv_heads, else 1).
        sp_kv_groups: The same on the sp axis, whose outer part then cuts KV heads (Ulysses).
        pp: Pipeline stages.
        dp: Replicas.
        placement: Attention axes and pp from outermost to innermost on the hardware; empty means (pp, adp, sp, tp).
        first_rank: Global number of the first rank.

    Raises:
        AxesDoNotNest: no order of the expert axes refines together with the attention axes.
    """
    order, cuts = expert_order(attention, experts, kv_groups, sp_kv_groups)
    named = _name_axes(sorted(cuts), attention)
    strides, pp_stride = _strides(named, attention, pp, placement)
    axes = tuple(Axis(name, size, strides[name]) for name, size, _ in named)
    views = {
        **_view(named, ATTENTION_VIEW, attention),
        **_view(named, order, experts),
    }
    tp_stride = 1
    views["kv"] = tuple(n for n, _, stride in named if n in views["tp"] and stride >= tp_stride * kv_groups)
    return Mesh(axes, views, pp, pp_stride, dp, first_rank)


def expert_order(
    attention: Mapping[str, int], experts: Mapping[str, int], kv_groups: int = 1, sp_kv_groups: int = 1
) -> tuple[tuple[str, str, str], set[int]]:
    """The experts' axes, outermost first, and the running products of all axes; see :func:`build_mesh`.

    Raises:
        AxesDoNotNest: no order of the expert axes refines together with the attention axes.
    """
    for order in (("edp", "ep", "etp"), ("ep", "etp", "edp")):
        cuts = _cuts([attention[n] for n in ATTENTION_VIEW]) | _cuts([experts[n] for n in order])
        cuts |= {kv_groups, attention["tp"] * sp_kv_groups}
        if _is_chain(cuts):
            return order, cuts
    raise AxesDoNotNest(f"attention {dict(attention)} and experts {dict(experts)} have no common refinement")


def _cuts(degrees: Sequence[int]) -> set[int]:
    """Running products from the innermost axis."""
    products = {1}
    running = 1
    for degree in reversed(degrees):
        running *= degree
        products.add(running)
    return products


def _is_chain(cuts: set[int]) -> bool:
    ordered = sorted(cuts)
    return all(b % a == 0 for a, b in pairwise(ordered))


def _name_axes(cuts: Sequence[int], attention: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """(name, size, logical stride) of each atomic axis, outermost first; an attention axis lends its name."""
    bounds = {"tp": (1, attention["tp"])}
    bounds["sp"] = (bounds["tp"][1], bounds["tp"][1] * attention["sp"])
    bounds["adp"] = (bounds["sp"][1], bounds["sp"][1] * attention["adp"])
    pieces: dict[str, list[tuple[int, int]]] = {name: [] for name in ATTENTION_VIEW}
    for low, high in pairwise(cuts):
        owner = next(n for n, (start, end) in bounds.items() if start <= low < end)
        pieces[owner].append((high // low, low))
    named: list[tuple[str, int, int]] = []
    for owner in ATTENTION_VIEW:
        parts = list(reversed(pieces[owner]))
        for index, (size, stride) in enumerate(parts):
            named.append((owner if len(parts) == 1 else f"{owner}{index}", size, stride))
    return named


def _strides(
    named: Sequence[tuple[str, int, int]], attention: Mapping[str, int], pp: int, placement: Sequence[str]
) -> tuple[dict[str, int], int]:
    """Physical stride of each atomic axis and of pp under a placement of the attention axes."""
    order = tuple(placement) or ("pp", *ATTENTION_VIEW)
    sizes = {**{n: attention[n] for n in ATTENTION_VIEW}, "pp": pp}
    strides: dict[str, int] = {}
    running = 1
    axis_stride: dict[str, int] = {}
    for name in reversed(order):
        axis_stride[name] = running
        running *= sizes[name]
    for owner in ATTENTION_VIEW:
        inner = axis_stride[owner]
        for name, size, _ in reversed([a for a in named if a[0].rstrip("0123456789") == owner]):
            strides[name] = inner
            inner *= size
    return strides, axis_stride["pp"]


def _view(
    named: Sequence[tuple[str, int, int]], order: Sequence[str], degrees: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    views: dict[str, tuple[str, ...]] = {}
    low = 1
    for name in reversed(order):
        high = low * degrees[name]
        views[name] = tuple(n for n, _, stride in named if low <= stride < high)
        low = high
    return views
