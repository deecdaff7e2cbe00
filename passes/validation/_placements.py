"""Placements: the verifier as a type checker, with the collective that a mismatch lacks named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...compiler.diagnostics import Diagnostic
from ...compiler.ir.graph import Arg, Block, Graph, Node
from ...compiler.ir.mesh import Mesh
from ...compiler.ir.ops import OPERATORS, Inference, operator
from ...compiler.ir.reshard import Step, Unreachable, plan
from ...compiler.ir.types import Placement, TensorType
from ._report import axes_text, finding, is_resharding, op_text

_RULE_FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a placement rule raises on operands that it was not made for."""

_RESOLVE = "let placements insert the collective: paradag.passes.lowering.resolve"

_OTHER_SIZE = {"kv_write": {"context"}, "kv_read": {"context"}}
"""Dimensions whose size an operator changes under the same name."""


class _WrongCount(ValueError):
    """A node has more or fewer operands, parameters or results than its operator."""


def placements(graph: Graph) -> Iterator[Diagnostic]:
    """Operands lie as the operator wants them, results as its rule says."""
    for block in graph.blocks:
        types = block.types
        for node in block.nodes:
            if node.op not in OPERATORS or any(i not in types for i in node.inputs):
                continue
            given = [types[i] for i in node.inputs]
            try:
                inferred = operator(node).infer(node, given, graph.mesh)
                _match_counts(node, inferred)
            except _RULE_FAULTS as error:
                yield _refused(graph.mesh, block, node, given, error)
                continue
            yield from _check_node(graph, block, node, given, inferred)
        yield from _check_result(graph, block)


def _match_counts(node: Node, inferred: Inference) -> None:
    for what, have, want in (
        ("operands", len(node.inputs), len(inferred.wants)),
        ("parameters", len(node.params), len(inferred.params)),
        ("results", len(node.outputs), len(inferred.results)),
    ):
        if have != want:
            raise _WrongCount(f"{have} {what} where the operator has {want}")


def _refused(mesh: Mesh, block: Block, node: Node, given: Sequence[TensorType], error: Exception) -> Diagnostic:
    """The diagnostic where the operator's rule does not take the operands at all."""
    if not is_resharding(node) or not given:
        operands = ", ".join(describe(kind, mesh) for kind in given) or "nothing"
        own = str(error) if isinstance(error, _WrongCount) else None
        return finding("PD403", block, node, f"`{node.op}` does not take {operands}", own)
    have = given[0].placement
    axes = tuple(a for a in node.attrs.get("axes", ()) if any(a == b.name for b in mesh.axes))
    what = f"{op_text(node.op)} over {axes_text(mesh, axes)}"
    source = f"`{node.inputs[0]}` is {describe(given[0], mesh)}"
    if not have.partial and not set(axes) & have.used:
        return finding("PD406", block, node, f"{what} has nothing to do: {source}", None, "remove the node")
    return finding("PD407", block, node, f"{what} does not fit: {source}", str(error), _RESOLVE)


def _check_node(
    graph: Graph, block: Block, node: Node, given: Sequence[TensorType], inferred: Inference
) -> Iterator[Diagnostic]:
    wrong = False
    for value, have, want in zip(node.inputs, given, inferred.wants, strict=True):
        if len(want.shards) != len(have.dims):
            wrong = True
            shown = describe(have, graph.mesh)
            yield finding("PD403", block, node, f"`{value}` is {shown}", f"{len(want.shards)} dimensions")
        elif have.placement != want:
            wrong = True
            yield mismatch(graph, block, value, want, node)
    if not wrong:
        yield from _check_results(graph.mesh, block, node, inferred)
    yield from _check_sizes(block, node, given)


def _check_results(mesh: Mesh, block: Block, node: Node, inferred: Inference) -> Iterator[Diagnostic]:
    if node.op == "kv_recv":
        return  # lies as the cache that it begins, which the argument's own check compares
    for value, result in zip(node.outputs, inferred.results, strict=True):
        if value.type == result:
            continue
        code = "PD407" if is_resharding(node) and value.type.dims == result.dims else "PD403"
        yield finding(
            code,
            block,
            node,
            f"`{value.name}` is {describe(value.type, mesh)}",
            f"{describe(result, mesh)} by its rule",
        )
    for param, result in zip(node.params, inferred.params, strict=True):
        if param.type != result:
            yield finding(
                "PD403",
                block,
                node,
                f"parameter `{param.name}` is {describe(param.type, mesh)}",
                describe(result, mesh),
            )


def _check_sizes(block: Block, node: Node, given: Sequence[TensorType]) -> Iterator[Diagnostic]:
    """A dimension name has one size within a node."""
    sizes: dict[str, object] = {}
    exempt = _OTHER_SIZE.get(node.op, set())
    # a norm may cover only the first features of its last dimension
    params = [] if node.op == "norm" else [p.type for p in node.params]
    for kind in [*given, *(v.type for v in node.outputs), *params]:
        for dim in kind.dims:
            known = sizes.setdefault(dim.name, dim.size)
            if known != dim.size and dim.name not in exempt:
                yield finding("PD403", block, node, f"`{dim.name}` is both {known} and {dim.size}", "one size")
                return


def _check_result(graph: Graph, block: Block) -> Iterator[Diagnostic]:
    """What leaves the block is the stream as every block takes it."""
    if not block.result or block.result not in block.types:
        return
    kind = block.types[block.result]
    if (kind.dtype, kind.dims) != (graph.stream.dtype, graph.stream.dims):
        yield finding(
            "PD403",
            block,
            block.result,
            f"{describe(kind, graph.mesh)}",
            f"the stream {describe(graph.stream, graph.mesh)}",
        )
    elif kind.placement != graph.stream.placement:
        yield mismatch(graph, block, block.result, graph.stream.placement, None)


def mismatch(graph: Graph, block: Block, value: str, want: Placement, consumer: Node | None) -> Diagnostic:
    """The diagnostic on an operand (or, without consumer, the block's result) that does not lie as wanted."""
    mesh = graph.mesh
    chain = _since_last_hop(block, resharding_chain(block, value), consumer)
    root = chain[0].inputs[0] if chain else value
    kind = block.types.get(root, block.types[value])
    user = f"`{consumer.name}`" if consumer is not None else "the end of the block"
    have = describe(block.types[value], mesh)
    wanted = describe(kind.placed(want), mesh)
    try:
        steps = plan(kind.placement, want, kind.names, mesh)
    except (Unreachable, *_RULE_FAULTS):
        return finding("PD404", block, consumer or value, f"`{value}` is {have}", wanted)
    done = [(n.op, dict(n.attrs)) for n in chain]
    if done == [(s.op, s.attrs) for s in steps[: len(done)]]:
        missing = " and ".join(_step_text(s, mesh) for s in steps[len(done) :])
        return finding(
            "PD405",
            block,
            consumer or value,
            f"missing {missing} between `{value}` and {user}: it is {have}",
            wanted,
            _RESOLVE,
        )
    last = chain[-1]
    if not steps:
        message = f"`{root}` already lies as {user} wants it, yet it goes through {op_text(last.op)}"
        return finding("PD406", block, last, message, wanted, "remove the node")
    right = " and ".join(_step_text(s, mesh) for s in steps)
    return finding(
        "PD407", block, last, f"leaves `{value}` {have} for {user}, which wants {wanted}", f"{right} of `{root}`"
    )


def resharding_chain(block: Block, value: str) -> list[Node]:
    """The resharding nodes that lead to the value, first to last."""
    chain: list[Node] = []
    producers = block.producers
    while (node := producers.get(value)) is not None and is_resharding(node) and node.inputs and node not in chain:
        chain.append(node)
        value = node.inputs[0]
    return chain[::-1]


def _since_last_hop(block: Block, chain: list[Node], consumer: Node | None) -> list[Node]:
    """The part of a chain behind the last block of a ring that others work on: that block is there anyway."""
    for place in range(len(chain), 0, -1):
        maker = chain[place - 1]
        others = [n for n in _users(block, maker) if n is not consumer and not is_resharding(n)]
        if maker.op == "ring_shift" and others:
            return chain[place:]
    return chain


def redundant(graph: Graph) -> Iterator[Diagnostic]:
    """No collective is done twice on one value, and no chain of them takes a detour."""
    for block in graph.blocks:
        seen: dict[object, Node] = {}
        for node in block.nodes:
            if not is_resharding(node) or not node.inputs:
                continue
            key = (node.op, node.inputs, repr(sorted(node.attrs.items())), node.items, node.steps)
            first = seen.setdefault(key, node)
            if first is not node:
                message = f"the same {op_text(node.op)} of `{node.inputs[0]}` as `{first.name}`"
                yield finding(
                    "PD406", block, node, message, "one collective, used twice", f"use `{first.outputs[0].name}`"
                )
            yield from _detour(graph, block, node)


def _detour(graph: Graph, block: Block, node: Node) -> Iterator[Diagnostic]:
    chain = resharding_chain(block, node.outputs[0].name) if node.outputs else []
    chain = [*_since_last_hop(block, chain[:-1], None), *chain[-1:]]
    types = block.types
    if len(chain) < 2 or any(consumer in chain or is_resharding(consumer) for consumer in _users(block, node)):
        return
    root = types.get(chain[0].inputs[0])
    if root is None:
        return
    try:
        steps = plan(root.placement, types[node.outputs[0].name].placement, root.names, graph.mesh)
    except (Unreachable, *_RULE_FAULTS):
        return
    if len(steps) < len(chain):
        way = ", ".join(op_text(n.op) for n in chain)
        short = " and ".join(_step_text(s, graph.mesh) for s in steps) or "nothing"
        yield finding("PD406", block, node, f"the way {way} is a detour", f"{short} leads there", "remove the detour")


def _users(block: Block, node: Node) -> list[Node]:
    given = {v.name for v in node.outputs}
    return [n for n in block.nodes if given & set(n.inputs)]


def carried(graph: Graph) -> Iterator[Diagnostic]:
    """What enters from another repetition has the type of what left there."""
    last = {name: t for b in graph.with_role("epilogue") for name, t in b.types.items()}
    for block in graph.blocks:
        for arg in block.args:
            if arg.carry == "layer":
                source: TensorType | None = graph.stream
            else:
                source = (block.types if arg.carry == "version" else last).get(arg.source)
            if source is not None:
                yield from _check_carried(graph, block, arg, source, arg.source or "the stream")
            if arg.init in block.types:
                yield from _check_carried(graph, block, arg, block.types[arg.init], arg.init)


def _check_carried(graph: Graph, block: Block, arg: Arg, source: TensorType, name: str) -> Iterator[Diagnostic]:
    kind = arg.value.type
    is_cache = "kv_write" in {n.op for n in block.nodes if arg.value.name in n.inputs}
    if kind.placement != source.placement:
        yield finding(
            "PD410" if is_cache else "PD404",
            block,
            arg.value.name,
            f"{describe(kind, graph.mesh)}, but {name} is {describe(source, graph.mesh)}",
            "the placement it was left with",
        )
    same = kind.dtype == source.dtype and kind.names == source.names
    sizes = [(a.size, b.size) for a, b in zip(kind.dims, source.dims, strict=False) if a.name != "context"]
    if not same or any(a != b for a, b in sizes):
        yield finding(
            "PD403",
            block,
            arg.value.name,
            f"{describe(kind, graph.mesh)}, but {name} is {describe(source, graph.mesh)}",
        )


def describe(kind: TensorType, mesh: Mesh) -> str:
    """A type in a line: ``[batch/adp, seq, hidden] partial over tp``."""
    known = {a.name for a in mesh.axes}

    def axes(names: Sequence[str]) -> str:
        return mesh.describe(names) if set(names) <= known else "+".join(names)

    shifts = kind.placement.shift or (0,) * len(kind.dims)
    cuts = zip(kind.dims, kind.placement.shards, shifts, strict=True)
    dims = [(f"{d.name}/{axes(a)}" if a else d.name) + (f" shifted by {s}" if s else "") for d, a, s in cuts]
    partial = f" partial over {axes([a for a, _ in kind.placement.partial])}" if kind.placement.partial else ""
    return f"[{', '.join(dims)}]{partial}"


def _step_text(step: Step, mesh: Mesh) -> str:
    return f"{op_text(step.op)} over {axes_text(mesh, step.attrs['axes'])}"


CHECKS = (placements, redundant, carried)
