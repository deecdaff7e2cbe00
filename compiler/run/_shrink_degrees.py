"""Smaller degrees of the same structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from ..ir.mesh import ATTENTION_VIEW, EXPERT_VIEW, AxesDoNotNest, build_mesh
from ..spec import ModelSpec
from ..spec.stage_law import Degrees
from ..spec.strategy import Phase

_MOST_OPTIONS = 64
"""Layouts of a phase that are weighed against those of the other."""


def shrink_degrees(before: Mapping[Phase, Degrees], model: ModelSpec, max_ranks: int) -> dict[Phase, Degrees]:
    """Degrees of at most ``max_ranks`` ranks per phase, and of one replica.

    What is more than 1 stays more than 1; KV heads stay split or replicated; the axes of experts lie across those of
    attention as before; layouts of both phases are equal afterwards if they were before. Where nothing so small keeps
    all this, degrees stay as they are.
    """
    single = {p: replace(d, dp=1) for p, d in before.items()}
    options = [_options(d, model, max_ranks) for d in single.values()]
    alike = len(set(single.values())) == 1
    pairs = (p for p in product(*options) if (len(set(p)) == 1) == alike)
    best = max(pairs, key=_kept, default=tuple(single.values()))
    return dict(zip(single, best, strict=True))


def _kept(layouts: tuple[Degrees, ...]) -> tuple[int, int, int]:
    """Which of several small layouts is nearest to the real one: most ranks, then most stages, then most TP."""
    return sum(_ranks(d) for d in layouts), sum(d.pp for d in layouts), sum(d.tp for d in layouts)


def _ranks(d: Degrees) -> int:
    return d.pp * d.ranks


def _options(d: Degrees, model: ModelSpec, max_ranks: int) -> list[Degrees]:
    if _ranks(d) <= max_ranks:
        return [d]
    replicates = _replicates(model, d)
    wanted = _signature(d, replicates)
    found = [small for small in _smaller(d, max_ranks) if _signature(small, replicates) == wanted]
    return sorted(found, key=lambda small: _kept((small,)), reverse=True)[:_MOST_OPTIONS] or [d]


def _smaller(d: Degrees, max_ranks: int) -> Iterator[Degrees]:
    """Degrees that divide the real ones, obey the law of the stage, and are 1 just where the real ones are."""
    by_law = d.ranks == max(d.sp * d.tp, d.ep * d.etp)
    for pp in _divisors(d.pp, max_ranks):
        room = max_ranks // pp
        attention = _pairs(d.sp, d.tp, room)
        experts = _pairs(d.ep, d.etp, room)
        for (sp, tp), (ep, etp) in product(attention, experts):
            law = max(sp * tp, ep * etp)
            for ranks in [law] if by_law else [n for n in _divisors(d.ranks, room) if n != law]:
                small = replace(d, pp=pp, sp=sp, ep=ep, tp=tp, etp=etp, ranks=ranks)
                if small.fits() and _present(small) == _present(d):
                    yield small


def _pairs(outer: int, inner: int, room: int) -> list[tuple[int, int]]:
    return [(a, b) for a in _divisors(outer, room) for b in _divisors(inner, room // a)]


def _present(d: Degrees) -> tuple[bool, ...]:
    return tuple(getattr(d, n) > 1 for n in ("pp", "sp", "ep", "tp", "etp", "adp", "edp"))


def _signature(d: Degrees, replicates: bool) -> tuple[object, ...] | None:
    """What of a layout is structure, not size; None where its axes do not nest.

    Where TP replicates KV heads, it must leave room for some heads and some replicas.
    """
    attention = {n: getattr(d, n) for n in ATTENTION_VIEW}
    experts = {n: getattr(d, n) for n in EXPERT_VIEW}
    try:
        mesh = build_mesh(attention=attention, experts=experts)
    except AxesDoNotNest:
        return None
    across = tuple(bool(set(mesh.view(a)) & set(mesh.view(e))) for a in ATTENTION_VIEW for e in EXPERT_VIEW)
    return _present(d), across, replicates and _can_replicate(d.tp)


def _replicates(model: ModelSpec, d: Degrees) -> bool:
    """Whether several KV heads are each held by several ranks of a TP group."""
    return model.attention.kind != "mla" and 1 < model.attention.kv_heads < d.tp


def _can_replicate(tp: int) -> bool:
    return any(tp % n == 0 for n in range(2, tp))


def _divisors(n: int, limit: int) -> list[int]:
    """Divisors up to a limit; a degree that is more than 1 stays so."""
    return [1] if n == 1 else [k for k in range(2, min(n, limit) + 1) if n % k == 0]
