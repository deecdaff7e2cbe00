"""Structure: names, definitions, masks, levels, layers and stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from ...compiler.diagnostics import Diagnostic
from ...compiler.ir.graph import LEVELS, Block, Graph, Node
from ...compiler.ir.ops import OPERATORS
from ...compiler.ir.types import TensorType
from ._report import finding, listed

_ITEM_MASKS = frozenset({"all", "first", "last", "early"})
_STEP_MASKS = frozenset({"all", "first", "later", "early"})

_LEVEL_OF_OP = {
    "send": "pp",
    "recv": "pp",
    "all_reduce": "sp",
    "all_gather": "sp",
    "reduce_scatter": "sp",
    "all_to_all": "sp",
    "ring_shift": "sp",
    "attention_partial": "sp",
    "attention_merge": "sp",
    "slice": "sp",
    "dispatch": "ep",
    "combine": "ep",
}
"""The first level at which an operator may stand; those left out stand at all."""

_CUTS = {
    "slot": ("ep", "ep"),
    "heads": ("tp", "tp"),
    "kv_heads": ("tp", "kv"),
    "ffn": ("tp", "tp"),
    "vocab": ("tp", "tp"),
    "expert_ffn": ("tp", "etp"),
}
"""Weight dimensions that a level cuts: dimension to (level, named axis). No other dimension of a weight is cut."""

_ENDS = frozenset({"prefill_end", "decode_end", "chunk_end", "kv_send"})
_SOURCES = frozenset({"prefill_begin", "kv_recv"})


def unique_names(graph: Graph) -> Iterator[Diagnostic]:
    """Block names, node names and value names stand for one thing each."""
    for name, times in Counter(b.name for b in graph.blocks).items():
        if times > 1:
            yield finding("PD420", graph.block(name), None, f"{times} blocks have this name", "one block for each name")
    for block in graph.blocks:
        nodes = Counter(n.name for n in block.nodes)
        yield from (finding("PD420", block, n, f"{t} nodes have this name") for n, t in nodes.items() if t > 1)
        values = Counter([*(a.value.name for a in block.args), *(v.name for n in block.nodes for v in n.outputs)])
        yield from (finding("PD420", block, n, f"defined {t} times") for n, t in values.items() if t > 1)


def defined_before_use(graph: Graph) -> Iterator[Diagnostic]:
    """Operands come from arguments or earlier nodes; the references of arguments and results exist."""
    for block in graph.blocks:
        known = {a.value.name for a in block.args}
        defined = set(block.types)
        cyclic = _on_cycles(block)
        for node in block.nodes:
            for value in node.inputs:
                if value in known:
                    continue
                if node.name in cyclic and value in defined:
                    yield finding("PD401", block, node, f"`{value}` depends on this node's own result", "no cycle")
                else:
                    fault = "is used before it is defined" if value in defined else "is defined nowhere in the block"
                    yield finding("PD402", block, node, f"`{value}` {fault}")
            known |= {v.name for v in node.outputs}
        yield from _references(graph, block, known)


def _references(graph: Graph, block: Block, known: set[str]) -> Iterator[Diagnostic]:
    if (block.role == "epilogue") != (not block.result):
        fault = "an epilogue gives no result" if block.result else "the block gives no stream to the next layer"
        yield finding("PD402", block, block.result or None, fault)
    if block.result and block.result not in known:
        yield finding("PD402", block, block.result, "the block's result is defined nowhere in it")
    last = {v for b in graph.with_role("epilogue") for v in b.types}
    for arg in block.args:
        name = arg.value.name
        if arg.carry != "layer" and arg.source not in (last if arg.carry == "step" else known):
            yield finding("PD402", block, name, f"its source `{arg.source}` is defined nowhere")
        if arg.init and arg.init not in known:
            yield finding("PD402", block, name, f"its first value `{arg.init}` is defined nowhere in the block")
    streams = sum(a.carry == "layer" for a in block.args)
    if streams != (block.role != "prologue"):
        yield finding("PD402", block, None, f"{streams} streams enter", "one stream enters each block but the prologue")


def _on_cycles(block: Block) -> set[str]:
    """Nodes of a cycle of the block; empty where it has none."""
    producers = block.producers
    order = TopologicalSorter({n.name: {producers[i].name for i in n.inputs if i in producers} for n in block.nodes})
    try:
        order.prepare()
    except CycleError as error:
        return set(error.args[1])
    return set()


def masks(graph: Graph) -> Iterator[Diagnostic]:
    """A node exists only in repetitions in which its operands do."""
    for block in graph.blocks:
        producers = block.producers
        for node in block.nodes:
            if node.items not in _ITEM_MASKS or node.steps not in _STEP_MASKS:
                yield finding("PD402", block, node, f"unknown mask `{node.items}`/`{node.steps}`")
            if graph.phase == "prefill" and node.steps != "all":
                yield finding("PD402", block, node, f"steps `{node.steps}` in prefill", "prefill has no decode steps")
            for value in node.inputs:
                maker = producers.get(value)
                if maker is None:
                    continue
                # the ids of the first step come from prefill, so a step's begin takes what only later steps have
                steps = maker.steps if node.op != "decode_begin" else "all"
                # a decode step has no chunks: every micro-batch is its own first and last
                items = maker.items if graph.phase == "prefill" else "all"
                for what, have, want in (("chunks", items, node.items), ("steps", steps, node.steps)):
                    if have not in {"all", want}:
                        yield finding(
                            "PD402", block, node, f"`{value}` exists in {have} {what} only, this node in {want}"
                        )


def dangling(graph: Graph) -> Iterator[Diagnostic]:
    """Every result is used, every argument too; only phase ends, early chunks' ends and KV sends are sinks."""
    carried = {a.source for b in graph.blocks for a in b.args if a.carry == "step"}
    for block in graph.blocks:
        used = {i for n in block.nodes for i in n.inputs} | {block.result}
        used |= {a.init for a in block.args} | {a.source for a in block.args if a.carry == "version"}
        if block.role == "epilogue":
            used |= carried
        for node in block.nodes:
            if node.op not in _ENDS and not any(v.name in used for v in node.outputs):
                yield finding("PD415", block, node, "nothing uses its result", "a successor", "remove the node")
            if not node.inputs and node.op not in _SOURCES and node.op in OPERATORS:
                yield finding("PD415", block, node, "takes nothing", "an operand", "connect or remove the node")
        for arg in block.args:
            if arg.value.name not in used:
                yield finding("PD415", block, arg.value.name, "nothing uses this argument", "a user")


def levels(graph: Graph) -> Iterator[Diagnostic]:
    """Operators are known and stand at no earlier level than their own."""
    if graph.level not in LEVELS:
        first = graph.blocks[0] if graph.blocks else Block(graph.name, "prologue")
        yield finding("PD417", first, None, f"unknown level `{graph.level}`", listed(LEVELS))
        return
    for block, node in graph.nodes():
        if node.op not in OPERATORS:
            yield finding("PD417", block, node, f"unknown operator `{node.op}`", "an operator of the registry")
        elif LEVELS.index(_LEVEL_OF_OP.get(node.op, LEVELS[0])) > LEVELS.index(graph.level):
            level = _LEVEL_OF_OP[node.op]
            yield finding("PD417", block, node, f"`{node.op}` at level {graph.level}", f"level {level} or later")


def weight_cuts(graph: Graph) -> Iterator[Diagnostic]:
    """From its level on, a weight is cut over exactly the axes that the level gives it, and over none before."""
    if graph.level not in LEVELS:
        return
    reached = LEVELS.index(graph.level)
    for block, node in graph.nodes():
        for param in node.params:
            if param.const:
                continue
            for dim, axes in zip(param.type.names, param.type.placement.shards, strict=True):
                level, view = _CUTS.get(dim, ("", ""))
                want = graph.mesh.view(view) if level and reached >= LEVELS.index(level) else ()
                want = node.constraints.get(dim, want)
                if axes != want:
                    yield finding(
                        "PD421",
                        block,
                        node,
                        f"`{dim}` of weight `{param.name}` is cut over {_axes(graph, axes)} at level {graph.level}",
                        f"cut over {_axes(graph, want)}",
                    )


def _axes(graph: Graph, axes: tuple[str, ...]) -> str:
    known = {a.name for a in graph.mesh.axes}
    return (graph.mesh.describe(axes) if set(axes) <= known else "+".join(axes)) or "no axis"


def mesh_axes(graph: Graph) -> Iterator[Diagnostic]:
    """Groups and placements name axes of the mesh, each once."""
    known = {a.name for a in graph.mesh.axes}
    for block in graph.blocks:
        for node in block.nodes:
            group = node.attrs.get("axes", ())
            named = [*group, *(a for axes in node.constraints.values() for a in axes)]
            named += [a for t in _types(node) for a in t.placement.used]
            if strange := sorted(set(named) - known):
                yield finding("PD416", block, node, f"{listed(strange)} no axis of the mesh", listed(sorted(known)))
            if "axes" in node.attrs and (not group or len(set(group)) < len(group)):
                yield finding("PD416", block, node, f"the group is {tuple(group)}", "one or more axes, each once")
        for arg in block.args:
            if strange := sorted(arg.value.type.placement.used - known):
                yield finding("PD416", block, arg.value.name, f"{listed(strange)} no axis of the mesh")


def _types(node: Node) -> Iterator[TensorType]:
    yield from (v.type for v in node.outputs)
    yield from (p.type for p in node.params)


def layers_and_stages(graph: Graph) -> Iterator[Diagnostic]:
    """Every layer exactly once; stages cover them; one prologue and one epilogue."""
    if not graph.blocks:
        return
    for role in ("prologue", "epilogue"):
        found = graph.with_role(role)
        if len(found) != 1:
            yield finding("PD412", (found or graph.blocks)[0], None, f"{len(found)} {role}s", f"one {role}")
    first = (graph.with_role("layer") or graph.blocks)[0]
    times = Counter(i for b in graph.with_role("layer") for i in b.layers)
    count = graph.layers
    for block in graph.with_role("layer"):
        twice = sorted({i for i in block.layers if times[i] > 1})
        outside = sorted({i for i in block.layers if not 0 <= i < count})
        if twice:
            yield finding("PD412", block, None, f"layers {_some(twice)} stand more than once", "each layer once")
        if outside:
            yield finding("PD412", block, None, f"layers {_some(outside)} beyond the {count} of the stages")
    missing = sorted(set(range(count)) - set(times))
    if missing:
        yield finding("PD412", first, None, f"no block has layers {_some(missing)}", "each layer once")
    if min(graph.stages, default=0) < 1:
        yield finding("PD412", first, None, f"stages of {graph.stages} layers", "at least one layer in each stage")
    if graph.level == "logical" and len(graph.stages) > 1:
        yield finding("PD417", first, None, f"{len(graph.stages)} stages at level logical", "one stage before pp")


def _some(numbers: list[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:5])
    return shown + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


CHECKS = (unique_names, defined_before_use, masks, dangling, levels, weight_cuts, mesh_axes, layers_and_stages)
