"""Layouts of a stage: which ranks do what, as columns, and the structure that each of them has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import combinations_with_replacement, pairwise

import numpy as np
from numpy.typing import NDArray

from ..spec import ModelSpec
from ..spec.stage_law import Degrees
from .rows import Columnar, distinct_rows
from .structure import LONG_RING, SP_KINDS, SpKind, Structure

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ALLGATHER, MEGATRON, RING, ULYSSES = range(4)
"""Kinds of SP."""
KIND_NAMES = ("allgather", "tp", "ring", "ulysses")


@dataclass(frozen=True)
class Layouts(Columnar):
    """Columns, one entry per layout of a stage: ``R = adp * sp * tp = edp * ep * etp``.

    ``kind`` is that of SP: :data:`ALLGATHER` also without SP, :data:`MEGATRON` where the stream is cut over tp.
    """

    ranks: Ints
    sp: Ints
    tp: Ints
    ep: Ints
    etp: Ints
    kind: Ints

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def adp(self) -> Ints:
        return self.ranks // (self.sp * self.tp)

    @property
    def megatron(self) -> Bools:
        return np.asarray(self.kind == MEGATRON)

    @property
    def edp(self) -> Ints:
        return self.ranks // (self.ep * self.etp)

    def degrees(self, index: int, *, pp: int = 1, dp: int = 1) -> Degrees:
        """Degrees of one layout."""
        values = {f.name: int(getattr(self, f.name)[index]) for f in fields(self) if f.name != "kind"}
        return Degrees(dp=dp, pp=pp, sp_on_tp=bool(self.megatron[index]), **values)

    def kv_groups(self, model: ModelSpec) -> Ints:
        """Ranks of a TP group that hold the same KV head."""
        if model.attention.kind == "mla":
            return np.ones_like(self.tp)
        return np.maximum(1, self.tp // model.attention.kv_heads)

    def kv_groups_on_sp(self, model: ModelSpec) -> Ints:
        """Neighbours on sp that hold the same KV heads, where Ulysses cuts those that TP leaves to a rank."""
        if model.attention.kind == "mla":
            return np.ones_like(self.tp)
        left = np.maximum(1, model.attention.kv_heads // self.tp)
        cuts = (self.kind == ULYSSES) & (self.tp <= model.attention.kv_heads) & (self.sp % left == 0)
        return np.where(cuts, self.sp // left, 1)

    def attention_cuts(self, model: ModelSpec) -> Ints:
        """[4, layouts] running products of attention's axes, innermost first: KV group, tp, KV group on sp, sp."""
        return np.stack([self.kv_groups(model), self.tp, self.tp * self.kv_groups_on_sp(model), self.sp * self.tp])

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
    for expert TP that reaches over groups, and gathers what they have, only the fullest group's sequences count. The
    kind of SP is attention's alone, except that Ulysses may cut the ranks of sp in two.
    """
    usual = layouts.nesting(model)[0]
    ranks = np.where(usual, np.maximum(layouts.sp * layouts.tp, layouts.ep * layouts.etp), layouts.ranks)
    shared = layouts.kv_groups_on_sp(model)
    parted = (shared > 1) & (shared < layouts.sp)
    kind = np.where(layouts.megatron, MEGATRON, np.where(parted, ULYSSES, ALLGATHER))
    columns = (layouts.sp, layouts.tp, layouts.ep, layouts.etp, kind, usual * 1)
    (seen, sp, tp, ep, etp, kind, nested), of = distinct_rows(ranks, *columns)
    differ = Layouts(seen, sp, tp, ep, etp, kind)
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
        layouts: Layouts whose axes nest, of :func:`sights`.
        model: Decides on KV groups.
    """
    assert model.moe is not None
    usual = layouts.nesting(model)[0]
    apart = ~usual | ((layouts.etp > 1) & layouts.megatron & (model.moe.shared > 0))
    for kind in (ALLGATHER, MEGATRON, ULYSSES):
        attention = layouts.attention_cuts(model)
        if kind != ULYSSES:
            attention = np.delete(attention, 2, axis=0)
        for replicas_inside in (False, True):
            alike = (layouts.kind == kind) & (usual != replicas_inside)
            experts = layouts.expert_cuts(replicas_inside)
            for special in (False, True):
                left = np.flatnonzero(alike & (apart == special))
                while len(left):
                    labels, fits = _widest(attention[:, left], experts[:, left])
                    chosen = left[fits]
                    left = left[~fits]
                    structure = Structure(labels, (), replicas_inside, SP_KINDS[int(kind == MEGATRON)])
                    placed = _placed(structure, chosen, attention[:, chosen], experts[:, chosen], layouts.ranks[chosen])
                    yield from _without_absent(placed) if special else (placed,)


def _widest(attention: Ints, experts: Ints) -> tuple[str, Bools]:
    """The chain that most layouts have, and which do."""
    best, most = "", np.zeros(attention.shape[1], dtype=bool)
    cuts = len(attention)
    for inner, outer in combinations_with_replacement(range(cuts + 1), 2):
        fits = _between(experts[0], attention, inner) & _between(experts[1], attention, outer)
        if fits.sum() > most.sum():
            best, most = "a" * inner + "e" + "a" * (outer - inner) + "e" + "a" * (cuts - outer), fits
    return best, most


def _between(cut: Ints, attention: Ints, position: int) -> Bools:
    """Whether so many of attention's cuts may stand before the cut."""
    fits = np.ones(len(cut), dtype=bool)
    if position > 0:
        fits &= attention[position - 1] <= cut
    if position < len(attention):
        fits &= cut <= attention[position]
    return fits


@dataclass(frozen=True)
class Cores:
    """What blocks without experts see of the layouts: most layouts are alike to them.

    Attributes:
        sizes: [axes, cores] of the axes of :data:`.structure.CORE_LABELS`, innermost first.
        strides: Distances in ranks, alike.
        kind: [cores] number of the kind of SP in :data:`.structure.SP_KINDS`.
        crosses: [cores] of a ring, whether any rank's message leaves its scale-up domain.
        of: [layouts] number of each layout's core.
        groups: [layouts] attention-DP groups, which share the batch and nothing else.
    """

    sizes: Ints
    strides: Ints
    kind: Ints
    crosses: Bools
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
    crosses = (layouts.kind == RING) & ring_crosses(layouts.sp * layouts.tp, layouts.adp, domain)
    (*distinct, kind, crosses), of = distinct_rows(*points, _sp_kinds(layouts, model), crosses.astype(np.int64))
    points = np.stack(distinct)
    return Cores(points[1:] // points[:-1], points[:-1], kind, crosses > 0, of, layouts.adp)


def ring_crosses(ranks: Ints, rings: Ints, domain: int) -> Bools:
    """Whether some rank of rings side by side has the next one of its ring in another scale-up domain.

    Ranks of a ring lie evenly over its ``ranks``, with those of its TP group between them. Some ring goes from domain
    to domain iff a domain begins inside the ranks of one, and the first such is where the first domain ends.

    Args:
        ranks: Ranks of a ring and the rings that are interleaved with it.
        rings: How many such lie one after the other, from the first rank of a domain on.
        domain: GPUs of a scale-up domain.
    """
    return np.asarray((domain % ranks != 0) & (domain // ranks < rings))


def _sp_kinds(layouts: Layouts, model: ModelSpec) -> Ints:
    """Numbers in :data:`.structure.SP_KINDS`."""
    ring = SP_KINDS.index(SpKind("ring", 2)) + np.minimum(layouts.sp, LONG_RING) - 2
    ulysses = SP_KINDS.index(SpKind("ulysses")) + (layouts.kv_groups(model) > 1)
    return np.select([layouts.kind == RING, layouts.kind == ULYSSES], [ring, ulysses], layouts.kind)


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
        exact = Structure(structure.labels, absent, structure.replicas_inside, structure.kind)
        yield Placed(exact, placed.index[mine], placed.sizes[kept][:, mine], placed.strides[kept][:, mine])
