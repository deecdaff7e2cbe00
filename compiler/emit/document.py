"""The JSON document of one phase: its keys, its schema, and the header of a compiled phase.

These models stand at the border only: rows are written as text and read as dictionaries, never held as objects.
"""

from __future__ import annotations

from math import ceil, isfinite
from typing import Annotated, Any, Literal, NotRequired

import orjson
from pydantic import BaseModel, ConfigDict, Field, with_config

# pydantic asks for this TypedDict before Python 3.12; it is a dependency of pydantic itself.
from typing_extensions import TypedDict

from ... import __version__
from ...passes.analysis import PhaseAnalysis, RankTime, Utilization, bytes_by_kind
from ...passes.compiled import Compiled
from ..diagnostics import Diagnostic
from ..ir.graph import Phase
from ..spec import ClusterSpec, ModelSpec, StrategySpec, WorkloadSpec
from ..spec.counts import active_parameters, kv_bytes_per_token, parameters
from ..spec.stage_law import degrees_of
from ._numbers import plain

SCHEMA = "paradag-dag-1"
"""Name and version of the format; a change that a reader must know of takes the next number."""

MAX_ID = 2**31 - 1
"""Node ids, ranks and coordinates are 32-bit."""

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=0)]
Index = Annotated[int, Field(ge=0, le=MAX_ID)]
Quantity = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = _STRICT


class Finding(_Part):
    """A diagnostic; the place is null where it has none."""

    code: str
    severity: Literal["error", "warning", "note"]
    message: str
    file: str | None
    line: int | None
    column: int | None
    help: str | None


class Assumed(_Part):
    """A value taken for the user."""

    name: str
    value: str
    why: str


class Repair(_Part):
    """A fix that was made."""

    rule: str
    before: str
    after: str


class MemoryPerGpu(_Part):
    """Bytes of the fullest GPU."""

    weights: Count
    kv_cache: Count
    activations: Count
    buffers: Count
    total: Count
    capacity: Count


class RankUtilization(_Part):
    """Ranks of replica 0 that do the same: seconds during the latency without queue, shares of 1."""

    stages: tuple[Index, ...]
    ranks: tuple[tuple[Index, Index], ...] = Field(description="First and last of each run of ranks, ascending.")
    compute_s: Quantity
    communication_s: Quantity
    imbalance_s: Quantity = Field(description="Waiting for ranks of the same stage that hold more.")
    bubble_s: Quantity = Field(description="Nothing to run: the pipeline fills, drains or waits.")
    send_s: Quantity = Field(description="Beside all that, on a stream of its own.")
    mfu: Quantity
    mbu: Quantity
    memory: Quantity


class UtilizationSummary(_Part):
    """Shares of the machine that the phase uses, of 1; docs/explain.md defines them."""

    model_flops: Quantity = Field(description="Of one replica.")
    mfu: Quantity
    mbu: Quantity
    memory: Quantity
    scale_up: Quantity
    scale_out: Quantity
    busy: Quantity
    bubble: Quantity
    rank_balance: Quantity = Field(description="Busiest rank over the mean.")
    stage_balance: Quantity
    ranks: tuple[RankUtilization, ...] = Field(description="All ranks, equal ones in one row.")


class _Summary(_Part):
    critical_path_s: Quantity = Field(description="Seconds of the longest path, over all steps.")
    tokens_per_s: Quantity = Field(description="All replicas: prompt tokens in prefill, generated tokens in decode.")
    parameters: Count
    active_parameters: Count
    kv_bytes_per_token: Count = Field(description="Over all layers of the whole model.")
    memory_per_gpu: MemoryPerGpu
    communication_bytes: dict[str, Count] = Field(
        description="Bytes on the wire by operator: all ranks of one replica, all steps."
    )
    utilization: UtilizationSummary | None = None


class PrefillSummary(_Summary):
    """Figures of a prefill DAG."""

    ttft_s: Quantity = Field(description="Time to the first token: prefill_s and, where it is finite, queue_s.")
    prefill_s: Quantity | None = Field(
        default=None, description="From PrefillBegin to the last first token (mode mixed: of one micro-batch)."
    )
    queue_s: Quantity | None = Field(
        default=None,
        description="Mean wait for a turn: at the workload's rate, and in mode mixed for the decode step that runs; "
        "null where nothing is said of arrivals, or where the queue grows.",
    )


class DecodeSummary(_Summary):
    """Figures of a decode DAG."""

    tpot_s: Quantity = Field(description="Seconds from token to token; in mode mixed with the prompts of others.")
    steady_tpot_s: Quantity | None = Field(
        default=None, description="With the prompts of a steady continuous batch; null where prefill is not compiled."
    )


class Header(_Part):
    """Everything but nodes and edges."""

    model_config = ConfigDict(**_STRICT, populate_by_name=True)

    schema_: Literal["paradag-dag-1"] = Field(alias="schema", default="paradag-dag-1")
    paradag: str = Field(description="Version of paradag that wrote the document.")
    phase: Literal["prefill", "decode"]
    status: Literal["VALID", "FIXED", "REJECTED"]
    model: ModelSpec
    cluster: ClusterSpec
    workload: WorkloadSpec
    strategy: StrategySpec | None
    assumptions: tuple[Assumed, ...]
    diagnostics: tuple[Finding, ...]
    fixes: tuple[Repair, ...]
    gpus: Index = Field(description="GPUs of the phase, all replicas.")
    summary: PrefillSummary | DecodeSummary | None = Field(description="Null where the run was rejected.")


@with_config(_STRICT)
class TensorRow(TypedDict):
    """A tensor as one rank of the node holds it."""

    name: str
    dims: Annotated[dict[str, Count], Field(description="Sizes on one rank, largest over the axes of the group.")]
    global_dims: dict[str, Count]
    dtype: str
    placement: Annotated[
        dict[str, tuple[str, ...]], Field(description="Mesh axes that cut each cut dimension, outermost first.")
    ]
    partial: Annotated[
        dict[str, Literal["sum", "max", "lse"]], Field(description="Mesh axes along which ranks hold summands.")
    ]
    shift: NotRequired[
        Annotated[
            dict[str, Count],
            Field(description="By how many ranks the chunks of a dimension have travelled round their ring."),
        ]
    ]


@with_config(_STRICT)
class PeerRow(TypedDict):
    """A rank at the other end of a KV transfer, and the bytes that go there or come from there."""

    device: Index
    bytes: Quantity


@with_config(_STRICT)
class NodeHead(TypedDict):
    """What a row says of the node itself."""

    id: Index
    op: str
    name: Annotated[str, Field(description="block.node of the lowered graph.")]
    kind: Literal["compute", "collective", "p2p", "state", "control"]
    module: str
    phase: Literal["prefill", "decode"]
    stage: Index
    layer: Annotated[Index | None, Field(description="Null outside layers.")]
    transfer: NotRequired[Annotated[str, Field(description="KVTransfer: pairs its sends with its receives.")]]
    coords: Annotated[dict[str, Index], Field(description="step, microbatch, chunk, and the axes it is expanded over.")]
    group: Annotated[tuple[str, ...], Field(description="Axes that the collective, or else the device group, spans.")]
    devices: Annotated[tuple[Index, ...], Field(min_length=1, description="Ranks of replica 0.")]
    peers: NotRequired[
        Annotated[
            tuple[PeerRow, ...],
            Field(description="KVTransfer: ranks that `devices` send to or receive from, ascending."),
        ]
    ]


@with_config(_STRICT)
class NodeTail(TypedDict):
    """What a row says of the node's tensors and cost; many rows say the same."""

    inputs: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]
    weights: tuple[TensorRow, ...]
    flops: Annotated[Quantity, Field(description="Of the fullest rank.")]
    bytes: Annotated[Quantity, Field(description="Of the fullest rank: on the wire for communication, else HBM.")]
    time_s: Quantity
    bound: Literal["none", "compute", "memory", "network", "latency"]
    efficiency: NotRequired[
        Annotated[Quantity, Field(description="Share of the binding datasheet peak that is reached; 0 where unknown.")]
    ]
    link: NotRequired[
        Annotated[Literal["none", "scale_up", "scale_out", "both"], Field(description="What the bytes go over.")]
    ]


@with_config(_STRICT)
class NodeRow(NodeHead, NodeTail):
    """A node: one operator at one step, micro-batch, chunk, layer and shard."""


@with_config(_STRICT)
class EdgeRow(TypedDict):
    """An edge; it goes from a lower to a higher id."""

    source: Index
    target: Index
    kind: Literal["data", "pipeline", "sync", "state", "route", "order"]


class Document(Header):
    """One phase of one compiled file. Rows are checked by their own types as they are read, one at a time."""

    nodes: tuple[NodeRow, ...]
    edges: tuple[EdgeRow, ...]


def document_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the document."""
    schema = settled_schema(Document.model_json_schema(by_alias=True, mode="serialization"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, **schema}


def settled_schema(part: Any, *, by_name: bool = False) -> Any:
    """A schema in the one form that all versions of pydantic agree on: no whole number as a float, no list of one.

    Keywords are sorted; what is listed ``by_name`` (properties, definitions) keeps its order.
    """
    if isinstance(part, list):
        return [settled_schema(p) for p in part]
    if isinstance(part, float):
        return plain(part)
    if not isinstance(part, dict):
        return part
    settled = {key: settled_schema(value, by_name=key in ("properties", "$defs")) for key, value in part.items()}
    if by_name:
        return settled
    if len(settled.get("allOf", ())) == 1:
        settled |= settled.pop("allOf")[0]
    if "const" in settled:
        settled.pop("enum", None)
    return dict(sorted(settled.items()))


def schema_text() -> bytes:
    """The schema as the file that ``docs/schema`` holds."""
    return orjson.dumps(document_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def build_header(compiled: Compiled, phase: Phase) -> Header:
    """The header of one phase of a compiled file; of a rejected one, or of a phase not compiled, without summary."""
    spec = compiled.spec
    analysis = compiled.phases.get(phase)
    return Header(
        paradag=__version__,
        phase=phase,
        status=compiled.status.value,
        model=spec.model,
        cluster=spec.cluster,
        workload=spec.workload,
        strategy=spec.strategy(phase),
        assumptions=tuple(Assumed(name=a.name, value=a.value, why=a.why) for a in compiled.assumptions),
        diagnostics=tuple(_finding(d) for d in compiled.diagnostics),
        fixes=tuple(Repair(rule=f.rule, before=f.before, after=f.after) for f in compiled.fixes),
        gpus=_gpus(compiled, phase),
        summary=None if analysis is None else _summary(spec.model, analysis),
    )


def header_fields(header: Header) -> dict[str, Any]:
    """The header as plain values, in the order in which it is written."""
    return header.model_dump(mode="json", by_alias=True)


def _gpus(compiled: Compiled, phase: Phase) -> int:
    if phase in compiled.phases:
        return compiled.phases[phase].graph.mesh.gpus
    strategy = compiled.spec.strategy(phase)
    if strategy is None:
        return 0
    # What a rejected strategy asks for may be beyond any cluster.
    return min(MAX_ID, degrees_of(strategy, is_moe=compiled.spec.model.moe is not None).gpus)


def _finding(diagnostic: Diagnostic) -> Finding:
    span = diagnostic.span
    assert diagnostic.severity is not None
    return Finding(
        code=diagnostic.code,
        severity=diagnostic.severity.value,
        message=diagnostic.message,
        file=span.file if span else None,
        line=span.line if span else None,
        column=span.column if span else None,
        help=diagnostic.help,
    )


def _summary(model: ModelSpec, analysis: PhaseAnalysis) -> PrefillSummary | DecodeSummary:
    figures: dict[str, Any] = {
        "critical_path_s": analysis.critical.seconds,
        "tokens_per_s": analysis.tokens_per_s,
        "parameters": parameters(model),
        "active_parameters": active_parameters(model),
        "kv_bytes_per_token": kv_bytes_per_token(model),
        "memory_per_gpu": _memory(analysis),
        "communication_bytes": {k: ceil(plain(size)) for k, size in sorted(bytes_by_kind(analysis.traffic).items())},
    }
    figures["utilization"] = utilization_summary(analysis.utilization)
    if analysis.graph.phase == "prefill":
        queue = analysis.queue if analysis.queue is not None and isfinite(analysis.queue) else None
        return PrefillSummary(**figures, ttft_s=analysis.loaded_latency, prefill_s=analysis.latency, queue_s=queue)
    return DecodeSummary(**figures, tpot_s=analysis.loaded_latency, steady_tpot_s=analysis.steady)


def utilization_summary(found: Utilization) -> UtilizationSummary:
    """Utilization as the document has it; rows of ranks whose figures agree to twelve digits are one."""
    folded: dict[tuple[float, ...], list[RankTime]] = {}
    for each in found.ranks:
        folded.setdefault(tuple(float(f"{v:.12g}") for v in _rank_figures(found, each).values()), []).append(each)
    rows = [
        RankUtilization(
            stages=tuple(sorted({r.stage for r in same})),
            ranks=_runs(sorted(rank for r in same for rank in r.ranks)),
            **_rank_figures(found, same[0]),
        )
        for same in folded.values()
    ]
    shares = ("mfu", "mbu", "memory", "scale_up", "scale_out", "busy", "bubble", "rank_balance", "stage_balance")
    figures = {name: getattr(found, name) for name in shares}
    return UtilizationSummary(model_flops=float(found.work.model_flops.sum()), **figures, ranks=tuple(rows))


def _rank_figures(found: Utilization, rank: RankTime) -> dict[str, float]:
    names = ("compute_s", "communication_s", "imbalance_s", "bubble_s", "send_s")
    shares = {"mfu": found.stage_mfu(rank.stage), "mbu": found.stage_mbu(rank.stage)}
    return {name: getattr(rank, name) for name in names} | shares | {"memory": found.capacity[rank.stage]}


def _runs(ranks: list[int]) -> tuple[tuple[int, int], ...]:
    """First and last of each run of consecutive numbers."""
    breaks = [i for i in range(1, len(ranks)) if ranks[i] != ranks[i - 1] + 1]
    ends = zip([0, *breaks], [*breaks, len(ranks)], strict=True)
    return tuple((ranks[low], ranks[high - 1]) for low, high in ends)


def _memory(analysis: PhaseAnalysis) -> MemoryPerGpu:
    fullest = analysis.memory.fullest
    parts = {name: ceil(plain(getattr(fullest, name))) for name in ("weights", "kv_cache", "activations", "buffers")}
    return MemoryPerGpu(**parts, total=sum(parts.values()), capacity=int(analysis.memory.capacity))
