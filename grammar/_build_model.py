"""The ``model`` block: dimensions as written, or as a Hugging Face config has them, with what follows from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..compiler.diagnostics import DiagnosticError
from ..compiler.spec import ModelSpec
from ._build_rotary import build_rotary
from ._check_model import check_model
from ._context import Block, Context
from ._syntax import Statement, token_span
from ._units import FACTOR, PARAMETERS, TOKENS
from .hf_config import load_hf_config

__all__ = ["build_model"]

_MLA_KEYS = ("q_lora", "kv_lora", "nope_dim", "rope_dim", "v_dim")
_MLA_REQUIRED = _MLA_KEYS[1:]
_QK_NORM = {"true": "head", "head": "head", "full": "full", "false": "none", "none": "none"}
_BIAS = {"true": "all", "all": "all", "qkv": "qkv", "false": "none", "none": "none"}


def build_model(context: Context, head: Statement, base: Path | None) -> ModelSpec | None:
    """The model of the file, or None where errors (all reported) leave none."""
    block = Block(context, head, "model")
    before = len(context.diagnostics)
    fields = _start(context, head, base)
    if head.block is None and not head.tokens("HF"):
        context.report("PD013", "`model` has no block", block.head, "`{ ... }` with the dimensions")
        return None
    if fields is None:
        fields = {"_broken": True}
    block.read_counts(fields, "hidden", "vocab", "ffn")
    block.read_counts(fields, "max_context", measure=TOKENS)
    block.read_measure(fields, "weights", PARAMETERS)
    block.read_measure(fields, "norm_eps", FACTOR)
    block.read_choices(fields, "dtype", "kv_dtype")
    block.read_flags(fields, "tied")
    _layers(block, fields)
    _attention(block, fields)
    _moe(block, fields)
    build_rotary(block, fields)
    if fields.pop("_broken", False):
        return None
    block.require("layers", "hidden", "vocab", "attention", given=fields)
    _assume_defaults(context, fields)
    model = context.validate(ModelSpec, fields, "model")
    if any(d.is_error for d in context.diagnostics[before:]):
        return None
    if model is None or context.damaged & {"layers", "attention", "moe", "dense", "pattern", "ffn"}:
        return model
    check_model(context, model)
    return model


def _start(context: Context, head: Statement, base: Path | None) -> dict[str, Any] | None:
    """The name, and with ``hf`` every field of the config file; None where that file cannot be used."""
    token = head.tokens("STRING")[0]
    text = json.loads(token, strict=False)
    if not head.tokens("HF"):
        return {"name": text}
    span = token_span(token, context.file)
    try:
        fields, notes = load_hf_config(text, base or Path.cwd(), span)
    except DiagnosticError as error:
        context.diagnostics += error.diagnostics
        return None
    for note in notes:
        context.assume(f"model.{note.name}", note.value, note.why)
    for name, value in fields.items():
        context.sources[f"model.{name}"] = span
        for inner in value if isinstance(value, dict) else ():
            context.sources[f"model.{name}.{inner}"] = span
    return fields


def _layers(block: Block, fields: dict[str, Any]) -> None:
    statement = block.get("layers")
    if statement is None:
        return
    layers = dict(fields.get("layers", {}))
    count = block.integer(statement)
    block.place("layers", statement)
    if count is not None:
        layers["count"] = count
    inner = Block(block.context, statement, "model.layers", "layers")
    inner.read_counts(layers, "dense", "window")
    if (at := inner.get("dense_at")) is not None:
        inner.place("dense_at", at)
        layers["dense_at"] = tuple(sorted({n for t in at.tokens("NUMBER") if (n := inner.whole(at, t)) is not None}))
    if (pattern := inner.get("pattern")) is not None:
        inner.place("pattern", pattern)
        layers["pattern"] = tuple(str(t) for t in pattern.tokens("SLIDING", "FULL"))
    fields["layers"] = layers


def _attention(block: Block, fields: dict[str, Any]) -> None:
    statement = block.get("attention")
    if statement is None:
        return
    context = block.context
    kind = block.choice(statement)
    inherited = fields.get("attention", {})
    data: dict[str, Any] = dict(inherited) if inherited.get("kind") == kind else {}
    inner = Block(context, statement, "model.attention", "attention")
    inner.read_counts(data, "heads", "kv_heads", "head_dim", "window", *_MLA_KEYS)
    inner.read_flags(data, "sinks")
    for key, names in (("qk_norm", _QK_NORM), ("bias", _BIAS)):
        if (given := inner.get(key)) is not None:
            inner.place(key, given)
            if (word := inner.choice(given, tuple(names))) is not None:
                data[key] = names[word]
    inner.read_choices(data, "dtype")
    fields["attention"] = data
    if kind is None:
        data.pop("kind", None)
        return
    data["kind"] = kind
    _refuse_other_kind(inner, kind)
    inner.require("heads", given=data)
    if kind == "mla":
        inner.require(*_MLA_REQUIRED, given=data)
        data["kv_heads"] = 1
        data["head_dim"] = data.get("nope_dim", 1) + data.get("rope_dim", 1)
        return
    if kind == "gqa":
        inner.require("kv_heads", given=data)
    data.setdefault("kv_heads", 1 if kind == "mqa" else data.get("heads", 1))
    if "head_dim" not in data:
        _derive_head_dim(inner, data, fields)


def _refuse_other_kind(inner: Block, kind: str) -> None:
    for key in ("kv_heads", "head_dim") if kind == "mla" else _MLA_KEYS:
        if (statement := inner.get(key)) is not None:
            why = "it follows from the latent dimensions" if kind == "mla" else "it belongs to `attention mla`"
            inner.context.report(
                "PD011", f"`{key}` has no place in `attention {kind}`: {why}", inner.span(statement), None, "remove it"
            )


def _derive_head_dim(inner: Block, data: dict[str, Any], fields: dict[str, Any]) -> None:
    hidden, heads = fields.get("hidden"), data.get("heads")
    if not hidden or not heads or hidden < 1 or heads < 1 or inner.context.damaged & {"hidden", "heads", "head_dim"}:
        data["head_dim"] = 1  # whatever is missing has its own error
        return
    if hidden % heads:
        inner.context.report(
            "PD013",
            f"`attention` has no `head_dim`, and hidden {hidden} is not a multiple of {heads} heads",
            inner.head,
            "`head_dim`",
            "write for example `head_dim 128`",
        )
    data["head_dim"] = max(1, hidden // heads)
    inner.context.assume("model.attention.head_dim", str(data["head_dim"]), f"hidden {hidden} over {heads} heads")


def _moe(block: Block, fields: dict[str, Any]) -> None:
    statement = block.get("moe")
    if statement is None:
        return
    data = dict(fields.get("moe") or {})
    inner = Block(block.context, statement, "model.moe", "moe")
    inner.read_counts(data, "experts", "top_k", "ffn", "shared", "groups", "top_groups")
    if (scale := inner.get("scale")) is not None:
        inner.place("scale", scale)
        value = inner.number(scale, scale.quantities()[0], FACTOR)
        if value is not None:
            data["scale"] = value
    inner.read_choices(data, "router", "dtype")
    inner.read_flags(data, "renormalize")
    if (bias := inner.get("bias")) is not None:
        inner.place("bias", bias)
        if (word := inner.choice(bias, ("true", "false"))) is not None:
            data["bias"] = word == "true"
    inner.require("experts", "top_k", "ffn", given=data)
    fields["moe"] = data


def _assume_defaults(context: Context, fields: dict[str, Any]) -> None:
    for key, why in (("dtype", "the usual format of weights"), ("kv_dtype", "the usual format of the KV cache")):
        if key not in fields and f"model.{key}" not in context.sources:
            context.assume(f"model.{key}", "bf16", f"the file names no {key}; {why}")
