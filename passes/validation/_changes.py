"""What a repair changed, as the few lines that a person would write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ...compiler.diagnostics import Fix
from ...compiler.ir.graph import Arg, Block, Graph, Node, Param, Value
from ...compiler.ir.mesh import Mesh
from ...compiler.ir.ops import is_phase_node
from ._placements import describe
from ._report import is_resharding

_TRANSPORT = frozenset({"send", "recv"})


def changes(before: Graph, after: Graph, codes: Iterable[str]) -> list[Fix]:
    """The differences of two graphs as fixes, each under the finding that it answers.

    A node that only follows from another change (its operand goes by another name) is not told.

    Args:
        before: The damaged graph.
        after: The repaired one.
        codes: Codes of the findings on ``before``.
    """
    found = frozenset(codes)
    fixes: list[Fix] = []
    if before.stream != after.stream:
        mesh = after.mesh
        text = (f"stream {describe(before.stream, mesh)}", f"stream {describe(after.stream, mesh)}")
        fixes.append(Fix(_rule(found, "PD404"), *text))
    old = {b.name: b for b in before.blocks}
    new = {b.name: b for b in after.blocks}
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            fixes.append(Fix(_rule(found, "PD408"), f"block {name}", f"- block {name}"))
        elif name not in old:
            shown = ", ".join(n.op for n in new[name].nodes)
            fixes.append(Fix(_rule(found, "PD408"), "", f"+ block {name}: {shown}"))
        else:
            fixes += (_fix(found, *c) for c in _block(before.mesh, old[name], new[name]))
    return list(dict.fromkeys(fixes))


def _rule(found: frozenset[str], *wanted: str) -> str:
    """The first wanted code that was found; the first finding, where none was."""
    return next((c for c in wanted if c in found), min(found))


def _fix(found: frozenset[str], wanted: tuple[str, ...], before: str, after: str) -> Fix:
    return Fix(_rule(found, *wanted), before, after)


_Change = tuple[tuple[str, ...], str, str]


def _block(mesh: Mesh, before: Block, after: Block) -> Iterator[_Change]:
    place = f"in {after.name}"
    if before.layers != after.layers:
        yield ("PD408", "PD412"), f"layers {before.layers} {place}", f"layers {after.layers}"
    old, new = {n.name: n for n in before.nodes}, {n.name: n for n in after.nodes}
    carriers = {"before": _carriers(before), "after": _carriers(after)}
    for name, node in old.items():
        if name not in new:
            yield _codes_without(node), f"{_text(mesh, node)} {place}", f"- {_text(mesh, node)}"
    for name, node in new.items():
        if name not in old:
            yield _codes_with(node), "", f"+ {_text(mesh, node)} {place}"
            continue
        was = old[name]
        for wanted, a, b in _node(mesh, was, node, carriers):
            yield wanted, f"{name}: {a} {place}", f"{name}: {b}"
    kept = set(old) & set(new)
    if [n for n in old if n in kept] != [n for n in new if n in kept]:
        yield ("PD402",), f"order of {before.name}", "every node behind its operands"
    yield from (_args(mesh, before, after))


def _args(mesh: Mesh, before: Block, after: Block) -> Iterator[_Change]:
    new: dict[str, Arg] = {a.value.name: a for a in after.args}
    for arg in before.args:
        name, now = arg.value.name, new.get(arg.value.name)
        if now is None or arg == now:
            continue
        if arg.value != now.value:
            kinds = (describe(arg.value.type, mesh), describe(now.value.type, mesh))
            yield ("PD410", "PD404", "PD403", "PD430"), f"{name}: {kinds[0]} in {before.name}", f"{name}: {kinds[1]}"
        if arg.source != now.source:
            yield (
                ("PD411", "PD409", "PD408", "PD402"),
                f"{name}: carries {arg.source} in {before.name}",
                f"{name}: carries {now.source}",
            )


def _carriers(block: Block) -> dict[str, str]:
    """Values behind collectives and transports, by the value that they carry."""
    known: dict[str, str] = {}
    for node in block.nodes:
        if (is_resharding(node) or node.op in _TRANSPORT) and node.inputs:
            known.update((v.name, known.get(node.inputs[0], node.inputs[0])) for v in node.outputs)
    return known


def _node(mesh: Mesh, was: Node, now: Node, carriers: dict[str, dict[str, str]]) -> Iterator[_Change]:
    """How a node of both graphs differs; operands count by what they carry."""
    if is_resharding(was) or is_resharding(now):
        if (was.op, was.inputs, was.attrs) != (now.op, now.inputs, now.attrs):
            yield ("PD407", "PD416", "PD413", "PD405", "PD406"), _text(mesh, was), _text(mesh, now)
        elif _shape(was.outputs, mesh) != _shape(now.outputs, mesh):
            yield ("PD407", "PD403"), _shape(was.outputs, mesh), _shape(now.outputs, mesh)
        elif (was.module, was.view, was.items, was.steps) != (now.module, now.view, now.items, now.steps):
            yield ("PD440", "PD402"), f"{_where(was)}", f"{_where(now)}"
        return
    old = [carriers["before"].get(i, i) for i in was.inputs]
    new = [carriers["after"].get(i, i) for i in now.inputs]
    if len(old) != len(new):
        yield _OPERANDS, f"takes {', '.join(old) or 'nothing'}", f"takes {', '.join(new)}"
    # a lost collective leaves its name behind: `o_out.all_reduce` is `o_out`
    moved = [(i, j) for i, j in zip(old, new, strict=False) if i != j and i.rsplit(".", 1)[0] != j]
    if moved:
        yield _OPERANDS, f"takes {', '.join(i for i, _ in moved)}", f"takes {', '.join(j for _, j in moved)}"
    renumbered = sorted(k for k in ("hop", "ring") if was.attrs.get(k) != now.attrs.get(k))
    if renumbered:
        first, second = (", ".join(f"{k} {n.attrs.get(k)}" for k in renumbered) for n in (was, now))
        yield ("PD448", "PD405", "PD403"), first, second
    for wanted, lost, found in (
        (("PD421", "PD403"), was.params, now.params),
        (("PD403", "PD430", "PD404", "PD410"), was.outputs, now.outputs),
    ):
        a, b = _different(lost, found)
        if a or b:
            yield wanted, _shape(a, mesh), _shape(b, mesh)
    if was.constraints != now.constraints:
        yield ("PD419", "PD416", "PD404"), f"cut by {dict(was.constraints)}", f"cut by {dict(now.constraints)}"


_OPERANDS = ("PD411", "PD410", "PD403", "PD402")

_Tensor = Value | Param


def _different(old: Sequence[_Tensor], new: Sequence[_Tensor]) -> tuple[list[_Tensor], list[_Tensor]]:
    """The tensors of each list that the other has not alike."""
    return [t for t in old if t not in new], [t for t in new if t not in old]


def _shape(tensors: Iterable[_Tensor], mesh: Mesh) -> str:
    """``gate bf16 [batch, ffn/tp] of batch x 2048``."""
    parts = []
    for t in tensors:
        sizes = " x ".join(str(d.size) for d in t.type.dims)
        parts.append(f"{t.name} {t.type.dtype} {describe(t.type, mesh)} of {sizes}")
    return "; ".join(parts)


def _where(node: Node) -> str:
    return f"in module {node.module}, view {node.view}, for {node.items} chunks and {node.steps} steps"


def _codes_with(node: Node) -> tuple[str, ...]:
    if node.op in _TRANSPORT:
        return ("PD409", "PD408", "PD402")
    if is_phase_node(node):
        return ("PD427",)
    return ("PD413", "PD405") if node.op in {"dispatch", "combine"} else ("PD405", "PD407", "PD402")


def _codes_without(node: Node) -> tuple[str, ...]:
    if node.op in _TRANSPORT:
        return ("PD408", "PD409")
    if node.op == "kv_write":
        return ("PD428",)
    return ("PD406", "PD407", "PD405") if is_resharding(node) else ("PD415",)


def _text(mesh: Mesh, node: Node) -> str:
    """``all_reduce over tp after o_out``."""
    known = {a.name for a in mesh.axes}
    axes = tuple(node.attrs.get("axes", ()))
    over = f" over {mesh.describe(axes) if set(axes) <= known else '+'.join(axes)}" if axes else ""
    of = node.attrs.get("of", ())
    dims = f" of {of if isinstance(of, str) else ', '.join(dict.fromkeys(of))}" if of else ""
    to = node.attrs.get("to", ())
    dims += f" to {to if isinstance(to, str) else ', '.join(to)}" if to else ""
    after = f" after {node.inputs[0]}" if node.inputs else ""
    return f"{node.op}{over}{dims}{after}" if is_resharding(node) or node.op in _TRANSPORT else f"{node.name}{after}"
