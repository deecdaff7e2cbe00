"""The JSON document of one phase's strategy: its keys and its published schema.

The request is in it whole, so that it can be compiled again; sizes, GPUs and memory are spelled out for readers that do
not know the law of the stage.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from .... import __version__
from ...emit.document import MAX_ID, Assumed, MemoryPerGpu, settled_schema
from ...spec import ClusterSpec, ModelSpec, StrategySpec, WorkloadSpec
from ...spec.strategy import Phase
from ._facts import Facts
from ._format import folded
from ._mapping import stage_ranks

SCHEMA = "paradag-strategy-1"
"""Name and version of the format; a change that a reader must know of takes the next number."""

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=0)]
Degree = Annotated[int, Field(ge=1, le=MAX_ID)]
Quantity = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = _STRICT


class DegreesPart(_Part):
    """Degrees of the phase; 1 where a dimension is absent. R = adp * sp * tp = edp * ep * etp."""

    dp: Degree
    pp: Degree
    sp: Degree
    ep: Degree
    tp: Degree
    adp: Degree
    edp: Degree
    etp: Degree
    sp_on_tp: bool = Field(description="Whether the stream between blocks is cut over the TP group.")


class StagePart(_Part):
    """A pipeline stage of replica 0."""

    stage: Count
    first_layer: Count
    last_layer: Count
    devices: str = Field(description="GPU numbers as ranges; replica k adds k * pp * R.")
    memory: MemoryPerGpu = Field(description="Of the stage's fullest GPU, bytes.")


class ExpectedPart(_Part):
    """Estimates for the deployment that the strategy is part of."""

    ttft_s: Quantity | None
    tpot_s: Quantity | None
    requests_per_s: Quantity
    tokens_per_s: Quantity = Field(
        description="Generated tokens, both phases taken together; prompt tokens of prefill alone."
    )
    kv_transfer_s: Quantity


class StrategyDocument(_Part):
    """Strategy of one phase, as `paradag plan` chose it."""

    model_config = ConfigDict(**_STRICT, populate_by_name=True)

    schema_: Literal["paradag-strategy-1"] = Field(alias="schema", default="paradag-strategy-1")
    paradag: str = Field(description="Version of paradag that wrote the document.")
    phase: Literal["prefill", "decode"]
    status: Literal["VALID"]
    objective: Literal["latency", "throughput", "balanced"]
    model: ModelSpec
    cluster: ClusterSpec
    workload: WorkloadSpec
    strategy: StrategySpec
    degrees: DegreesPart
    gpus: Degree = Field(description="GPUs of the phase, all replicas.")
    gpus_per_stage: Degree = Field(description="R, of one replica.")
    first_gpu: Count = Field(
        description="Number of the phase's first GPU; decode's follow prefill's in pools of their own."
    )
    batch: Degree = Field(description="Sequences in flight over all replicas.")
    layers_per_stage: tuple[Degree, ...]
    stages: tuple[StagePart, ...]
    expected: ExpectedPart
    assumptions: tuple[Assumed, ...]


def strategy_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the document."""
    schema = settled_schema(StrategyDocument.model_json_schema(by_alias=True, mode="serialization"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, **schema}


def schema_text() -> bytes:
    """The schema as the file that ``docs/schema`` holds."""
    return orjson.dumps(strategy_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def strategy_document(facts: Facts, phase: Phase) -> StrategyDocument:
    """Strategy and figures of one phase of the choice.

    Raises:
        ValueError: the plan has no choice, or not for that phase, or the rules find an error in it.
    """
    chosen = facts.plan.chosen
    if chosen is None or phase not in facts.phases:
        raise ValueError(f"no strategy for {phase}")
    if facts.errors:
        raise ValueError(f"{facts.errors[0].code}: {facts.errors[0].message}")
    numbers, found = chosen.numbers, facts.phases[phase]
    d, graph = found.degrees, found.graph
    spec = facts.spec
    return StrategyDocument(
        paradag=__version__,
        phase=phase,
        status="VALID",
        objective=facts.plan.objective,
        model=spec.model,
        cluster=spec.cluster,
        workload=spec.workload,
        strategy=found.strategy,
        degrees=DegreesPart(
            dp=d.dp, pp=d.pp, sp=d.sp, ep=d.ep, tp=d.tp, adp=d.adp, edp=d.edp, etp=d.etp, sp_on_tp=d.sp_on_tp
        ),
        gpus=graph.mesh.gpus,
        gpus_per_stage=graph.mesh.stage_ranks,
        first_gpu=graph.mesh.first_rank,
        batch=numbers.batch,
        layers_per_stage=graph.stages,
        stages=tuple(
            StagePart(
                stage=stage,
                first_layer=first,
                last_layer=first + count - 1,
                devices=folded(stage_ranks(graph.mesh, stage)),
                memory=_memory(facts, phase, stage),
            )
            for stage, (first, count) in enumerate(zip(graph.stage_starts, graph.stages, strict=True))
        ),
        expected=ExpectedPart(
            ttft_s=numbers.ttft_s,
            tpot_s=numbers.tpot_s,
            requests_per_s=numbers.requests_per_s,
            tokens_per_s=numbers.tokens_per_s,
            kv_transfer_s=numbers.kv_transfer_s,
        ),
        assumptions=tuple(Assumed(name=a.name, value=a.value, why=a.why) for a in facts.assumptions),
    )


def _memory(facts: Facts, phase: Phase, stage: int) -> MemoryPerGpu:
    report = facts.phases[phase].memory
    m = report.stages[stage]
    parts = {name: round(getattr(m, name)) for name in ("weights", "kv_cache", "activations", "buffers", "total")}
    return MemoryPerGpu(**parts, capacity=round(report.capacity))


def document_text(document: BaseModel, *, indent: bool = True) -> bytes:
    """The document as its file holds it; without indents where it is mostly numbers."""
    content = document.model_dump(mode="json", by_alias=True)
    return orjson.dumps(content, option=(orjson.OPT_INDENT_2 if indent else 0) | orjson.OPT_APPEND_NEWLINE)
