"""YAML and JSON condition files: the spec's own field names, values in SI units or as text with a unit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from ...compiler.spec.model import MAX_SIZE
from .._units import BANDWIDTH, COMPUTE, COUNT, PARAMETERS, RATE, SHARE, SIZE, THROUGHPUT, TIME, TOKENS, Measure, exact
from ._claims import Claims

__all__ = ["read_json", "read_yaml"]

_MAX_EVENTS = 100_000
_MAX_DEPTH = 40
_WHOLE = frozenset({"strategies", "placement", "pattern", "dense_at", "sequence", "scaling"})
"""Fields whose value, lists and all, is one statement."""

_MEASURES: dict[str, Measure] = {
    "cluster.accelerator.memory": SIZE,
    "cluster.accelerator.bandwidth": BANDWIDTH,
    "cluster.accelerator.compute_efficiency": SHARE,
    "cluster.accelerator.bandwidth_efficiency": SHARE,
    "model.weights": PARAMETERS,
    "workload.rate": RATE,
    "workload.require.ttft": TIME,
    "workload.require.tpot": TIME,
    "workload.require.throughput": THROUGHPUT,
    "workload.require.throughput_per_gpu": THROUGHPUT,
    **{f"cluster.{link}.bandwidth": BANDWIDTH for link in ("scale_up", "scale_out", "host")},
    **{f"cluster.{link}.latency": TIME for link in ("scale_up", "scale_out", "host")},
}


_COUNTS = frozenset(
    {f"model.{k}" for k in ("layers.count", "hidden", "vocab", "ffn", "moe.experts", "moe.top_k", "moe.ffn")}
    | {f"model.attention.{k}" for k in ("heads", "kv_heads", "head_dim")}
    | {f"workload.{k}" for k in ("batch", "input", "output")}
    | {"cluster.gpus_per_node"}
)
"""Fields that are whole numbers, and with which what is left out is worked out."""


def read_json(claims: Claims) -> None:
    """Read a JSON document; what it states goes to ``claims``."""
    try:
        data = json.loads(claims.text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        told = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        claims.report("PD010", f"malformed JSON: {told}", line, "a JSON object", "correct the text there")
        return
    # JSON is YAML but for tabs, which stand between tokens only: the places of keys come from the one reader
    _read(claims, claims.text.replace("\t", " "), data)


def read_yaml(claims: Claims) -> None:
    """Read a YAML document; what it states goes to ``claims``."""
    _read(claims, claims.text, None)


def _read(claims: Claims, text: str, data: Any) -> None:
    try:
        if not _within_bounds(claims, text):
            return
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = data if data is not None else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        told = getattr(error, "problem", None) or "it does not parse"
        line = mark.line + 1 if mark else 1
        claims.report("PD010", f"malformed YAML: {told}", line, "keys and values", "correct the text there")
        return
    if not isinstance(data, dict) or not isinstance(root, yaml.MappingNode):
        expected = "keys `model`, `cluster`, `workload` and, where wanted, `strategies`"
        claims.report("PD010", "the document is no mapping", 1, expected, "`docs/conditions.md` shows a whole file")
        return
    for line, text_of_line in enumerate(claims.source, 1):
        if _LAYOUT.fullmatch(text_of_line.strip()):
            claims.use(line, "layout")
    by_line: dict[int, dict[str, Any]] = {}
    for path, line, end, value in _leaves(root, data, ""):
        by_line.setdefault(line, {})[path] = _in_units(claims, path, value, line)
        for more in range(line + 1, end + 1):
            claims.use(more, "field", f"{path}, continued")
    for line, values in by_line.items():
        claims.state(line, {p: v for p, v in values.items() if v is not _BAD})


def _within_bounds(claims: Claims, text: str) -> bool:
    """Whether the document is of bounded size and depth, without aliases (which can grow without end)."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent))
        depth -= isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent))
        line = _line(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            claims.report("PD010", "an alias (`*name`)", line, "plain values", "write the value out")
            return False
        if number > _MAX_EVENTS or depth > _MAX_DEPTH:
            claims.report("PD002", "the document is too large or nested too deeply", line, "one condition")
            return False
    return True


_BAD = object()
_LAYOUT = re.compile(r"[{}\[\], ]*|---|#.*|\"?\w{1,80}\"? {0,8}: {0,8}\{?")
"""Lines that state nothing: braces, comments, the head of a mapping."""


def _leaves(node: yaml.MappingNode, data: Any, prefix: str) -> Iterator[tuple[str, int, int, Any]]:
    """(path, first line, last line, value) of every statement below a mapping."""
    for key_node, value_node in node.value:
        key = str(getattr(key_node, "value", ""))
        path = f"{prefix}.{key}" if prefix else key
        inner = data.get(key) if isinstance(data, dict) else None
        if isinstance(value_node, yaml.MappingNode) and isinstance(inner, dict) and key not in _WHOLE:
            yield from _leaves(value_node, inner, path)
        else:
            # a bare number of layers stands for their count
            path = f"{path}.count" if path == "model.layers" else path
            yield path, _line(key_node.start_mark), _end_line(value_node.end_mark), inner


def _line(mark: Any) -> int:
    """Line number of a mark; the scanner written in C has marks of a class of its own."""
    return int(mark.line) + 1 if mark is not None else 1


def _end_line(mark: Any) -> int:
    """The line on which a value ends; a block ends at the beginning of the line behind it."""
    return int(mark.line) + (mark.column > 0) if mark is not None else 1


def _in_units(claims: Claims, path: str, value: Any, line: int) -> Any:
    """A text such as ``64 GB`` as a number in the spec's unit; other values as they are."""
    with_unit = isinstance(value, str) and path in ("workload.input", "workload.output")
    if path in _COUNTS and not with_unit and not (type(value) is int and 1 <= value <= MAX_SIZE):
        claims.report("PD015", f"`{path}` is {str(value)[:60]!r}", line, "a whole number, 1 or more", "write the count")
        return _BAD
    if path == "workload.sequence" and isinstance(value, list):
        if len(value) == 2 and all(type(v) is int for v in value) and 1 <= value[0] <= value[1]:
            return tuple(value)
        claims.report("PD015", f"`{path}` is {str(value)[:60]}", line, "two lengths, such as [128, 10240]")
        return _BAD
    measure = COMPUTE if path.startswith("cluster.accelerator.compute.") else _MEASURES.get(path)
    if path.startswith(("workload.", "model.")) and measure is None:
        measure = TOKENS if with_unit else COUNT
    if measure is None or not isinstance(value, str):
        return value
    number, _, unit = value.strip().partition(" ")
    if measure is COUNT:
        return value
    if not unit:
        digits = number.rstrip("%abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/")
        number, unit = digits, number[len(digits) :]
    factor = measure.units.get(unit)
    if factor is None or not number:
        message = f"`{path}` is {value[:60]!r}"
        claims.report("PD014", message, line, measure.expected, "write a number, a blank and a unit")
        return _BAD
    return exact(number, factor)
