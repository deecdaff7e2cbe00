"""Layouts of a stage: which ranks do what, as columns, and the structure that each of them has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import combinations_with_replacement, pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..spec import ModelSpec
from ..spec.stage_law import Degrees
from .rows import distinct_rows
from .structure import Structure

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_ATTENTION_CUTS = 3


@dataclass(frozen=True)
class Layouts:
    """Columns, one entry per layout of a stage: ``R = adp * sp * tp = edp * ep * etp``.

    ``megatron`` tells where the stream is cut over tp (``sp tp``).
    """

    ranks: Ints
    sp: Ints
    tp: Ints
    ep: Ints
    etp: Ints
    megatron: Bools

    def __len__(self) -> int:
        return len(self.ranks)

    def __getitem__(self, index: Any) -> Self:
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    @property
    def adp(self) -> Ints:
        return self.ranks // (self.sp * self.tp)

    @property
    def edp(self) -> Ints:
        return self.ranks // (self.ep * self.etp)

    def degrees(self, index: int, *, pp: int = 1, dp: int = 1) -> Degrees:
        """Degrees of one layout."""
        values = {f.name: int(getattr(self, f.name)[index]) for f in fields(self) if f.name != "megatron"}
        return Degrees(dp=dp, pp=pp, sp_on_tp=bool(self.megatron[index]), **values)

    def kv_groups(self, model: ModelSpec) -> Ints:
        """Ranks of a TP group that hold the same KV head."""
        if model.attention.kind == "mla":
            return np.ones_like(self.tp)
        return np.maximum(1, self.tp // model.attention.kv_heads)

    def attention_cuts(self, model: ModelSpec) -> Ints:
        """[3, layouts] running products of attention's axes, innermost first."""
        return np.stack([self.kv_groups(model), self.tp, self.sp * self.tp])

    def expert_cuts(self, replicas_inside: bool) -> Ints:
        """[2, layouts] running products of the experts' axes, innermost first."""
        inner, middle = (self.edp, self.etp) if replicas_inside else (self.etp, self.ep)
        return np.stack([inner, inner * middle])

    def nesting(self, model: ModelSpec) -> tuple[Bools, Bools]:
        """Whether the axes have a common refinement in the usual order of the experts', and with edp innermost."""
        return self._nests(model, False), self._nests(model, True)

    def _nests(self, model: ModelSpec, replicas_inside: bool) -> Bools:
        inner = [self.attention_cuts(model)]
        if model.moe is not None:
            inner.append(self.expert_cuts(replicas_inside))
        cuts = np.sort(np.concatenate([*inner, self.ranks[None]]), axis=0)
        return np.asarray((cuts[1:] % cuts[:-1] == 0).all(axis=0))


@dataclass(frozen=True)
class Sights:
    """What experts see of the layouts.

    Attributes:
        layouts: Layouts that differ for them.
        of: [layouts] which of those each layout is.
        apart: [layouts] of how many of them side by side each layout consists.
        groups: [those that differ] attention-DP groups that a batch may be filled up for.
    """

    layouts: Layouts
    of: Ints
    apart: Ints
    groups: Ints


def sights(layouts: Layouts, model: ModelSpec) -> Sights:
    """The layouts of a model without what no expert notices: ranks over which nothing is cut but requests.

    Where both views leave ranks outermost (adp and edp), a stage is so many independent stages side by side. And but
    for expert TP that reaches over groups, and gathers what they have, only the fullest group's sequences count.
    """
    usual = layouts.nesting(model)[0]
    ranks = np.where(usual, np.maximum(layouts.sp * layouts.tp, layouts.ep * layouts.etp), layouts.ranks)
    columns = (layouts.sp, layouts.tp, layouts.ep, layouts.etp, layouts.megatron.astype(np.int64), usual * 1)
    (seen, sp, tp, ep, etp, megatron, nested), of = distinct_rows(ranks, *columns)
    differ = Layouts(seen, sp, tp, ep, etp, megatron > 0)
    alike = (nested > 0) & (differ.etp <= differ.sp * differ.tp)
    return Sights(differ, of, layouts.ranks // ranks, np.where(alike, differ.adp, 1))


@dataclass(frozen=True)
class Placed:
    """Layouts of one structure, with their axes.

    Attributes:
        structure: How their cuts interleave.
        index: Their numbers among all layouts.
        sizes: [axes, layouts] of the atomic axes, innermost first.
        strides: Distances in ranks, alike.
    """

    structure: Structure
    index: Ints
    sizes: Ints
    strides: Ints


def by_structure(layouts: Layouts, model: ModelSpec) -> Iterator[Placed]:
    """Layouts of a model with experts by structure, each once, with as few structures as a greedy cover finds.

    Args:
        layouts: Layouts whose axes nest.
        model: Decides on KV groups.
    """
    attention = layouts.attention_cuts(model)
    assert model.moe is not None
    usual = layouts.nesting(model)[0]
    apart = ~usual | ((layouts.etp > 1) & layouts.megatron & (model.moe.shared > 0))
    for megatron in (False, True):
        for replicas_inside in (False, True):
            kind = (layouts.megatron == megatron) & (usual != replicas_inside)
            experts = layouts.expert_cuts(replicas_inside)
            for special in (False, True):
                left = np.flatnonzero(kind & (apart == special))
                while len(left):
                    labels, fits = _widest(attention[:, left], experts[:, left])
                    chosen = left[fits]
                    left = left[~fits]
                    structure = Structure(labels, (), replicas_inside, megatron)
                    placed = _placed(structure, chosen, attention[:, chosen], experts[:, chosen], layouts.ranks[chosen])
                    yield from _without_absent(placed) if special else (placed,)


def _widest(attention: Ints, experts: Ints) -> tuple[str, Bools]:
    """The chain that most layouts have, and which do."""
    best, most = "", np.zeros(attention.shape[1], dtype=bool)
    for inner, outer in combinations_with_replacement(range(_ATTENTION_CUTS + 1), 2):
        fits = _between(experts[0], attention, inner) & _between(experts[1], attention, outer)
        if fits.sum() > most.sum():
            best, most = "a" * inner + "e" + "a" * (outer - inner) + "e" + "a" * (_ATTENTION_CUTS - outer), fits
    return best, most


def _between(cut: Ints, attention: Ints, position: int) -> Bools:
    """Whether so many of attention's cuts may stand before the cut."""
    fits = np.ones(len(cut), dtype=bool)
    if position > 0:
        fits &= attention[position - 1] <= cut
    if position < _ATTENTION_CUTS:
        fits &= cut <= attention[position]
    return fits


@dataclass(frozen=True)
class Cores:
    """What blocks without experts see of the layouts: most layouts are alike to them.

    Attributes:
        sizes: [axes, cores] of the axes of :data:`.structure.CORE_LABELS`, innermost first.
        strides: Distances in ranks, alike.
        megatron: [cores] whether the stream is cut over tp.
        of: [layouts] number of each layout's core.
        groups: [layouts] attention-DP groups, which share the batch and nothing else.
    """

    sizes: Ints
    strides: Ints
    megatron: Bools
    of: Ints
    groups: Ints


def core_axes(layouts: Layouts, model: ModelSpec, domain: int) -> Cores:
    """The layouts as blocks without experts see them.

    The experts' cuts are there, because a group that spans domains costs by its atomic axes; where that makes no
    difference they are left out, and so are groups of attention DP.
    """
    own = [np.ones_like(layouts.ranks), *layouts.attention_cuts(model), layouts.ranks]
    others = np.ones((2, len(layouts)), dtype=np.int64)
    if model.moe is not None:
        usual = layouts.nesting(model)[0]
        others = np.where(usual, layouts.expert_cuts(False), layouts.expert_cuts(True))
    chain = [own[0]]
    for low, high in pairwise(own):
        chain += [np.clip(others[0], low, high), np.clip(others[1], low, high), high]
    points = np.stack(chain[:-3])
    for low in range(0, len(points) - 1, 3):
        cut, high = points[low : low + 4], points[low + 3]
        parts = np.clip(domain // cut[:-1], 1, cut[1:] // cut[:-1])
        alike = parts.prod(axis=0) == np.clip(domain // cut[0], 1, high // cut[0])
        points[low + 1 : low + 3] = np.where(alike, high, cut[1:3])
    points = np.concatenate([points, *[points[-1:]] * 3])
    distinct, of = np.unique(np.concatenate([points, layouts.megatron[None]]), axis=1, return_inverse=True)
    points, megatron = distinct[:-1], distinct[-1] > 0
    return Cores(points[1:] // points[:-1], points[:-1], megatron, of.reshape(-1), layouts.adp)


def _placed(structure: Structure, index: Ints, attention: Ints, experts: Ints, ranks: Ints) -> Placed:
    rows = {"a": iter(attention), "e": iter(experts)}
    chain = np.stack([np.ones_like(ranks), *(next(rows[label]) for label in structure.labels), ranks])
    return Placed(structure, index, chain[1:] // chain[:-1], chain[:-1])


def _without_absent(placed: Placed) -> Iterator[Placed]:
    """The same by which axes have size 1."""
    patterns, which = np.unique(placed.sizes == 1, axis=1, return_inverse=True)
    which = which.reshape(-1)
    for number in range(patterns.shape[1]):
        mine, kept = which == number, ~patterns[:, number]
        structure = placed.structure
        absent = tuple(int(i) for i in np.flatnonzero(~kept))
        exact = Structure(structure.labels, absent, structure.replicas_inside, structure.megatron)
        yield Placed(exact, placed.index[mine], placed.sizes[kept][:, mine], placed.strides[kept][:, mine])
