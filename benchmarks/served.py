"""Predictions of measured rows: one lowering per setup, and the run of each row's load on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from paradag.benchmarks.served_rows import METRICS, Layout, Row, Setup
from paradag.compiler.build import build_graph
from paradag.compiler.cost import Hardware, resolve_hardware
from paradag.compiler.cost.serving import ClosedLoop, Latencies
from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.driver import lowering_passes
from paradag.compiler.ir.graph import Graph, Phase
from paradag.compiler.spec import AcceleratorSpec, ChainTerm, ClusterSpec, ModelSpec, Spec, StrategySpec, WorkloadSpec
from paradag.compiler.spec.catalog import accelerator, model
from paradag.compiler.spec.engines import engine
from paradag.passes.analysis.serving import Point, ServingModel, disaggregated
from paradag.passes.analysis.step_times import StepTimes

SKEW = 1.01
"""Expert loads of synthetic prompts follow a power law with this exponent, as in AIConfigurator's expert benchmarks."""
MARLIN = ("sglang", "int4")
"""Engine and format under which the calibration has Marlin's experts, which compute in bf16 whatever the weights are:
AIConfigurator times vLLM's int4 experts with Triton, SGLang's with Marlin."""


def predict(rows: Sequence[Row]) -> list[Row]:
    """The rows with their predictions: one lowering per setup, all its rows at once."""
    done = list(rows)
    by_setup: dict[Setup, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.setup is not None:
            by_setup[row.setup].append(index)
    for setup, indices in by_setup.items():
        for index, row in zip(indices, _predicted(setup, [rows[i] for i in indices]), strict=True):
            done[index] = row
    return done


def _predicted(setup: Setup, rows: Sequence[Row]) -> list[Row]:
    """The rows of one setup. One that fails does not take the others with it."""
    points = [p for row in rows if (p := row.point)]
    try:
        found = _latencies(setup, points)
    except DiagnosticError as error:
        return [replace(row, reason=error.diagnostics[0].message) for row in rows]
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        if len(rows) > 1:
            return [done for row in rows for done in _predicted(setup, [row])]
        return [replace(row, reason=f"cannot be predicted: {error}") for row in rows]
    return [
        replace(row, predicted=_metrics(point.load, latency))
        for row, point, latency in zip(rows, points, found, strict=True)
    ]


def _metrics(load: ClosedLoop, latency: Latencies) -> dict[str, float]:
    total = latency.ttft + (load.output - 1) * latency.tpot
    rate = load.clients * load.output / total
    figures = (latency.tpot * 1e3, latency.ttft * 1e3, total, rate)
    return {m: f for m, f in zip(METRICS, figures, strict=True) if f > 0}


def _latencies(setup: Setup, points: Sequence[Point]) -> list[Latencies]:
    prefill = serving_model(setup, setup.prefill)
    if setup.separate:
        workers = setup.prefill.workers, setup.decode.workers
        return disaggregated(prefill, serving_model(setup, setup.decode), points, *workers)
    shares = [replace(p, load=replace(p.load, clients=-(-p.load.clients // setup.prefill.workers))) for p in points]
    return prefill.latencies(shares)


def serving_model(setup: Setup, layout: Layout) -> ServingModel:
    """A worker under the load of one engine, lowered once."""
    spec = _spec(setup, layout)
    hardware = _hardware(setup, spec)
    phases: tuple[Phase, Phase] = ("prefill", "decode")
    served = engine(setup.engine)

    times = [
        StepTimes(
            _lowered(spec, phase), hardware, fused=served.fused,
            within=served.within, quantizing=served.quantizing,
            experts=_lowered(_spec(setup, layout, masked=False), phase) if layout.masked else None,
        )
        for phase in phases
    ]  # fmt: skip
    return ServingModel(times[0], times[1], served)


def _hardware(setup: Setup, spec: Spec) -> Hardware:
    """The chip under the engine's kernels, or those that the launch chose."""

    def under(kernels: str) -> Hardware:
        dtype = spec.model.dtype
        return resolve_hardware(spec.cluster, dtype, kernels, block_scales=setup.block_scales, skew=SKEW)[0]

    hardware = under(setup.engine.removesuffix("_sync"))
    if setup.expert_kernels != "marlin" or not spec.model.moe:
        return hardware
    whose, variant = MARLIN
    fits = dict(hardware.calibration.fits)
    stored = spec.model.moe.dtype or spec.model.dtype
    fits["experts", hardware.variant(stored)] = under(whose).calibration.fits["experts", variant]
    return replace(hardware, calibration=replace(hardware.calibration, fits=fits))


def _lowered(spec: Spec, phase: Phase) -> Graph:
    graph = build_graph(spec, phase, spec.model.name)
    for each in lowering_passes(spec, phase):
        graph = each.run(graph)
    return graph


def _padded_ffn(served: ModelSpec, etp: int) -> int:
    """Width of experts whose products are as large as those that vLLM pads for Marlin.

    Its weights are padded to multiples of 128 inside an expert and of 256 on the stream (vLLM, `mxfp4.py`,
    `create_weights`). The stream's padding is counted into the width inside.
    """
    if served.moe is None:
        return 0
    local = ceil(served.moe.ffn / etp / 128) * 128
    return etp * ceil(local * ceil(served.hidden / 256) * 256 / served.hidden)


def _spec(setup: Setup, layout: Layout, *, masked: bool = True) -> Spec:
    """The spec of a worker; ``masked`` writes expert parallelism without a dispatch as expert TP."""
    served = model(setup.model)
    changes: dict[str, Any] = {"kv_dtype": setup.kv_dtype, "dtype": setup.dtype or served.dtype}
    node = accelerator(setup.chip).gpus_per_node
    ranks = layout.tp * layout.adp
    if served.moe:
        ffn = _padded_ffn(served, ranks // layout.ep) if setup.expert_kernels == "marlin" else served.moe.ffn
        dtype = setup.expert_dtype or served.moe.dtype
        changes["moe"] = served.moe.model_copy(update={"dtype": dtype, "ffn": ffn})
    cluster = ClusterSpec(
        accelerator=AcceleratorSpec(name=setup.chip, catalog=setup.chip),
        nodes=-(-ranks * layout.pp // node),
        gpus_per_node=node,
    )
    terms = [ChainTerm(name="tp", degree=layout.tp)]
    if served.moe:
        ep = 1 if masked and layout.masked else layout.ep
        terms.insert(0, ChainTerm(name="ep", degree=ep, etp=ranks // ep))
    if layout.pp > 1:
        terms.insert(0, ChainTerm(name="pp", degree=layout.pp))
    phases: tuple[Phase, Phase] = ("prefill", "decode")
    return Spec(
        model=served.model_copy(update=changes),
        cluster=cluster,
        workload=WorkloadSpec(batch=layout.adp, input=1024, output=2),
        strategies=tuple(StrategySpec(phase=p, chain=tuple(terms), ranks=ranks) for p in phases),
    )
