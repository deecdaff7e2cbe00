"""Dimensions of a model that contradict one another."""

from __future__ import annotations

from collections.abc import Iterator

from ..compiler.diagnostics import Severity
from ..compiler.spec import Llama3Spec, ModelSpec
from ._context import Context

__all__ = ["check_model"]

Finding = tuple[str, str, str]
"""Field path, message, fix."""


def check_model(context: Context, model: ModelSpec) -> None:
    """Report every contradiction (PD101) at the field that is likeliest wrong."""
    for check in (_dense_layers, _windows, _heads, _rotary, _experts):
        for path, message, fix in check(model):
            context.report("PD101", message, context.find(path), None, fix)
    if model.ffn is not None and not any(not model.is_moe_layer(n) for n in range(model.layers.count)):
        context.report(
            "PD101",
            "`ffn` is not used: every layer is MoE",
            context.find("model.ffn"),
            None,
            "remove it, or say which layers are dense",
            Severity.WARNING,
        )


def _dense_layers(model: ModelSpec) -> Iterator[Finding]:
    layers = model.layers
    if layers.dense > layers.count:
        yield "model.layers.dense", f"{layers.dense} dense layers of {layers.count}", "lower `dense`"
    if outside := [n for n in layers.dense_at if not 0 <= n < layers.count]:
        yield (
            "model.layers.dense_at",
            f"`dense_at` names layer {outside[0]}, but layers are numbered 0 to {layers.count - 1}",
            "layers count from 0",
        )
    if model.moe is None and (layers.dense or layers.dense_at):
        yield (
            "model.layers",
            "dense layers are named, but the model has no `moe`: all its layers are dense",
            "add `moe`",
        )
    if model.ffn is None and any(not model.is_moe_layer(n) for n in range(layers.count)):
        which = "all layers are dense" if model.moe is None else "some layers are dense"
        yield "model", f"{which}, but the model has no `ffn`", "write the dense FFN width, for example `ffn 14336`"


def _windows(model: ModelSpec) -> Iterator[Finding]:
    layers = model.layers
    if "sliding" in layers.pattern and layers.window is None:
        yield (
            "model.layers.pattern",
            "sliding layers without a `window`",
            "write for example `window 128` beside `pattern`",
        )
    if layers.window is not None and "sliding" not in layers.pattern:
        fix = "write the pattern, or put `window` into `attention` if all layers slide"
        yield "model.layers.window", "`window` without a sliding layer in `pattern`", fix
    if len(layers.pattern) > layers.count:
        yield (
            "model.layers.pattern",
            f"pattern of {len(layers.pattern)} for {layers.count} layers",
            "shorten the pattern",
        )
    if layers.pattern and model.attention.window is not None:
        fix = "keep the one beside `pattern`"
        yield "model.attention.window", "`window` both in `attention` and, by `pattern`, in `layers`", fix


def _heads(model: ModelSpec) -> Iterator[Finding]:
    attention = model.attention
    heads, kv_heads = attention.heads, attention.kv_heads
    expected = {"mha": heads, "mqa": 1, "mla": 1}.get(attention.kind, kv_heads)
    if kv_heads != expected:
        fix = f"remove `kv_heads`, or write `attention gqa {{ heads {heads}  kv_heads {kv_heads} }}`"
        yield "model.attention.kv_heads", f"`{attention.kind}` with {kv_heads} KV heads for {heads} heads", fix
    elif heads % kv_heads:
        fix = "give a divisor of `heads`"
        yield "model.attention.kv_heads", f"{heads} heads cannot share {kv_heads} KV heads evenly", fix
    if attention.kind == "mla" and (attention.qk_norm != "none" or attention.bias != "none" or attention.sinks):
        yield "model.attention", "`qk_norm`, `bias` and `sinks` are not known for MLA", "remove them"


def _rotary(model: ModelSpec) -> Iterator[Finding]:
    dim, head_dim, scaling = model.rotary.dim, model.attention.head_dim, model.rotary.scaling
    if dim is not None and model.attention.kind == "mla":
        yield "model.rotary.dim", "`dim` in `rotary`, but `mla` turns its `rope_dim`", "remove it, or change `rope_dim`"
    elif dim is not None and dim > head_dim:
        yield "model.rotary.dim", f"{dim} of a head's {head_dim} features turn", f"give at most {head_dim}"
    elif (width := model.rotary_width) % 2:
        path = "rotary.dim" if dim else "attention.rope_dim" if model.attention.kind == "mla" else "attention.head_dim"
        yield f"model.{path}", f"rotary embedding turns pairs of features, and {width} is odd", "give an even number"
    if isinstance(scaling, Llama3Spec) and scaling.high_freq <= scaling.low_freq:
        fix = "give `high_freq` more than `low_freq`"
        message = f"`high_freq` {scaling.high_freq:g} does not lie above `low_freq` {scaling.low_freq:g}"
        yield "model.rotary.scaling.llama3.high_freq", message, fix


def _experts(model: ModelSpec) -> Iterator[Finding]:
    moe = model.moe
    if moe is None:
        return
    if moe.top_k > moe.experts:
        yield "model.moe.top_k", f"each token goes to {moe.top_k} of {moe.experts} experts", "lower `top_k`"
    if moe.experts % moe.groups:
        yield "model.moe.groups", f"{moe.experts} experts do not form {moe.groups} equal groups", "give a divisor"
    elif moe.top_groups > moe.groups:
        yield "model.moe.top_groups", f"a token may use {moe.top_groups} of {moe.groups} groups", "lower `top_groups`"
    elif moe.top_k <= moe.experts and moe.top_k > moe.top_groups * (moe.experts // moe.groups):
        inside = moe.top_groups * (moe.experts // moe.groups)
        fix = "raise `top_groups` or lower `top_k`"
        yield (
            "model.moe.top_groups",
            f"{moe.top_groups} groups hold {inside} experts, fewer than top_k {moe.top_k}",
            fix,
        )
