"""The ``rotary`` block of a model."""

from __future__ import annotations

from typing import Any

from ._context import Block
from ._syntax import Statement
from ._units import FACTOR, TOKENS

__all__ = ["build_rotary"]

_STRETCH = ("factor", "original")
_KEYS = {
    "yarn": (*_STRETCH, "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"),
    "llama3": (*_STRETCH, "low_freq", "high_freq"),
    "linear": ("factor",),
    "none": (),
}
"""What each kind of scaling takes."""

_ALL_KEYS = tuple(dict.fromkeys(key for keys in _KEYS.values() for key in keys))


def build_rotary(block: Block, fields: dict[str, Any]) -> None:
    """Store what the block of ``rotary`` says in ``fields``, over what a config says."""
    statement = block.get("rotary")
    if statement is None:
        return
    data = dict(fields.get("rotary") or {})
    inner = Block(block.context, statement, "model.rotary", "rotary")
    inner.read_measure(data, "theta", FACTOR)
    inner.read_counts(data, "dim")
    inner.read_choices(data, "style")
    if (scaling := inner.get("scaling")) is not None:
        inner.place("scaling", scaling)
        _scaling(inner, scaling, data)
    fields["rotary"] = data


def _scaling(block: Block, statement: Statement, data: dict[str, Any]) -> None:
    kind = block.choice(statement)
    inner = Block(block.context, statement, f"model.rotary.scaling.{kind}", "scaling")
    if kind is None:
        return
    own = _KEYS[kind]
    for key in _ALL_KEYS:
        if key not in own and (other := inner.get(key)) is not None:
            message = f"`{key}` has no place in `scaling {kind}`"
            inner.context.report("PD011", message, inner.span(other), None, "remove it")
    if kind == "none":
        data["scaling"] = None
        return
    inherited = data.get("scaling") or {}
    scaling: dict[str, Any] = dict(inherited) if inherited.get("kind") == kind else {"kind": kind}
    for key in own:
        if key == "original":
            inner.read_counts(scaling, key, measure=TOKENS)
        elif key == "truncate":
            inner.read_flags(scaling, key)
        else:
            inner.read_measure(scaling, key, FACTOR)
    inner.require(*(key for key in _STRETCH if key in own), given=scaling)
    data["scaling"] = scaling
