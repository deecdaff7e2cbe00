"""Specs and lowered graphs that the tests of validation share."""

from __future__ import annotations

from paradag.compiler.build import build_graph
from paradag.compiler.diagnostics import Diagnostic
from paradag.compiler.ir.graph import Graph, Phase
from paradag.compiler.spec import LoadedSpec
from paradag.grammar import load_text
from paradag.passes.lowering import LowerEp, LowerPp, LowerSp, LowerTp
from paradag.passes.validation import check_spec, stage_layers

DENSE = (
    "model dense { layers 8 hidden 1024 vocab 1000 ffn 2048 "
    "attention gqa { heads 16 kv_heads 4 head_dim 64 } max_context 4096 }"
)
MOE = (
    "model moe { layers 8 hidden 1024 vocab 1000 attention gqa { heads 16 kv_heads 4 head_dim 64 } "
    "moe { experts 64 top_k 4 ffn 512 shared 1 } }"
)


def load(
    strategy: str,
    *,
    model: str = DENSE,
    nodes: str = "any of 8",
    accelerator: str = "h100_sxm",
    workload: str = "batch 64 input 512 tokens output 128 tokens",
) -> LoadedSpec:
    """A spec; ``strategy`` is one or more blocks, or the inside of one for prefill."""
    if not strategy.startswith("strategy"):
        strategy = f"strategy prefill {{ {strategy} }}"
    cluster = f"cluster {{ accelerator {accelerator} nodes {nodes} }}"
    model = model.replace("model dense", 'model "dense"').replace("model moe", 'model "moe"')
    return load_text(f"{model}\n{cluster}\nworkload {{ {workload} }}\n{strategy}\n", "case.strat")


def found(strategy: str, code: str, **options: str) -> list[Diagnostic]:
    """Findings with that code."""
    return [d for d in check_spec(load(strategy, **options))[1] if d.code == code]


def codes(strategy: str, **options: str) -> set[str]:
    return {d.code for d in check_spec(load(strategy, **options))[1]}


def lowered(loaded: LoadedSpec, phase: Phase, steps: int = 2) -> list[Graph]:
    """The graph of a phase at every level: logical, pp, sp, ep, tp."""
    spec = check_spec(loaded)[0].spec
    graphs = [build_graph(spec, phase, "case", steps)]
    for lowering in (LowerPp(stage_layers(spec, phase)), LowerSp(), LowerEp(), LowerTp()):
        graphs.append(lowering.run(graphs[-1]))
    return graphs
