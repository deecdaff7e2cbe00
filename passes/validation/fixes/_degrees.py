"""Repairs that reduce a degree: law of the stage, cluster, shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from math import isqrt, lcm

from .._case import Case
from .._shape_rules import MAX_RING, ulysses_fits
from .._stages import balanced
from .._work_rules import largest_microbatch, tokens_per_step
from ._steps import Candidate, Change, Kind, same, set_degree, set_options, set_term, together

_REDUNDANT = 100_000
"""Most redundant slots that the language takes."""


def no_whole_groups(case: Case) -> Iterator[Candidate]:
    """The legal choice that keeps most of a degree."""
    names = ["ep", "tp", "sp", "ranks"] + ["etp"] * _names_etp(case)
    yield from _reduced(case, names)
    if case.strategy.ranks is not None:
        yield Candidate(Kind.REDUCE, set_options(ranks=None))


def shapes_do_not_divide(case: Case) -> Iterator[Candidate]:
    """The largest smaller TP, or TP inside an expert, that cuts all shapes evenly."""
    yield from _reduced(case, ["tp", *["etp"] * _names_etp(case)])


def kind_does_not_fit(case: Case) -> Iterator[Candidate]:
    """Fewer ranks that share out the heads or make the ring; else as many, which gather the context instead."""
    ring = case.strategy.sp_kind == "ring"
    for value in _values(case, "sp"):
        fits = value <= MAX_RING if ring else ulysses_fits(case, value)
        if value > 1 and fits and quick(case.with_option("sp", value)):
            yield Candidate(Kind.REDUCE, set_degree("sp", value))
    yield Candidate(Kind.CHANGE, set_term("sp", kind=None))


def experts_not_divisible(case: Case) -> Iterator[Candidate]:
    """Redundant experts that fill the last ranks; else a smaller EP."""
    moe, d = case.model.moe, case.degrees
    if moe is None:
        return
    redundant = -(-(moe.experts + d.redundant) // d.ep) * d.ep - moe.experts
    if redundant <= _REDUNDANT:
        yield Candidate(Kind.INSERT, set_term("ep", redundant=redundant))
    yield from _reduced(case, ["ep"])


def stages_do_not_match(case: Case) -> Iterator[Candidate]:
    """One stage per layer at most; a list of layers that does not fit is replaced by the balanced one, or goes."""
    layers, pp = case.model.layers.count, case.degrees.pp
    if pp > layers:
        yield Candidate(Kind.REDUCE, set_degree("pp", layers))
        return
    yield Candidate(Kind.INSERT, set_term("pp", layers=balanced(case.model, pp)))
    yield Candidate(Kind.INSERT, set_term("pp", layers=()))


def fewer_tokens_than_shards(case: Case) -> Iterator[Candidate]:
    """A chunk with a token for every shard, where the chunk is what leaves too few; else fewer shards."""
    d = case.degrees
    if case.strategy.chunk is not None and case.spec.workload.input >= d.sp:
        yield Candidate(Kind.INSERT, set_options(chunk=d.sp * largest_microbatch(case)))
    fitting = min(case.spec.workload.input, tokens_per_step(case))
    values = {v for v in (*_values(case, "sp"), fitting) if v <= fitting and v < d.sp}
    for value in sorted(values, reverse=True):
        yield Candidate(Kind.REDUCE, set_degree("sp", value))


def too_many_gpus(case: Case) -> Iterator[Candidate]:
    """Fewer replicas; else, with as few of them as need be, the one degree whose reduction leaves most GPUs in use."""
    limit = case.spec.cluster.gpus
    if limit is None:
        return
    d = case.degrees
    fitting = limit // (d.gpus // d.dp)
    if d.dp > 1 and fitting:
        yield Candidate(Kind.REDUCE, set_degree("dp", min(fitting, d.dp - 1)))
        for dp in range(min(fitting, d.dp - 1) - 1, 0, -1)[:8]:
            yield Candidate(Kind.REDUCE, set_degree("dp", dp))
    single = set_degree("dp", 1) if d.dp > 1 else same
    base = case.with_option("dp", 1)
    found = []
    for rank, name in enumerate(("pp", "tp", "ep", "sp", "ranks")):
        for value in _values(base, name):
            smaller = base.with_option(name, value)
            if quick(smaller) and smaller.degrees.gpus <= limit:
                found.append((-smaller.degrees.gpus, rank, (name, value)))
    for _, _, (name, value) in sorted(found):
        yield Candidate(Kind.REDUCE, together(single, set_degree(name, value)))
    yield from _two_reduced(base, single, limit)
    if case.strategy.pools == "separate":
        yield Candidate(Kind.CHANGE, set_options(pools="shared"), ("prefill", "decode"))


def _two_reduced(base: Case, single: Change, limit: int) -> Iterator[Candidate]:
    """PP and one more, down to a single device."""
    found = []
    for pp, (rank, name) in product(powers(base.degrees.pp), enumerate(("tp", "ep", "sp"))):
        shallower = base.with_option("pp", pp)
        for value in _values(shallower, name):
            smaller = shallower.with_option(name, value)
            if smaller.degrees.gpus <= limit and quick(smaller):
                found.append((-smaller.degrees.gpus, rank, -pp, name, value))
    for _, _, pp, name, value in sorted(found):
        yield Candidate(Kind.REDUCE, together(single, set_degree("pp", -pp), set_degree(name, value)))
    ones = [set_degree(n, 1) for n in ("pp", "sp", "ep", "tp") if getattr(base.degrees, n) > 1]
    yield Candidate(Kind.CHANGE, together(single, *ones, set_options(ranks=None)))


def _reduced(case: Case, names: Iterable[str]) -> Iterator[Candidate]:
    """Smaller values of one of ``names``, those first that keep most of it."""
    found = []
    for name in names:
        now = (case.strategy.ranks or 1) if name == "ranks" else getattr(case.degrees, name)
        for value in _values(case, name):
            if quick(case.with_option(name, value)):
                found.append((-value / now, name, value))
    for _, name, value in sorted(found):
        yield Candidate(Kind.REDUCE, set_degree(name, value))


def quick(case: Case) -> bool:
    """What is cheap to know, before all rules are asked."""
    return case.degrees.fits() and case.mesh is not None


def _values(case: Case, name: str) -> list[int]:
    """Smaller values of a degree that can be legal, largest first."""
    d, model = case.degrees, case.model
    if name == "ranks":
        if case.strategy.ranks is None:
            return []
        both = lcm(d.sp * d.tp, d.ep * d.etp)
        below = (case.strategy.ranks - 1) // both
        return [both * v for v in (below, *powers(below)) if v]
    now = getattr(d, name)
    if name == "pp":
        limit = case.spec.cluster.gpus or now
        most = min(now - 1, model.layers.count, max(1, limit // (d.dp * d.ranks)))
        return list(range(most, 0, -1)[:64])
    legal: Iterable[int] = ()
    if name == "tp":
        legal = _divisors(model.attention.heads)
    elif name == "etp" and model.moe is not None:
        legal = _divisors(model.moe.ffn)
    elif name == "ep" and model.moe is not None:
        legal = _divisors(model.moe.experts + d.redundant)
    elif name == "sp":
        legal = {*_divisors(now), *_divisors(d.ep * d.etp)}
    return sorted((v for v in legal if v < now), reverse=True)


def powers(value: int) -> list[int]:
    """``value`` and its halves down to 1."""
    return [value >> shift for shift in range(value.bit_length())]


@cache
def _divisors(number: int) -> tuple[int, ...]:
    small = [v for v in range(1, isqrt(number) + 1) if number % v == 0]
    return tuple(dict.fromkeys((*small, *(number // v for v in reversed(small)))))


def _names_etp(case: Case) -> bool:
    term = case.strategy.term("ep")
    return term is not None and bool(term.etp)
