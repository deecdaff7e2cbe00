"""Rules on the spec as a whole: the workload, and all phases against the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ...compiler.build.mesh import pools_separate
from ...compiler.diagnostics import Diagnostic
from ...compiler.spec import LoadedSpec
from ._case import Case, Finding, count
from ._law_rules import legal_choices


@dataclass(frozen=True)
class SpecRule:
    """A rule that looks at all phases together; see :class:`paradag.passes.validation._case.Rule`."""

    code: str
    check: Callable[[LoadedSpec, Sequence[Case]], Iterator[Finding]]
    unless: frozenset[str] = frozenset()

    def diagnose(self, loaded: LoadedSpec, f: Finding) -> Diagnostic:
        return Diagnostic(self.code, f.message, loaded.span(*f.at), f.expected, f.help, f.severity)


def phase_without_strategy(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """A phase without a strategy is not compiled."""
    mode = loaded.spec.workload.mode
    wanted = [p for p in ("prefill", "decode") if mode in {p, "both", "mixed"}]
    for phase in wanted:
        if cases and all(c.phase != phase for c in cases):
            yield Finding(
                f"{phase} has no strategy and is not compiled",
                (f"strategy.{cases[0].phase}",),
                f"a `strategy {phase}` block",
                f"add `strategy {phase} {{ ... }}`, or leave out the phase's name to mean both",
            )


def workload_incomplete(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """A compilation needs the number of sequences in flight."""
    if loaded.spec.workload.batch is None:
        yield Finding(
            "`workload` has no `batch`",
            ("workload",),
            "the number of sequences in flight over all replicas",
            "write for example `batch 32`",
        )


def context_too_long(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """Input and output fit into the context that the model is made for."""
    work, limit = loaded.spec.workload, loaded.spec.model.max_context
    longest = max(work.input + work.output, work.sequence[1] if work.sequence else 0)
    if limit is not None and longest > limit:
        yield Finding(
            f"sequences of {longest:,} tokens, the model is made for {limit:,}",
            ("workload.sequence", "workload.input", "workload.output", "workload")
            if work.sequence and longest == work.sequence[1]
            else ("workload.input", "workload.output", "workload"),
            f"input and output together at most {limit:,} tokens",
            f"use `output {limit - work.input} tokens`"
            if limit > work.input
            else f"use `input {limit - 1} tokens` or less",
        )


def too_many_gpus(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """A phase takes at most the cluster, separate pools do so together."""
    cluster = loaded.spec.cluster
    if cluster.gpus is None:
        return
    needs = [(c.degrees.gpus, c) for c in cases]
    nodes = -(-max((n for n, _ in needs), default=0) // cluster.gpus_per_node)
    over = [c for n, c in needs if n > cluster.gpus]
    for case in over:
        smaller = [*legal_choices(case, fewer=True), f"`nodes {nodes} of {cluster.gpus_per_node}`"]
        yield Finding(
            f"{_whose(case)}{_law(case)} needed, the cluster has {cluster.gpus:,}",
            (f"strategy.{case.phase}",),
            f"at most {count(cluster.gpus, 'GPU')}",
            f"use {' or '.join(smaller)}",
        )
    total = sum(n for n, _ in needs)
    if not over and pools_separate(loaded.spec) and total > cluster.gpus:
        nodes = -(-total // cluster.gpus_per_node)
        yield Finding(
            f"separate pools need {' + '.join(str(n) for n, _ in needs)} = {total:,} GPUs, "
            f"the cluster has {cluster.gpus:,}",
            ("strategy.prefill.pools", "strategy.decode.pools", "strategy.prefill"),
            f"at most {count(cluster.gpus, 'GPU')} in both pools together",
            f"use `pools shared` or `nodes {nodes} of {cluster.gpus_per_node}`",
        )


def gpus_left_unused(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """A fixed strategy uses the whole cluster."""
    cluster = loaded.spec.cluster
    if cluster.gpus is None or not cases:
        return
    separate = pools_separate(loaded.spec)
    needs = [c.degrees.gpus for c in cases]
    used = sum(needs) if separate else max(needs)
    if used >= cluster.gpus:
        return
    replicas = cluster.gpus // used
    busiest = cases[needs.index(max(needs))]
    fixes = [f"`dp {replicas * busiest.degrees.dp}`"] if replicas > 1 else []
    if used % cluster.gpus_per_node == 0:
        fixes.append(f"`nodes {used // cluster.gpus_per_node} of {cluster.gpus_per_node}`")
    yield Finding(
        f"{count(cluster.gpus - used, 'GPU')} of {cluster.gpus:,} left unused: "
        f"{' + '.join(map(str, needs)) if separate else used} in use",
        (f"strategy.{busiest.phase}",),
        f"a strategy for {cluster.gpus:,} GPUs",
        f"use {' or '.join(fixes)}" if fixes else "raise a degree, or take a smaller cluster",
    )


def _whose(case: Case) -> str:
    """The phase, where no place in a file tells it."""
    return "" if case.loaded.span(f"strategy.{case.phase}") else f"{case.phase}: "


def _law(case: Case) -> str:
    """``128 GPUs (pp 4 * 32 ranks)``."""
    d = case.degrees
    parts = [f"{n} {v}" for n, v in (("dp", d.dp), ("pp", d.pp)) if v > 1]
    parts = [*parts, f"{d.ranks} ranks of a stage"] if parts or d.idle else []
    idle = f" + {d.idle:,} idle" if d.idle else ""
    law = case.spec.pack.cite("law.gpus") if case.spec.pack else None
    detail = f" ({' * '.join(parts)}{idle}{f', {law}' if law else ''})" if parts or law else ""
    return count(d.gpus, "GPU") + detail
