"""Repairs of the schedule and of memory: micro-batches, chunks, more ranks, and, where asked for, less work."""

from __future__ import annotations

from collections.abc import Iterator

from ....compiler.build.items import replica_batch
from ....compiler.spec.pack_law import scale_up_domain
from ....compiler.spec.strategy import Phase
from .._case import Case
from .._work_rules import MAX_ITEMS, largest_microbatch
from ._degrees import powers, quick
from ._steps import Candidate, Change, Kind, same, set_degree, set_options, set_term, together

_DOUBLINGS = 11
"""A degree is raised up to a thousandfold to make room."""


def fewer_sequences_than_microbatches(case: Case) -> Iterator[Candidate]:
    """One micro-batch per sequence at most."""
    yield Candidate(Kind.REDUCE, set_options(microbatches=replica_batch(case.spec, case.strategy)))


def chunk_too_small(case: Case) -> Iterator[Candidate]:
    """One token of each sequence of the micro-batch."""
    yield Candidate(Kind.INSERT, set_options(chunk=largest_microbatch(case)))


def too_many_items(case: Case) -> Iterator[Candidate]:
    """The smallest chunk, or else the most micro-batches, that keeps the number of trips in its bound."""
    m, tokens = case.strategy.microbatches, case.spec.workload.input
    if case.phase == "prefill" and case.strategy.chunk is not None and m <= MAX_ITEMS:
        chunks = MAX_ITEMS // m
        yield Candidate(Kind.INSERT, set_options(chunk=-(-tokens // chunks) * largest_microbatch(case)))
    yield Candidate(Kind.REDUCE, set_options(microbatches=min(m, MAX_ITEMS)))


def over_memory(case: Case) -> Iterator[Candidate]:
    """More ranks for each replica: TP inside the fast link, EP, PP, with the fewest GPUs first; both phases if need be.

    On a full cluster replicas make room. Redundant experts go before that.
    """
    if case.degrees.redundant and case.model.moe and case.model.moe.experts % case.degrees.ep == 0:
        yield Candidate(Kind.CHANGE, set_term("ep", redundant=0))
    d, limit = case.degrees, case.spec.cluster.gpus
    domain = scale_up_domain(case.spec.cluster, case.spec.pack)
    found: list[tuple[tuple[int, bool, int, int, int], Change]] = []
    for rank, name in enumerate(("tp", "ep", "pp")):
        if name == "ep" and d.ep == 1:
            continue
        now = getattr(d, name)
        for value in _larger(case, name, now):
            for dp in dict.fromkeys((d.dp, *powers(d.dp))):
                bigger = case.with_option(name, value).with_option("dp", dp)
                gpus = bigger.degrees.gpus
                if (limit is not None and gpus > limit) or not quick(bigger):
                    continue
                slow = name == "tp" and value > domain
                fewer = set_degree("dp", dp) if dp != d.dp else same
                found.append(((gpus, slow, rank, value, -dp), together(fewer, set_degree(name, value))))
    for _, change in sorted(found, key=lambda f: f[0]):
        for phases in _scopes(case):
            yield Candidate(Kind.CHANGE, change, phases)


def _scopes(case: Case) -> tuple[tuple[Phase, ...] | None, ...]:
    """The phase alone; then all, since phases that lay their weights out alike hold them once."""
    return (None, ("prefill", "decode")) if len(case.spec.strategies) == 2 else (None,)


def _larger(case: Case, name: str, now: int) -> list[int]:
    """Doubled values of a degree that can be legal, smallest first."""
    model = case.model
    doubled = [now << shift for shift in range(1, _DOUBLINGS)]
    if name == "pp":
        return [v for v in doubled if v <= model.layers.count]
    most = model.attention.heads if name == "tp" else (model.moe.experts + case.degrees.redundant if model.moe else 1)
    return [v for v in doubled if v <= most and most % v == 0]
