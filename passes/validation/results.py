"""What the numbers say: memory against capacity, latency and throughput against the requirements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...compiler.diagnostics import Diagnostic
from ...compiler.ir.graph import Phase
from ...compiler.spec import LoadedSpec
from ..analysis import PhaseAnalysis
from ._advice_rules import advice_findings

_GB = 1e9


def result_findings(loaded: LoadedSpec, phases: Mapping[Phase, PhaseAnalysis]) -> tuple[Diagnostic, ...]:
    """All findings on the results of a compilation; advice only on one that fits into memory."""
    memory = tuple(memory_findings(loaded, phases))
    advice = () if memory else tuple(advice_findings(loaded, phases))
    return (*memory, *requirement_findings(loaded, phases), *advice)


def memory_findings(loaded: LoadedSpec, phases: Mapping[Phase, PhaseAnalysis]) -> Iterator[Diagnostic]:
    """PD301 for every phase whose fullest GPU holds more than its memory."""
    for phase, analysis in phases.items():
        fullest, capacity = analysis.memory.fullest, analysis.memory.capacity
        if fullest.total <= capacity:
            continue
        parts = ", ".join(
            f"{label} {value / _GB:.1f}"
            for label, value in (
                ("weights", fullest.weights),
                ("KV cache", fullest.kv_cache),
                ("activations", fullest.activations),
                ("buffers", fullest.buffers),
            )
        )
        yield Diagnostic(
            "PD301",
            f"{phase}: the fullest GPU needs {fullest.total / _GB:.1f} GB ({parts}) of {capacity / _GB:.1f} GB",
            span=loaded.span(f"strategy.{phase}"),
            expected="weights + KV cache + activations + communication buffers within each GPU's memory",
            help=_memory_help(loaded, phase, analysis),
        )


def _memory_help(loaded: LoadedSpec, phase: Phase, analysis: PhaseAnalysis) -> str:
    fullest = analysis.memory.fullest
    over = fullest.total - analysis.memory.capacity
    if fullest.weights > analysis.memory.capacity:
        return "the weights alone do not fit: raise pp, tp or ep, or use a narrower dtype"
    batch = loaded.spec.workload.batch or 1
    if fullest.kv_cache > over:
        fits = int(batch * (fullest.kv_cache - over) / fullest.kv_cache)
        if fits >= 1:
            return f"a batch of {fits} fits by KV cache (now {batch}); or raise pp or tp, or use a narrower kv_dtype"
    return "raise pp or tp, cut the prefill into chunks, or reduce batch or context"


def requirement_findings(loaded: LoadedSpec, phases: Mapping[Phase, PhaseAnalysis]) -> Iterator[Diagnostic]:
    """PD302 to PD304 for every requirement that the estimate misses."""
    require = loaded.spec.workload.require
    prefill, decode = phases.get("prefill"), phases.get("decode")
    if require.ttft is not None and prefill is not None and prefill.loaded_latency > require.ttft:
        yield _missed("PD302", "TTFT", prefill.loaded_latency, require.ttft, loaded, "ttft")
    if require.tpot is not None and decode is not None and decode.loaded_latency > require.tpot:
        yield _missed("PD303", "TPOT", decode.loaded_latency, require.tpot, loaded, "tpot")
    # Prompt tokens count where the work is prefill alone.
    served = decode or prefill
    if served is None:
        return
    per_gpu = served.tokens_per_s / served.graph.mesh.gpus
    for key, got, limit, unit in (
        ("throughput", served.tokens_per_s, require.throughput if decode else None, "tokens/s"),
        ("throughput_per_gpu", per_gpu, require.throughput_per_gpu, "tokens/s per GPU"),
    ):
        if limit is not None and got < limit:
            yield Diagnostic(
                "PD304",
                f"throughput is {got:,.0f} {unit}, {got / limit:.0%} of what is required",
                span=loaded.span(f"workload.require.{key}", "workload"),
                expected=f"at least {limit:,.0f} {unit}",
                help="a larger batch, more replicas (dp), or less communication",
            )


def _missed(code: str, name: str, got: float, limit: float, loaded: LoadedSpec, key: str) -> Diagnostic:
    return Diagnostic(
        code,
        f"{name} is {got * 1e3:.1f} ms, {got / limit - 1:.0%} over what is required",
        span=loaded.span(f"workload.require.{key}", "workload"),
        expected=f"at most {limit * 1e3:.1f} ms",
        help="a smaller batch, more ranks, or micro-batches that keep the pipeline full",
    )
