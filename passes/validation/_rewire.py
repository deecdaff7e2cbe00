"""Wiring that has one legal reading: transports and collectives taken out, KV versions and program order restored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter

from ...compiler.ir.graph import Block, Graph, Node
from ...compiler.ir.ops import OPERATORS, Resharding, is_phase_node
from ._report import is_resharding
from ._unring import unringed

_TRANSPORT = frozenset({"send", "recv"})
_COLLECTIVES = frozenset(name for name, rule in OPERATORS.items() if isinstance(rule, Resharding))
_UNUSED = frozenset({"prefill_end", "decode_end", "chunk_end", "kv_send"})
"""Operators whose results nobody needs to take."""

_NUMBER = re.compile(r"_\d+$")
_CACHE_USERS = frozenset({"kv_write", "kv_read", "kv_send"})


def rewired(graph: Graph, logical: Graph | None = None) -> Graph:
    """The graph without resharding, sends, receives and boundaries, its blocks restored.

    Args:
        graph: A lowered graph.
        logical: The graph it was lowered from; independent nodes that were moved come back to its order.

    Raises:
        graphlib.CycleError: a block has a cycle.
    """
    ends = [n.outputs[0].name for b in graph.with_role("epilogue") for n in b.nodes if n.op == "decode_end"]
    returned: dict[str, str] = {}
    known = {b.name: b for b in logical.blocks} if logical is not None else {}
    blocks = []
    for block in graph.blocks:
        if block.role == "boundary":
            continue
        bare, alias = _bare(block)
        if block.role == "epilogue":
            returned |= alias
        like = known.get(block.name)
        bare = _with_phase_nodes(unringed(bare, like), like)
        blocks.append(_used(_ordered(_cached(bare), [n.name for n in like.nodes] if like else [])))
    last = {v for b in blocks if b.role == "epilogue" for v in b.types}

    def link(block: Block) -> Block:
        args = []
        # only where the step's end was lost: an older token fed back is another meaning, not a lost node
        stated = {a.value.name: a.source for a in known[block.name].args} if block.name in known and not ends else {}
        for arg in block.args:
            if arg.carry == "step":
                source = stated.get(arg.value.name) or returned.get(arg.source, arg.source)
                # what the last stage sends back is the step's end, by whatever name the lost wire went
                source = ends[0] if source not in last and len(ends) == 1 else source
                arg = replace(arg, source=source)
            args.append(arg)
        return replace(block, args=tuple(args))

    return replace(graph, blocks=tuple(link(b) for b in blocks))


def _with_phase_nodes(block: Block, like: Block | None) -> Block:
    """The block with the phase nodes that it lost, as and where they stand in the logical block."""
    present = {n.name for n in block.nodes}
    lost = [n for n in like.nodes if is_phase_node(n) and n.name not in present] if like is not None else []
    if like is None or not lost:
        return block
    given = {v.name for n in lost for v in n.outputs}
    wanted = {n.name: n.inputs for n in like.nodes}

    def taking(node: Node) -> Node:
        logical = wanted.get(node.name, node.inputs)
        if len(logical) != len(node.inputs):
            return node
        return replace(node, inputs=tuple(w if w in given else i for w, i in zip(logical, node.inputs, strict=True)))

    nodes = [taking(n) for n in block.nodes]
    order = [n.name for n in like.nodes]
    for node in lost:
        before = set(order[: order.index(node.name)])
        place = max((i + 1 for i, n in enumerate(nodes) if n.name in before), default=0)
        nodes.insert(place, node)
    return replace(block, nodes=tuple(nodes))


def _bare(block: Block) -> tuple[Block, dict[str, str]]:
    """The block without transports and collectives, and what each value that they gave stands for."""
    known = {a.value.name for a in block.args}
    known |= {v.name for n in block.nodes if not _moves(n) for v in n.outputs}
    alias = {
        v.name: n.inputs[0] for n in block.nodes if _moves(n) and n.inputs for v in n.outputs if v.name not in known
    }
    entering = [a.value.name for a in block.args if a.carry == "step"]

    def root(value: str, user: Node | None = None) -> str:
        seen = set()
        while value not in known and value in alias and value not in seen:
            seen.add(value)
            value = alias[value]
        if value not in known and user is not None and user.op == "decode_begin" and len(entering) == 1:
            return entering[0]
        return value if value in known else _named_after(value, known)

    nodes = tuple(replace(n, inputs=tuple(root(i, n) for i in n.inputs)) for n in block.nodes if not _moves(n))
    args = tuple(replace(a, init=root(a.init) if a.init else a.init) for a in block.args)
    args = tuple(replace(a, source=root(a.source)) if a.carry == "version" else a for a in args)
    result = root(block.result) if block.result else block.result
    return replace(block, nodes=nodes, args=args, result=result), {v: root(v) for v in alias}


def _named_after(value: str, known: set[str]) -> str:
    """The operand of a collective that is gone altogether: its result ``o_out.all_reduce`` is named after it."""
    base, _, op = value.rpartition(".")
    if _NUMBER.sub("", op) in _COLLECTIVES:
        return next((b for b in (base, _NUMBER.sub("", base)) if b in known), value)
    return value


def _moves(node: Node) -> bool:
    return is_resharding(node) or node.op in _TRANSPORT


def _cached(block: Block) -> Block:
    """Each cache written once, read after the write, and carried on, where there is one way to do so."""
    block = _one_writer(block)
    writes = [n for n in block.nodes if n.op == "kv_write" and n.outputs and n.inputs]
    reads = [n for n in block.nodes if n.op == "kv_read" and n.outputs]
    if len(writes) != 1:
        return block
    write, after = writes[0], writes[0].outputs[0].name
    read = reads[0].outputs[0].name if len(reads) == 1 else None
    caches = {a.value.name for a in block.args if a.carry == "version"}
    cache = write.inputs[0] if write.inputs[0] in caches else None

    def fix(node: Node) -> Node:
        if node.op in {"kv_read", "kv_send"} and node.inputs in {(cache,), ()}:
            return replace(node, inputs=(after,))
        if node.op not in _CACHE_USERS and read is not None:
            given = {after, cache}
            return replace(node, inputs=tuple(read if i in given else i for i in node.inputs))
        return node

    args = tuple(replace(a, source=after) if a.carry == "version" and a.value.name == cache else a for a in block.args)
    return replace(block.map_nodes(fix), args=args)


def _one_writer(block: Block) -> Block:
    """Writes that append the same to the same cache are one."""
    first: dict[tuple[str, ...], Node] = {}
    renamed: dict[str, str] = {}
    for node in block.nodes:
        if node.op == "kv_write" and node.outputs:
            kept = first.setdefault(node.inputs, node)
            if kept is not node:
                renamed[node.outputs[0].name] = kept.outputs[0].name
    return _renamed(block, renamed) if renamed else block


def _renamed(block: Block, renamed: Mapping[str, str]) -> Block:
    """The block without the nodes that gave the renamed values."""
    nodes = tuple(
        replace(n, inputs=tuple(renamed.get(i, i) for i in n.inputs))
        for n in block.nodes
        if not any(v.name in renamed for v in n.outputs)
    )
    args = tuple(replace(a, source=renamed.get(a.source, a.source)) for a in block.args)
    return replace(block, nodes=nodes, args=args, result=renamed.get(block.result, block.result))


def _ordered(block: Block, reference: Sequence[str]) -> Block:
    """Every node behind its operands; the order stays as it is where it is one already.

    Else nodes come in the order of ``reference`` where that names them all, and as they were written where it does not.
    """
    known = {a.value.name for a in block.args}
    sound = True
    for node in block.nodes:
        sound = sound and known.issuperset(node.inputs)
        known |= {v.name for v in node.outputs}
    if sound:
        return block
    names = [n.name for n in block.nodes]
    place = {name: i for i, name in enumerate(reference if set(names) <= set(reference) else names)}
    producers = block.producers
    sorter = TopologicalSorter({n.name: [producers[i].name for i in n.inputs if i in producers] for n in block.nodes})
    sorter.prepare()
    by_name = {n.name: n for n in block.nodes}
    order: list[Node] = []
    ready = set(sorter.get_ready())
    while ready:
        # the first that can go
        name = min(ready, key=place.__getitem__)
        ready.remove(name)
        order.append(by_name[name])
        sorter.done(name)
        ready.update(sorter.get_ready())
    return replace(block, nodes=tuple(order))


def _used(block: Block) -> Block:
    """Without nodes whose results nobody takes."""
    while True:
        used = {i for n in block.nodes for i in n.inputs} | {block.result}
        used |= {r for a in block.args for r in (a.init, a.source)}
        kept = tuple(n for n in block.nodes if n.op in _UNUSED or any(v.name in used for v in n.outputs))
        if len(kept) == len(block.nodes):
            return block
        block = replace(block, nodes=kept)
