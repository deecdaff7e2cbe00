"""Rules on stages and on the work: layers, tokens, sequences, micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

from ...compiler.build.items import replica_batch
from ...compiler.diagnostics import Severity
from ._case import Case, Finding, choices, count, near
from ._stages import balanced, heaviest

MAX_ITEMS = 100_000
"""Trips through the pipeline that one phase may have; a bound on memory, far above any schedule."""


def stages_do_not_match(case: Case) -> Iterator[Finding]:
    """Every layer in exactly one stage, every stage with a layer."""
    layers, pp, term = case.model.layers.count, case.degrees.pp, case.strategy.term("pp")
    if pp > layers:
        fix = f"use `pp {layers}` or fewer"
        yield Finding(f"{pp} stages for {count(layers, 'layer')}", ("pp",), "at least one layer in each stage", fix)
        return
    if term is None or not term.layers:
        return
    good = " ".join(str(n) for n in balanced(case.model, pp))
    fix, at = f"write `pp {pp} {{ layers {good} }}`", ("pp.layers", "pp")
    if len(term.layers) != pp:
        given = count(len(term.layers), "stage")
        yield Finding(f"`layers` lists {given}, `pp {pp}` has {pp}", at, f"{pp} numbers", fix)
    if sum(term.layers) != layers:
        yield Finding(
            f"`layers` adds up to {sum(term.layers)}, the model has {layers}",
            at,
            "every layer in exactly one stage",
            fix,
        )
    if 0 in term.layers:
        yield Finding("a stage without layers", at, "at least one layer in each stage", fix)


def unbalanced_stages(case: Case) -> Iterator[Finding]:
    """A given split is no worse than the balanced one."""
    term = case.strategy.term("pp")
    given = term.layers if term is not None else ()
    if not given or max(given) - min(given) <= 1:
        return
    best = balanced(case.model, len(given))
    if heaviest(case.model, given) >= heaviest(case.model, best):
        good = " ".join(str(n) for n in best)
        yield Finding(
            f"stages of {min(given)} to {max(given)} layers: every step waits for the longest",
            ("pp.layers", "pp"),
            "stages that differ by one layer at most, unless embedding and LM head make up for it",
            f"write `layers {good}`",
        )


def fewer_tokens_than_shards(case: Case) -> Iterator[Finding]:
    """Every token shard of a sequence has a token."""
    d = case.degrees
    shards = d.sp * (d.tp if d.sp_on_tp else 1)
    tokens = case.spec.workload.input
    if case.phase != "prefill" or shards == 1:
        return
    name = f"`sp tp` with `tp {d.tp}`" if d.sp_on_tp else f"`sp {d.sp}`"
    axis = "tp" if d.sp_on_tp else "sp"
    step = tokens_per_step(case)
    severity = Severity.WARNING if d.sp_on_tp else None  # ranks without tokens idle in norms alone
    if tokens < shards:
        yield Finding(
            f"{count(tokens, 'input token')} for {shards} token shards of {name}",
            ("sp",),
            f"an input of at least {shards} tokens",
            f"use `{axis} {max(1, tokens)}` or less",
            severity,
        )
    elif step < shards:
        chunk = shards * largest_microbatch(case)
        yield Finding(
            f"chunks of {count(step, 'token')} per sequence for {shards} token shards of {name}",
            ("chunk", "sp"),
            f"chunks of at least {shards} tokens per sequence",
            f"use `chunk {chunk}` or more, or more micro-batches",
            severity,
        )


def fewer_sequences_than_microbatches(case: Case) -> Iterator[Finding]:
    """Every micro-batch has a sequence."""
    if case.spec.workload.batch is None:
        return
    batch, m = replica_batch(case.spec, case.strategy), case.strategy.microbatches
    if batch < m:
        replicas = f" per replica (`dp {case.degrees.dp}`)" if case.degrees.dp > 1 else ""
        yield Finding(
            f"{m} micro-batches for {count(batch, 'sequence')}{replicas}",
            ("microbatches",),
            "at least one sequence in each micro-batch",
            f"use `microbatches {batch}` or fewer",
        )


def groups_without_requests(case: Case) -> Iterator[Finding]:
    """Every replica and every attention-DP group has a request."""
    batch, d, m = case.spec.workload.batch, case.degrees, case.strategy.microbatches
    if batch is None:
        return
    if batch < d.dp:
        fix = f"use `dp {batch}` or less, or a batch of at least {d.dp}"
        yield Finding(
            f"{d.dp - batch} of {d.dp} replicas have no requests", ("dp",), f"a batch of at least {d.dp}", fix
        )
    smallest = batch // d.dp // m
    if 0 < smallest < d.adp:
        legal = near(m, lambda v: batch // d.dp // v >= d.adp)[:1] if batch // d.dp >= d.adp else []
        fewer = choices("microbatches", [v for v in legal if v < m])
        yield Finding(
            f"{d.adp - smallest} of {d.adp} attention-DP groups have no requests: "
            f"micro-batches of {count(smallest, 'sequence')}",
            ("ep", "ranks", "tp"),
            f"micro-batches of at least {d.adp} sequences",
            f"use {fewer}" if fewer else f"raise `batch` to {d.adp * d.dp * m}, or raise `tp`",
        )


def chunk_too_small(case: Case) -> Iterator[Finding]:
    """A chunk advances every sequence of its micro-batch."""
    chunk, size = case.strategy.chunk, largest_microbatch(case)
    if case.phase != "prefill" or chunk is None or chunk >= size:
        return
    m = -(-replica_batch(case.spec, case.strategy) // chunk)
    yield Finding(
        f"a chunk of {count(chunk, 'token')} for a micro-batch of {size} sequences",
        ("chunk",),
        "at least one token of each sequence in a chunk",
        f"use `chunk {size}` or more, or `microbatches {m}`",
    )


def too_many_items(case: Case) -> Iterator[Finding]:
    """The number of trips through the pipeline is bounded."""
    chunks = -(-case.spec.workload.input // tokens_per_step(case)) if case.phase == "prefill" else 1
    items = case.strategy.microbatches * chunks
    if items > MAX_ITEMS:
        parts = f"{case.strategy.microbatches:,} micro-batches" + (f" of {chunks:,} chunks" if chunks > 1 else "")
        chunked = case.strategy.chunk is not None and chunks > 1
        fix = "raise `chunk`" if chunked else f"use `microbatches {MAX_ITEMS}` or fewer"
        at = ("chunk", "microbatches") if chunked else ("microbatches",)
        yield Finding(f"{parts} make {items:,} trips through the pipeline", at, f"at most {MAX_ITEMS:,}", fix)


def largest_microbatch(case: Case) -> int:
    """Sequences of the largest micro-batch of a replica."""
    return -(-replica_batch(case.spec, case.strategy) // case.strategy.microbatches)


def tokens_per_step(case: Case) -> int:
    """New tokens per sequence in the first chunk of the largest micro-batch."""
    tokens, chunk, size = case.spec.workload.input, case.strategy.chunk, largest_microbatch(case)
    return tokens if chunk is None or size * tokens <= chunk else max(1, chunk // size)
