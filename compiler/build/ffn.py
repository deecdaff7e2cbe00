"""The FFN of one layer as logical nodes: dense, or a mixture of experts."""

from __future__ import annotations

from ..ir.graph import Param
from ..ir.mesh import Mesh
from ..ir.ops import routed_type
from ..ir.types import BATCH, NEW, tensor
from ..spec import ACTIVATION_DTYPE, ModelSpec
from .block import BlockBuilder


def add_dense_ffn(b: BlockBuilder, model: ModelSpec) -> None:
    """Norm, gate and up, activation, down."""
    assert model.ffn is not None
    residual = b.stream
    b.module = "ffn"
    x = b.norm("ffn_norm", residual, "hidden", model.hidden, model.norm_eps)
    b.stream = b.add("ffn_residual", residual, _swiglu(b, model, x, model.ffn, "", model.dtype))


def _swiglu(b: BlockBuilder, model: ModelSpec, x: str, width: int, prefix: str, dtype: str) -> str:
    up_shape = (("hidden", model.hidden), ("ffn", width))
    weights = [("w_gate", up_shape), ("w_up", up_shape)]
    gate, up = b.linear(f"{prefix}gate_up", x, weights, [f"{prefix}gate", f"{prefix}up"], dtype)
    hidden = b.emit(f"{prefix}act", "activation", [gate, up], [(f"{prefix}act", b.type(gate))])[0]
    down = (("ffn", width), ("hidden", model.hidden))
    return b.linear(f"{prefix}down", hidden, [("w_down", down)], [f"{prefix}down"], dtype)[0]


def add_moe(b: BlockBuilder, model: ModelSpec, slots: int, mesh: Mesh) -> None:
    """Norm, router, route, experts, weighted sum, and the shared experts beside them."""
    moe = model.moe
    assert moe is not None
    residual = b.stream
    b.module = "moe"
    x = b.norm("moe_norm", residual, "hidden", model.hidden, model.norm_eps)
    choice = _router(b, model, x)
    adp = mesh.view("adp")
    rows = routed_type(b.type(x), slots, moe.top_k, adp, (), mesh)
    attrs = {"experts": moe.experts, "slots": slots, "top_k": moe.top_k}
    routed = b.emit("route", "route", [x, choice], [("rows", rows)], attrs=attrs)[0]
    result = b.emit(
        "experts", "expert", [routed], [("expert_rows", rows)], _expert_params(model, slots),
        attrs={"form": "clamped"} if moe.bias else {}, view="expert",
    )[0]  # fmt: skip
    out = b.emit("unroute", "unroute", [result, choice], [("routed", b.type(x))], attrs=attrs)[0]
    if moe.shared:
        shared = _swiglu(b, model, x, moe.shared * moe.ffn, "shared_", model.expert_dtype)
        out = b.add("moe_sum", out, shared)
    b.stream = b.add("moe_residual", residual, out)


def _router(b: BlockBuilder, model: ModelSpec, x: str) -> str:
    moe = model.moe
    assert moe is not None
    params = [Param("weight", tensor(ACTIVATION_DTYPE, ("hidden", model.hidden), ("experts", moe.experts)))]
    if moe.bias:
        params.append(Param("bias", tensor(ACTIVATION_DTYPE, ("experts", moe.experts))))
    if moe.router == "sigmoid":
        params.append(Param("correction", tensor("fp32", ("experts", moe.experts)), const=True))
    attrs = {
        "router": moe.router,
        "top_k": moe.top_k,
        "renormalize": moe.renormalize,
        "scale": moe.scale,
        "groups": moe.groups,
        "top_groups": moe.top_groups,
    }
    choice = tensor("fp32", ("batch", BATCH), ("seq", NEW), ("pair", 2), ("top_k", moe.top_k))
    return b.emit("router", "router", [x], [("choice", choice)], params, attrs=attrs)[0]


def _expert_params(model: ModelSpec, slots: int) -> list[Param]:
    moe = model.moe
    assert moe is not None
    up = (("slot", slots), ("hidden", model.hidden), ("expert_ffn", moe.ffn))
    down = (("slot", slots), ("expert_ffn", moe.ffn), ("hidden", model.hidden))
    params = [
        Param("gate", tensor(model.expert_dtype, *up)),
        Param("up", tensor(model.expert_dtype, *up)),
        Param("down", tensor(model.expert_dtype, *down)),
    ]
    if moe.bias:
        for name, width, size in (("gate", "expert_ffn", moe.ffn), ("up", "expert_ffn", moe.ffn),
                                  ("down", "hidden", model.hidden)):  # fmt: skip
            params.append(Param(f"{name}_bias", tensor(ACTIVATION_DTYPE, ("slot", slots), (width, size))))
    return params
