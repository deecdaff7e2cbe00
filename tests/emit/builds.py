"""Compiled phases for the tests of outputs, built without files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from paradag.compiler.cost import resolve_hardware
from paradag.compiler.diagnostics import Outcome
from paradag.compiler.ir.graph import Phase
from paradag.compiler.spec import (
    AcceleratorSpec,
    AttentionSpec,
    ChainTerm,
    ClusterSpec,
    LayersSpec,
    ModelSpec,
    MoeSpec,
    Spec,
    StrategySpec,
    WorkloadSpec,
)
from paradag.passes.analysis import analyse_phase
from paradag.passes.compiled import Compiled
from paradag.tests.strategies import lowered_levels

MOE = MoeSpec(experts=8, top_k=2, ffn=16, shared=1)


def term(name: str, degree: int | None, **options: Any) -> ChainTerm:
    return ChainTerm(name=name, degree=degree, **options)


def tiny_spec(
    phase: Phase, *chain: ChainTerm, moe: MoeSpec | None = None, layers: int = 1, batch: int = 4, **options: Any
) -> Spec:
    """A model of hidden 8 on nodes of 8 GPUs, with one strategy."""
    return Spec(
        model=ModelSpec(
            name="tiny",
            layers=LayersSpec(count=layers),
            hidden=8,
            vocab=32,
            ffn=16,
            attention=AttentionSpec(kind="gqa", heads=4, kv_heads=2, head_dim=4),
            moe=moe,
        ),
        cluster=ClusterSpec(accelerator=AcceleratorSpec(name="h100_sxm", catalog="h100_sxm"), nodes=4, gpus_per_node=8),
        workload=WorkloadSpec(batch=batch, input=6, output=2),
        strategies=(StrategySpec(phase=phase, chain=chain, **options),),
    )


def compile_phase(spec: Spec, phase: Phase, steps: int = 1, *, ranks: bool = False) -> Compiled:
    """One phase of a spec, analysed."""
    hardware, assumptions = resolve_hardware(spec.cluster)
    graph = lowered_levels(spec, phase, steps)[-1]
    context = spec.workload.input + spec.workload.output
    analysis = analyse_phase(graph, hardware, context, expand_ranks=ranks)
    return Compiled(
        name="small", spec=spec, status=Outcome.VALID, assumptions=tuple(assumptions), phases={phase: analysis}
    )


def rejected(compiled: Compiled, *diagnostics: Any) -> Compiled:
    """The same run, had it been rejected."""
    return replace(compiled, status=Outcome.REJECTED, diagnostics=diagnostics, phases={})
