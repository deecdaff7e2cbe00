"""Further rules on lowered graphs: phases, the length of the KV cache, experts. One function per rule.

:data:`GRAPH_RULES` lists every code that :func:`paradag.passes.validation.verify` gives, with the function that does.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...compiler.diagnostics import Diagnostic
from ...compiler.ir.graph import LEVELS, Block, Graph, Node
from ...compiler.ir.types import Extent
from . import _placements as placed
from . import _protocols as protocols
from . import _ring as ring
from . import _structure as structure
from ._report import GraphCheck, axes_text, finding

_BEGINS = {"prefill": "prefill_begin", "decode": "decode_begin"}
_ENDS = {"prefill": "prefill_end", "decode": "decode_end"}
_OF_PHASE = {
    "prefill_begin": "prefill",
    "take_tokens": "prefill",
    "prefill_end": "prefill",
    "chunk_end": "prefill",
    "kv_send": "prefill",
    "decode_begin": "decode",
    "decode_end": "decode",
    "kv_recv": "decode",
}
_ROUTED = frozenset({"route", "dispatch", "expert", "combine", "unroute"})


def phases_mixed(graph: Graph) -> Iterator[Diagnostic]:
    """Nodes that belong to one phase stand in its graph alone."""
    for block, node in graph.nodes():
        if _OF_PHASE.get(node.op, graph.phase) != graph.phase:
            yield finding("PD426", block, node, f"`{node.op}` in a {graph.phase} graph", f"no {node.op} here")


def phase_nodes(graph: Graph) -> Iterator[Diagnostic]:
    """The prologue begins the phase and the epilogue ends it."""
    for role, wanted in (("prologue", _BEGINS[graph.phase]), ("epilogue", _ENDS[graph.phase])):
        for block in graph.with_role(role):
            count = sum(n.op == wanted for n in block.nodes)
            if count != 1:
                yield finding("PD427", block, None, f"{count} `{wanted}`", f"one {wanted}")


def kv_length(graph: Graph) -> Iterator[Diagnostic]:
    """A write takes the past to the context; a read takes the context or a window of it."""
    wanted = {"kv_write": {"context"}, "kv_read": {"context", "window"}}
    for block, node in graph.nodes():
        for value in node.outputs if node.op in wanted else ():
            size = next((d.size for d in value.type.dims if d.name == "context"), None)
            if not isinstance(size, Extent) or size.kind not in wanted[node.op]:
                yield finding(
                    "PD430", block, node, f"`{value.name}` holds {size} tokens", "as many tokens as the context"
                )
        if node.op == "kv_write" and node.inputs and node.inputs[0] in block.types:
            before = next((str(d.size) for d in block.types[node.inputs[0]].dims if d.name == "context"), "no")
            if before != "past":
                yield finding(
                    "PD429", block, node, f"appends to {before} tokens", "the tokens before this step or chunk"
                )


def step_order(graph: Graph) -> Iterator[Diagnostic]:
    """A decode step begins with the ids that the step before it gave."""
    if graph.phase != "decode":
        return
    for block in graph.with_role("prologue"):
        steps = {a.value.name for a in block.args if a.carry == "step"}
        received = {v.name for n in block.nodes if n.op == "recv" and steps & set(n.inputs) for v in n.outputs}
        for node in block.nodes:
            if node.op == "decode_begin" and not (steps | received) & set(node.inputs):
                yield finding("PD431", block, node, "does not wait for the step before", "the ids of the step before")


def one_token(graph: Graph) -> Iterator[Diagnostic]:
    """A decode step takes one token per sequence, and nothing cuts it."""
    if graph.phase != "decode" or not graph.blocks:
        return
    for item in graph.items:
        if item.new != 1:
            message = f"micro-batch {item.microbatch} has {item.new} new tokens per sequence"
            yield finding("PD432", graph.blocks[0], None, message, "one token per sequence in a decode step")
    cut = graph.mesh.view("sp")
    if cut:
        yield finding("PD432", graph.blocks[0], None, "the mesh cuts sequences in decode", "no sp axis in decode")


def expert_place(graph: Graph) -> Iterator[Diagnostic]:
    """Routing, dispatch and experts stand in MoE modules only."""
    for block, node in graph.nodes():
        if (node.op in _ROUTED or node.view == "expert") and node.module != "moe":
            yield finding("PD440", block, node, f"`{node.op}` in module `{node.module}`", "module `moe`")


def routing(graph: Graph) -> Iterator[Diagnostic]:
    """What is routed there and back goes by a router's choice."""
    for block in graph.blocks:
        producers = block.producers
        for node in block.nodes:
            if node.op not in {"route", "unroute"} or len(node.inputs) < 2:
                continue
            choice = node.inputs[1]
            maker = _origin(block, choice)
            if maker is None or maker.op != "router":
                made = producers[choice].op if choice in producers else "an argument"
                yield finding("PD441", block, node, f"routes by `{choice}` of {made}", "a router's choice")


def _origin(block: Block, value: str) -> Node | None:
    """The node that made a value, behind resharding."""
    chain = placed.resharding_chain(block, value)
    return block.producers.get(chain[0].inputs[0] if chain else value)


def expert_slots(graph: Graph) -> Iterator[Diagnostic]:
    """Every expert has a slot, and every rank of an EP group as many slots as the others."""
    reached = graph.level in LEVELS and LEVELS.index(graph.level) >= LEVELS.index("ep")
    for block in graph.blocks:
        routes = [n for n in block.nodes if n.op in {"route", "unroute"}]
        slots = {n.attrs.get("slots") for n in routes}
        for node in routes:
            have, experts = node.attrs.get("slots", 0), node.attrs.get("experts", 0)
            if have < experts:
                yield finding("PD442", block, node, f"{have} slots for {experts} experts", "a slot for each expert")
            elif reached and have % graph.mesh.degree("ep"):
                yield finding("PD442", block, node, f"{have} slots on {graph.mesh.degree('ep')} ranks of an EP group")
        for node in block.nodes:
            sizes = {d.size for p in node.params for d in p.type.dims if d.name == "slot"}
            if node.op == "expert" and slots and sizes != slots:
                yield finding("PD442", block, node, f"weights of {sorted(sizes, key=str)} experts", f"{slots} slots")


def group_of_one(graph: Graph) -> Iterator[Diagnostic]:
    """A collective has two ranks or more."""
    known = {a.name for a in graph.mesh.axes}
    for block, node in graph.nodes():
        axes = node.attrs.get("axes", ())
        if axes and set(axes) <= known and graph.mesh.size(axes) < 2:
            yield finding("PD439", block, node, f"the group {axes_text(graph.mesh, axes)} has one rank")


NEW_CHECKS: tuple[GraphCheck, ...] = (
    phases_mixed,
    phase_nodes,
    kv_length,
    step_order,
    one_token,
    expert_place,
    routing,
    expert_slots,
    group_of_one,
)
"""The checks of this module, in the order in which they are told."""

GRAPH_RULES: dict[str, GraphCheck] = {
    "PD401": structure.defined_before_use,
    "PD402": structure.defined_before_use,
    "PD403": placed.placements,
    "PD404": placed.placements,
    "PD405": placed.placements,
    "PD406": placed.redundant,
    "PD407": placed.placements,
    "PD408": protocols.stage_crossings,
    "PD409": protocols.sends_and_receives,
    "PD410": placed.carried,
    "PD411": protocols.kv_cache,
    "PD412": structure.layers_and_stages,
    "PD413": protocols.dispatch_and_combine,
    "PD415": structure.dangling,
    "PD416": structure.mesh_axes,
    "PD417": structure.levels,
    "PD419": protocols.routed_tokens,
    "PD420": structure.unique_names,
    "PD421": structure.weight_cuts,
    "PD426": phases_mixed,
    "PD427": phase_nodes,
    "PD428": protocols.kv_cache,
    "PD429": kv_length,
    "PD430": kv_length,
    "PD431": step_order,
    "PD432": one_token,
    "PD439": group_of_one,
    "PD440": expert_place,
    "PD441": routing,
    "PD442": expert_slots,
    "PD448": ring.rings_whole,
}
"""Rules on one graph by code; PD414 (other than the logical graph) needs two and is told by ``differences``."""
