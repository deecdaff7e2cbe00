"""What another strategy for decode would cost: built, lowered and timed, without a flat graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...compiler.build import build_graph, cache_tokens, cached_sequences, two_layouts
from ...compiler.cost import Hardware, node_costs
from ...compiler.ir.graph import Phase
from ...compiler.spec import LoadedSpec, Spec, StrategySpec
from ..analysis import PhaseAnalysis
from ..analysis.memory import analyse_memory, weight_bytes
from ..analysis.stage_times import step_interval
from ..lowering import lowering_sequence
from ._case import Case
from ._stages import stage_layers


@dataclass(frozen=True)
class Decode:
    """A decode strategy: GPUs, seconds per token, and whether it fits into memory."""

    gpus: int
    tpot: float
    fits: bool


def decode_with(loaded: LoadedSpec, phases: Mapping[Phase, PhaseAnalysis], degrees: Mapping[str, int]) -> Decode | None:
    """Decode with other degrees in its chain; None where they are not legal."""
    from .strategy import check_spec

    spec, strategy = loaded.spec, loaded.spec.strategy("decode")
    assert strategy is not None
    case = Case(loaded, strategy)
    for name, value in degrees.items():
        case = case.with_option(name, value)
    changed = _with(spec, case.strategy)
    found = check_spec(LoadedSpec(changed), advised=False)[1]
    if any(d.is_error or d.code == "PD219" for d in found):
        return None
    return _timed(changed, phases, phases["decode"].hardware)


def _with(spec: Spec, decode: StrategySpec) -> Spec:
    """The spec with another decode strategy; a split of layers holds for its own number of stages only."""
    term = decode.term("pp")
    if term is not None and term.layers and len(term.layers) != term.degree:
        chain = tuple(t.model_copy(update={"layers": ()}) if t.name == "pp" else t for t in decode.chain)
        decode = decode.model_copy(update={"chain": chain})
    strategies = tuple(decode if s.phase == "decode" else s for s in spec.strategies)
    return spec.model_copy(update={"strategies": strategies})


def _timed(spec: Spec, phases: Mapping[Phase, PhaseAnalysis], hardware: Hardware) -> Decode:
    graph = build_graph(spec, "decode", "alternative", 1)
    for lowering in lowering_sequence(stage_layers(spec, "decode")):
        graph = lowering.run(graph)
    other = max(weight_bytes(phases["prefill"].graph)) if "prefill" in phases and two_layouts(spec) else 0.0
    cached = cached_sequences(spec, "decode")
    memory = analyse_memory(graph, hardware.memory, cache_tokens(spec, "decode"), other_weights=other, cached=cached)
    return Decode(graph.mesh.gpus, step_interval(graph, node_costs(graph, hardware)), memory.headroom >= 0)


def as_it_is(analysis: PhaseAnalysis) -> Decode:
    """The decode strategy that was compiled."""
    return Decode(analysis.graph.mesh.gpus, analysis.latency, analysis.memory.headroom >= 0)


def smaller(value: int) -> int:
    """The value without its smallest prime factor: the next coarser degree."""
    return value // next(f for f in range(2, value + 1) if value % f == 0)
