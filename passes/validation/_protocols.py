"""Protocols between nodes: the KV cache, sends and receives, dispatch and combine."""

from __future__ import annotations

from collections.abc import Iterator

from ...compiler.diagnostics import Diagnostic
from ...compiler.ir.graph import LEVELS, Block, Graph, Node
from ...compiler.ir.ops import GROUP
from ._placements import resharding_chain
from ._report import axes_text, consumers, finding, is_resharding, listed

_CACHE_USERS = frozenset({"kv_write", "kv_read", "kv_send"})


def kv_cache(graph: Graph) -> Iterator[Diagnostic]:
    """A version is read after it is written, written once, carried on, and touched by its owners alone."""
    for block in graph.blocks:
        writes = {n.outputs[0].name: n for n in block.nodes if n.op == "kv_write" and n.outputs}
        for node in block.nodes:
            if node.op == "kv_read" and node.inputs and node.inputs[0] not in writes:
                yield finding(
                    "PD411",
                    block,
                    node,
                    f"reads `{node.inputs[0]}`, which this layer has not written",
                    "the version that kv_write gives",
                    f"read {listed(list(writes))}" if writes else "insert a kv_write",
                )
        versions = [a for a in block.args if a.carry == "version"]
        caches = {a.value.name for a in versions if a.source in writes or _is_written(block, a.value.name)}
        for value in [*writes, *sorted(caches)]:
            for user in consumers(block, value):
                if user.op not in _CACHE_USERS:
                    yield finding("PD410", block, user, f"takes the KV cache `{value}` from its owners", "kv_read")
        yield from _versions(block, writes)


def _is_written(block: Block, value: str) -> bool:
    return any(n.op == "kv_write" and value in n.inputs for n in block.nodes)


def _versions(block: Block, writes: dict[str, Node]) -> Iterator[Diagnostic]:
    """Each cache of the block: one write of the version before, whose result is the next version."""
    taken: dict[str, Node] = {}
    sources = {a.value.name: a.source for a in block.args if a.carry == "version"}
    for value, node in writes.items():
        before = node.inputs[0] if node.inputs else ""
        first = taken.setdefault(before, node)
        if first is not node:
            yield finding("PD428", block, node, f"`{before}` is written by `{first.name}` already", "one writer")
        if sources.get(before) != value:
            yield finding(
                "PD411",
                block,
                node,
                f"`{value}` does not become the next version of `{before}`",
                "an argument that carries the written version to the next chunk or step",
            )


def sends_and_receives(graph: Graph) -> Iterator[Diagnostic]:
    """Every send has one receive and every receive one send."""
    carried = {a.source: (b, a.value.name) for b in graph.blocks for a in b.args if a.carry == "step"}
    last = {v: n for b in graph.with_role("epilogue") for v, n in b.producers.items()}
    for block in graph.blocks:
        steps = {a.value.name: a.source for a in block.args if a.carry == "step"}
        for node in block.nodes:
            if node.op == "send" and node.outputs:
                wire = node.outputs[0].name
                users = consumers(block, wire)
                if block.role == "epilogue" and wire in carried:
                    users += consumers(*carried[wire])
                if [u.op for u in users] != ["recv"]:
                    found = listed([u.name for u in users]) or "nobody"
                    yield finding("PD409", block, node, f"received by {found}", "one recv", "insert a recv")
            elif node.op == "recv" and node.inputs:
                wire = node.inputs[0]
                maker = last.get(steps[wire]) if wire in steps else block.producers.get(wire)
                if maker is None or maker.op != "send":
                    yield finding("PD409", block, node, f"`{wire}` comes from no send", "one send", "insert a send")


def stage_crossings(graph: Graph) -> Iterator[Diagnostic]:
    """Stages are crossed at their boundaries and nowhere else, and only through a send."""
    if not graph.blocks:
        return
    boundaries = graph.with_role("boundary")
    crossed = sorted(layer for b in boundaries for layer in b.layers)
    starts = sorted(graph.stage_starts[1:])
    if crossed != starts:
        place = (boundaries or graph.with_role("layer") or graph.blocks)[0]
        yield finding(
            "PD408", place, None, f"boundaries before layers {crossed}, stages begin at {starts}", "a boundary at each"
        )
    for block in graph.blocks:
        if block.role == "layer":
            for node in block.nodes:
                if node.op in {"send", "recv"}:
                    yield finding("PD408", block, node, "a stage is crossed inside a layer", "whole layers in a stage")
        if block.role == "boundary":
            chain = resharding_chain(block, block.result)
            maker = block.producers.get(chain[0].inputs[0] if chain else block.result)
            if maker is None or maker.op != "recv":
                yield finding("PD408", block, None, "the stream crosses without send and recv", "send -> recv")
        for arg in block.args:
            if arg.carry == "step" and len(graph.stages) > 1:
                maker = next((b.producers.get(arg.source) for b in graph.with_role("epilogue")), None)
                if maker is None or maker.op != "send":
                    yield finding("PD408", block, arg.value.name, "ids return to the first stage without a send")


def dispatch_and_combine(graph: Graph) -> Iterator[Diagnostic]:
    """Tokens that go to the experts come back over the same axes."""
    for block in graph.blocks:
        combines = {n.name: n for n in block.nodes if n.op == "combine"}
        matched: set[str] = set()
        for node in block.nodes:
            if node.op != "dispatch":
                continue
            ends = _returns(block, node)
            matched |= {e.name for e in ends}
            over = axes_text(graph.mesh, [a for a in node.attrs.get("axes", ()) if _known(graph, a)])
            if not ends:
                yield finding("PD413", block, node, f"no combine brings the tokens back over {over}", "one combine")
            for end in ends:
                if (end.attrs.get("axes"), end.attrs.get("to")) != (node.attrs.get("axes"), node.attrs.get("of")):
                    yield finding(
                        "PD413", block, end, f"does not undo dispatch `{node.name}` over {over}", "equal axes"
                    )
        for name in combines.keys() - matched:
            yield finding("PD413", block, combines[name], "no dispatch sent these tokens", "one dispatch")


def _known(graph: Graph, axis: str) -> bool:
    return any(axis == a.name for a in graph.mesh.axes)


def _returns(block: Block, dispatch: Node) -> list[Node]:
    """Combines that the dispatched tokens reach through experts and other collectives."""
    found: dict[str, Node] = {}
    seen: set[str] = set()
    front = [v.name for v in dispatch.outputs]
    while front:
        for user in consumers(block, front.pop()):
            if user.name in seen:
                continue
            seen.add(user.name)
            if user.op == "combine":
                found[user.name] = user
            elif user.op != "unroute" and (user.view == "expert" or is_resharding(user)):
                front += [v.name for v in user.outputs]
    return list(found.values())


def routed_tokens(graph: Graph) -> Iterator[Diagnostic]:
    """From level ep on, tokens are cut on every EP axis and every axis of expert replicas before they are routed."""
    if graph.level not in LEVELS or LEVELS.index(graph.level) < LEVELS.index("ep"):
        return
    needed = {*graph.mesh.view("ep"), *graph.mesh.view("edp")}
    for block, node in graph.nodes():
        if node.op != "route" or not node.outputs:
            continue
        kind = node.outputs[0].type
        groups = [d for d in kind.names if d.startswith(GROUP)]
        cut = {a for d in groups for a in kind.axes_of(d)}
        lacking = [a.name for a in graph.mesh.axes if a.name in needed - cut]
        if lacking:
            yield finding(
                "PD419",
                block,
                node,
                f"tokens are replicated over {axes_text(graph.mesh, lacking)}, where experts are cut or repeated",
                "tokens cut on every EP and EDP axis",
            )


CHECKS = (kv_cache, sends_and_receives, stage_crossings, dispatch_and_combine, routed_tokens)
