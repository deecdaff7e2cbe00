"""The JSON document of the experts of each rank: its keys and its published schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from .... import __version__
from ...emit.document import MAX_ID, settled_schema
from ...spec.strategy import Phase
from ..experts import PhaseExperts
from ._facts import Facts
from ._format import folded

SCHEMA = "paradag-experts-1"
"""Name and version of the format; a change that a reader must know of takes the next number."""

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=0, le=MAX_ID)]
Ratio = Annotated[float, Field(ge=1 - 1e-9)]
Seconds = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = _STRICT


class LayerPart(_Part):
    """The slots of one layer."""

    layer: Count
    experts: tuple[tuple[Count, ...], ...] = Field(description="Of each EP rank, the experts of its slots.")
    imbalance: Ratio = Field(description="Load of the heaviest rank over the mean.")
    imbalance_in_order: Ratio = Field(description="The same with experts in their order, none redundant.")


class PhasePart(_Part):
    """The experts of one phase."""

    ep: Count = Field(description="Ranks that hold different experts.")
    redundant: Count = Field(description="Slots beyond one per expert.")
    slots_per_rank: Count
    devices: tuple[str, ...] = Field(
        description="Of each EP rank, its GPUs in stage 0 of replica 0, as ranges; others hold the same shifted."
    )
    layers: tuple[LayerPart, ...] = Field(description="Layers with a load; others keep experts in their order.")
    latency_s: Seconds = Field(description="TTFT or TPOT with the heaviest rank's expert time in each layer.")
    latency_in_order_s: Seconds = Field(description="The same with experts in their order, none redundant.")


class ExpertDocument(_Part):
    """Experts on ranks for a measured load, as `paradag plan --expert-load` dealt them."""

    model_config = ConfigDict(**_STRICT, populate_by_name=True)

    schema_: Literal["paradag-experts-1"] = Field(alias="schema", default="paradag-experts-1")
    paradag: str = Field(description="Version of paradag that wrote the document.")
    model: str
    experts: Count = Field(description="Experts of a layer.")
    phases: dict[Literal["prefill", "decode"], PhasePart]


def expert_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the document."""
    schema = settled_schema(ExpertDocument.model_json_schema(by_alias=True, mode="serialization"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, **schema}


def expert_schema_text() -> bytes:
    """The schema as the file that ``docs/schema`` holds."""
    return orjson.dumps(expert_schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def expert_document(facts: Facts) -> ExpertDocument:
    """Experts on ranks of a choice that was planned for a load.

    Raises:
        ValueError: the plan has no load.
    """
    found, moe = facts.plan.experts, facts.spec.model.moe
    if found is None or moe is None:
        raise ValueError("no expert load")
    layers = found.load.layers
    return ExpertDocument(
        paradag=__version__,
        model=facts.spec.model.name,
        experts=moe.experts,
        phases={phase: _phase(facts, phase, part, layers) for phase, part in found.phases.items()},
    )


def _phase(facts: Facts, phase: Phase, part: PhaseExperts, layers: tuple[int, ...]) -> PhasePart:
    after, before = part.after, part.before
    return PhasePart(
        ep=part.ranks,
        redundant=part.redundant,
        slots_per_rank=int(after.experts.shape[2]),
        devices=tuple(folded(gpus) for gpus in expert_ranks(facts, phase)),
        layers=tuple(
            LayerPart(
                layer=layer,
                experts=tuple(tuple(rank) for rank in after.experts[row].tolist()),
                imbalance=float(after.imbalance[row]),
                imbalance_in_order=float(before.imbalance[row]),
            )
            for row, layer in enumerate(layers)
        ),
        latency_s=part.latency,
        latency_in_order_s=part.plain,
    )


def expert_ranks(facts: Facts, phase: Phase) -> list[list[int]]:
    """GPUs of each EP rank in stage 0 of replica 0."""
    mesh = facts.phases[phase].graph.mesh
    atoms = mesh.view("ep")
    others = [a.name for a in mesh.axes if a.name not in atoms]
    sizes = [mesh.axis(a).size for a in atoms]
    return [mesh.ranks(0, dict(zip(atoms, at, strict=True)), others) for at in np.ndindex(*sizes)]
