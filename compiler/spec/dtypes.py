"""Number formats: what an element costs in memory and on which unit it is multiplied."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """A number format.

    ``bits`` includes the scales stored with the elements: OCP MX v1.0 (mxfp4: one 8-bit scale per 32 elements), NVFP4
    (one fp8 scale per 16), int4 with groups of 128 (one 16-bit scale each). A 128 x 128 block scale of fp8 weights
    adds 0.2 bit per thousand and is left out.
    """

    name: str
    bits: float
    quantized: bool = False
    block: int = 1
    """Elements along a dimension that share a scale: a shard must not cut a block."""

    @property
    def bytes(self) -> float:
        return self.bits / 8


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("fp32", 32),
        DType("fp16", 16),
        DType("bf16", 16),
        DType("fp8", 8, quantized=True, block=128),
        DType("int8", 8, quantized=True),
        DType("int4", 4 + 16 / 128, quantized=True, block=128),
        DType("nvfp4", 4 + 8 / 16, quantized=True, block=16),
        DType("mxfp4", 4 + 8 / 32, quantized=True, block=32),
    )
}

ACTIVATION_DTYPE = "bf16"
"""Format of activations, embedding, LM head, norms and router where the model's own dtype is quantized."""

INDEX_DTYPES: dict[str, DType] = {d.name: d for d in (DType("int32", 32), DType("int64", 64))}
"""Formats of positions (int32) and token ids (int64); never a model's own format."""


def dtype(name: str) -> DType:
    """The format of that name.

    Raises:
        KeyError: no such format.
    """
    return DTYPES.get(name) or INDEX_DTYPES[name]
