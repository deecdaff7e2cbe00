"""The IR as text for a reviewer; :func:`paradag.compiler.ir.parse.parse_graph` reads it back. See ``docs/ir.md``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import groupby
from typing import Any

import numpy as np

from .graph import Arg, Block, Graph, Item, Node, Param
from .mesh import Mesh
from .types import BATCH, CONTEXT, NEW, Dim, Extent, Size, TensorType

__all__ = ["KEYWORDS", "NATURAL_SIZES", "print_block", "print_graph", "print_node", "print_type"]

NATURAL_SIZES: Mapping[str, Extent] = {"batch": BATCH, "seq": NEW, "context": CONTEXT}
"""Dimensions that are written without their size where they have this one."""

KEYWORDS = frozenset(
    {"arg", "by", "const", "density", "false", "inf", "init", "items", "meta", "nan", "none", "over", "partial"}
    | {"return", "shift", "stages", "steps", "true", "view", "where"}
)
"""Words that a name may not be unless quoted, because a keyword may stand where it does."""

_WIDTH = 140
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*")
_VALUE = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_MAX_DENOMINATOR = 1 << 16


def print_graph(graph: Graph) -> str:
    """The whole graph; equal graphs whose mappings have equal order give equal text.

    Raises:
        TypeError: an attribute or a fact of ``meta`` is none of number, string, boolean, None, and tuple, list and
            mapping of them.
    """
    parts = [
        f"graph {_string(graph.name)} {_word(graph.phase)} level {_word(graph.level)}",
        _mesh(graph.mesh),
        " ".join(["views", *(f"{_word(name)}{_cuts(axes, always=True)}" for name, axes in graph.mesh.views.items())]),
        f"stages {', '.join(map(str, graph.stages))}",
    ]
    if graph.steps != 1:
        parts.append(f"steps {graph.steps}")
    parts += [_items(graph.items), f"stream {print_type(graph.stream)}"]
    if graph.meta:
        parts.append(f"meta {_pairs(graph.meta)}")
    return "\n".join(parts) + "\n" + "".join(f"\n{print_block(b)}\n" for b in graph.blocks)


def print_block(block: Block) -> str:
    """One block, without a newline at its end."""
    head = _word(block.role)
    if block.name != block.role:
        head += f" {_word(block.name)}"
    if block.layers:
        head += f" over {', '.join(_range(*run) for run in _runs(block.layers))}"
    lines = [f"{head} {{", *(f"  {_arg(a)}" for a in block.args), *(print_node(n, "  ") for n in block.nodes)]
    if block.result:
        lines.append(f"  return {_value(block.result)}")
    return "\n".join([*lines, "}"])


def print_node(node: Node, indent: str = "") -> str:
    """One node, on one line where it fits."""
    outputs = ", ".join(_value(v.name) for v in node.outputs)
    inputs = ", ".join(map(_value, node.inputs)) or "()"
    head = f"{outputs} = " if outputs else ""
    usual = node.outputs[0].name if node.outputs else node.op
    label = "" if node.name == usual else f"{_word(node.name)}: "
    parts = [f"{label}{head}{_word(node.op)} {inputs}"]
    parts += _listed("[", [_param(p) for p in node.params], "]")
    if node.attrs:
        parts.append(_pairs(node.attrs))
    parts += _listed(": ", [print_type(v.type) for v in node.outputs], "")
    if suffix := _suffix(node):
        parts.append(f" {suffix}")
    return _fill(parts, indent)


def print_type(t: TensorType) -> str:
    """A tensor type: ``bf16[batch{adp}, seq, hidden:4096] partial(tp: sum)``."""
    shifts = t.placement.shift or (0,) * len(t.dims)
    cuts = zip(t.dims, t.placement.shards, shifts, strict=True)
    dims = ", ".join(_dim(d, axes) + (f" shift {hops}" if hops else "") for d, axes, hops in cuts)
    text = f"{_word(t.dtype)}[{dims}]"
    if t.placement.partial:
        text += f" partial({', '.join(f'{_word(a)}: {_word(r)}' for a, r in t.placement.partial)})"
    if t.density != 1.0:
        text += f" density {_ratio(t.density)}"
    return text


# --- header ---------------------------------------------------------------------------------------------------------


def _mesh(mesh: Mesh) -> str:
    axes = ", ".join(f"{_word(a.name)}:{a.size} stride {a.stride}" for a in mesh.axes)
    text = f"mesh [{axes}]"
    if mesh.pp != 1 or mesh.pp_stride != mesh.stage_ranks:
        text += f" pp {mesh.pp} stride {mesh.pp_stride}"
    if mesh.dp != 1:
        text += f" dp {mesh.dp}"
    if mesh.first_rank:
        text += f" first_rank {mesh.first_rank}"
    return text


def _items(items: Sequence[Item]) -> str:
    """Consecutive micro-batches of equal chunks on one line."""
    trips = [(number, _chunks(list(group))) for number, group in groupby(items, key=lambda i: i.microbatch)]
    lines = []
    for text, group in groupby(trips, key=lambda t: t[1]):
        numbers = [number for number, _ in group]
        lines += [f"  microbatch {_range(*run)}: {text}" for run in _runs(numbers)]
    return "\n".join(["items {", *lines, "}"])


def _chunks(chunks: Sequence[Item]) -> str:
    return ", ".join(_chunk(item, place, len(chunks)) for place, item in enumerate(chunks))


def _chunk(item: Item, place: int, count: int) -> str:
    """Sizes of one item; its number and flags only where its place does not tell them."""
    facts = [f"batch {item.batch}", f"new {item.new}"]
    if item.past:
        facts.append(f"past {item.past}")
    if item.chunk != place:
        facts.append(f"chunk {item.chunk}")
    if item.first != (place == 0):
        facts.append(f"first {_literal(item.first)}")
    if item.last != (place == count - 1):
        facts.append(f"last {_literal(item.last)}")
    return f"[{', '.join(facts)}]"


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Arithmetic runs (first, last, step) whose concatenation is ``numbers``; a step above 1 needs three members."""
    start = 0
    while start < len(numbers):
        end = start + 1
        step = numbers[end] - numbers[start] if end < len(numbers) else 1
        if step >= 1:
            while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
                end += 1
        if step > 1 and end - start < 3:
            end = start + 1
        yield numbers[start], numbers[end - 1], step
        start = end


def _range(first: int, last: int, step: int) -> str:
    if first == last:
        return str(first)
    return f"{first}..{last}" + (f" by {step}" if step != 1 else "")


# --- blocks and nodes -----------------------------------------------------------------------------------------------


def _arg(arg: Arg) -> str:
    text = f"arg {_value(arg.value.name)} : {print_type(arg.value.type)} from {_word(arg.carry)}"
    if arg.source:
        text += f"({_value(arg.source)})"
    return text + (f" init {_value(arg.init)}" if arg.init else "")


def _param(param: Param) -> str:
    return f"{'const ' if param.const else ''}{_word(param.name)}: {print_type(param.type)}"


def _suffix(node: Node) -> str:
    parts = []
    if node.constraints:
        cuts = (f"{_word(d)}{_cuts(axes, always=True)}" for d, axes in node.constraints.items())
        parts.append(f"where {', '.join(cuts)}")
    if node.module != "control":
        parts.append(f"@{_word(node.module)}")
    if node.view != "attention":
        parts.append(f"view {_word(node.view)}")
    if node.items != "all":
        parts.append(f"items {_word(node.items)}")
    if node.steps != "all":
        parts.append(f"steps {_word(node.steps)}")
    if node.origin:
        parts.append(f"by {_word(node.origin)}")
    return " ".join(parts)


def _dim(dim: Dim, axes: Sequence[str]) -> str:
    size = "" if NATURAL_SIZES.get(dim.name) == dim.size else f":{_size(dim.size)}"
    return f"{_word(dim.name)}{size}{_cuts(axes)}"


def _size(size: Size) -> str:
    if not isinstance(size, Extent):
        return str(size)
    if size.kind == "window":
        return f"window({size.window})"
    if size.kind == "rows":
        return f"(batch{_cuts(size.batch_axes)} * new{_cuts(size.new_axes)})"
    return _word(size.kind)


def _cuts(axes: Iterable[str], *, always: bool = False) -> str:
    text = ",".join(map(_word, axes))
    return f"{{{text}}}" if text or always else ""


def _listed(opening: str, parts: Sequence[str], closing: str) -> list[str]:
    """The parts with commas between, so that a line may end after each."""
    if not parts:
        return []
    inner = [*(f"{p}," for p in parts[:-1]), f"{parts[-1]}{closing}"]
    return [opening + inner[0], *inner[1:]]


def _fill(parts: Sequence[str], indent: str) -> str:
    """Parts on one line, or on several where they do not fit."""
    lines = [indent + parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) <= _WIDTH:
            lines[-1] += f" {part}"
        else:
            lines.append(f"{indent}    {part.lstrip()}")
    return "\n".join(lines)


# --- words and values -----------------------------------------------------------------------------------------------


def _word(name: str) -> str:
    return name if _WORD.fullmatch(name) and name not in KEYWORDS else _string(name)


def _value(name: str) -> str:
    return f"%{name}" if _VALUE.fullmatch(name) else f"%{_string(name)}"


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _ratio(x: float) -> str:
    """A fraction of small numbers where it is exact: ``1/18`` rather than ``0.05555555555555555``."""
    near = Fraction(x).limit_denominator(_MAX_DENOMINATOR)
    exact = near.denominator != 1 and near.numerator / near.denominator == x
    return f"{near.numerator}/{near.denominator}" if exact else repr(float(x))


def _pairs(pairs: Mapping[str, Any]) -> str:
    return f"{{{', '.join(f'{_word(k)} = {_literal(v)}' for k, v in pairs.items())}}}"


def _literal(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _word(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        return _pairs(value)
    raise TypeError(f"the textual IR has no form for a value of type {type(value).__name__}: {value!r}")
