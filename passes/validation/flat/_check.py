"""The table of rules on flat graphs, and the checks that run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ....compiler.diagnostics import Diagnostic
from ....compiler.ir.flat import FlatGraph
from . import _groups as groups
from . import _protocols as protocols
from . import _structure as structure
from ._columns import MAX_TOLD, Columns, columns_of

if TYPE_CHECKING:
    from ....compiler.emit import LoadedGraph

FlatCheck = Callable[[Columns], Iterator[Diagnostic]]

FLAT_RULES: tuple[tuple[str, FlatCheck], ...] = (
    ("PD422", structure.known_kinds),
    ("PD423", structure.edges_exist),
    ("PD401", structure.acyclic),
    ("PD415", structure.loose_ends),
    ("PD443", structure.shards_complete),
    ("PD425", structure.dimensions),
    ("PD403", structure.shapes),
    ("PD426", protocols.phases_mixed),
    ("PD427", protocols.phase_nodes),
    ("PD411", protocols.read_after_write),
    ("PD410", protocols.stays_with_owners),
    ("PD428", protocols.one_writer),
    ("PD429", protocols.append_only),
    ("PD430", protocols.kv_length),
    ("PD431", protocols.step_order),
    ("PD432", protocols.one_token),
    ("PD412", protocols.layers_once),
    ("PD435", protocols.stages_contiguous),
    ("PD408", protocols.stage_crossed),
    ("PD436", protocols.stage_skipped),
    ("PD409", protocols.sends_paired),
    ("PD437", protocols.same_order),
    ("PD433", protocols.transfers),
    ("PD424", groups.devices_exist),
    ("PD434", groups.replicas),
    ("PD446", groups.group_in_stage),
    ("PD447", groups.group_of_axes),
    ("PD439", groups.group_of_one),
    ("PD438", groups.collective_order),
    ("PD405", groups.partial_sums),
    ("PD407", groups.collectives_fit),
    ("PD444", groups.gathered),
    ("PD440", groups.experts_in_moe),
    ("PD441", groups.route_edges),
    ("PD413", groups.dispatched),
    ("PD442", groups.expert_slots),
    ("PD445", groups.attention_parts),
)
"""Rules on one flat graph, in the order in which they are told: the code each is known by, and its function."""


def check_flat(graph: FlatGraph | LoadedGraph) -> list[Diagnostic]:
    """What is wrong with a flat graph; empty where it is legal.

    Rules on tensors need a document; of a graph compiled here, :func:`paradag.passes.validation.verify` has seen them.

    Args:
        graph: A flat graph, or one loaded from a document (:func:`paradag.compiler.emit.load_json`).
    """
    columns = columns_of(graph)
    if not len(columns):
        return []
    return list(dict.fromkeys(d for _, check in FLAT_RULES for d in check(columns)))


def check_transfers(prefill: LoadedGraph, decode: LoadedGraph) -> list[Diagnostic]:
    """Whether what the prefill graph sends of the KV cache is what the decode graph receives.

    PD433: a transfer that one of the two has not, or one whose number format or heads differ.
    """
    sent, received = (_transfers(columns_of(g)) for g in (prefill, decode))
    found = [
        Diagnostic("PD433", f"transfer {name!r} stands in {'prefill' if name in sent else 'decode'} only")
        for name in sorted({*sent} ^ {*received})[:MAX_TOLD]
    ]
    for name in sorted({*sent} & {*received}):
        if sent[name] != received[name] and len(found) < MAX_TOLD:
            found.append(
                Diagnostic("PD433", f"transfer {name!r} sends {_text(sent[name])}, receives {_text(received[name])}")
            )
    return found


def _transfers(g: Columns) -> dict[str, Any]:
    """Transfer ids to number format and features of the cache."""
    if g.detail is None:
        return {}
    known: dict[str, Any] = {}
    for node in g.is_op("KVTransfer").nonzero()[0].tolist():
        tensors = g.detail[node]["inputs"] or g.detail[node]["outputs"]
        if tensors and g.transfer[node] is not None:
            sizes = {k: v for k, v in tensors[0]["global_dims"].items() if k not in {"batch", "context"}}
            known.setdefault(g.transfer[node], (tensors[0]["dtype"], tuple(sizes.items())))
    return known


def _text(shape: tuple[str, tuple[tuple[str, int], ...]]) -> str:
    return f"{shape[0]} {dict(shape[1])}"
