"""Number formats of a Hugging Face config: ``torch_dtype`` (or ``dtype``) and ``quantization_config``."""

from __future__ import annotations

from typing import Any

from ._hf_fields import Fields

__all__ = ["formats"]

_TORCH = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
}
_METHODS = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4", "nvfp4": "nvfp4"}
_WIDTHS = {("int", 4): "int4", ("int", 8): "int8", ("float", 8): "fp8", ("float", 4): "nvfp4"}


def formats(c: Fields, model: dict[str, Any]) -> dict[str, Any]:
    """``dtype`` and, where parts stay unquantized, the formats of attention and experts."""
    base = _base_format(c)
    quantization = c.object("quantization_config")
    if quantization is None:
        return {"dtype": base}
    quantized = _quantized_format(quantization)
    skipped = _skipped(quantization)
    moe = model.get("moe")
    if moe is None or not any("self_attn" in name for name in skipped):
        return {"dtype": quantized}
    # Attention kept in the base format: name each part, so that an override of `dtype` moves neither.
    dense = model["layers"].get("dense") or model["layers"].get("dense_at")
    if dense or moe.get("shared"):
        c.assume(
            "moe.dtype", quantized, "the dense FFN is taken in the base format, shared experts like the routed ones"
        )
    return {
        "dtype": base,
        "attention": model["attention"] | {"dtype": base},
        "moe": moe | {"dtype": quantized},
    }


def _base_format(c: Fields) -> str:
    key = "dtype" if "dtype" in c else "torch_dtype"
    if key not in c:
        c.assume("dtype", "bf16", "the config names no `torch_dtype`")
    name = c.text(key, "bfloat16").removeprefix("torch.")
    if name not in _TORCH:
        raise c.bad(key, ", ".join(_TORCH))
    return _TORCH[name]


def _quantized_format(q: Fields) -> str:
    method = q.text("quant_method", "")
    if method in _METHODS:
        return _METHODS[method]
    if method in ("awq", "gptq"):
        found = _WIDTHS.get(("int", q.count("bits", 4)))
    elif method == "compressed-tensors":
        found = _compressed_format(q)
    elif method == "modelopt":
        found = {"FP8": "fp8", "NVFP4": "nvfp4"}.get(q.text("quant_algo", ""))
    else:
        raise q.bad("quant_method", "fp8, mxfp4, nvfp4, awq, gptq, compressed-tensors or modelopt")
    if found is None:
        raise q.unsupported("quant_method", f"this variant of `{method}`")
    return found


def _compressed_format(q: Fields) -> str | None:
    groups = q.object("config_groups")
    if groups is None:
        return None
    found: set[str | None] = set()
    for name in groups:
        group = groups.object(name)
        weights = group.object("weights") if group else None
        if weights is not None:
            found.add(_WIDTHS.get((weights.text("type", "int"), weights.count("num_bits"))))
    return found.pop() if len(found) == 1 else None


def _skipped(q: Fields) -> list[str]:
    names = []
    for key in ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules"):
        names += [str(name) for name in q.items(key, str)]
    return names
