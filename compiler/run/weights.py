"""Weights of a model, and the shard of each that a rank loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from ..ir.graph import Node, Param
from ..ir.mesh import Mesh
from ..spec import ModelSpec
from .shards import ShardFault, local_slices

Key = tuple[int, str]
"""(layer, name of the weight); layer -1 for embedding, final norm and LM head."""


class Weights:
    """All weights of a model, whole, as a checkpoint on disk would hold them: nothing of how they are cut.

    Args:
        model: The model.
        tensors: The weights, under the names and in the layouts of the operators (:func:`shapes_of` lists them).
    """

    def __init__(self, model: ModelSpec, tensors: Mapping[Key, np.ndarray]) -> None:
        self.model = model
        self.tensors = tensors

    @property
    def dtype(self) -> np.dtype[Any]:
        """Format of the weights, in which a model is then computed."""
        return next(iter(self.tensors.values())).dtype

    def __getitem__(self, key: Key) -> np.ndarray:
        return self.tensors[key]

    def shard(self, node: Node, param: Param, layer: int, at: Mapping[str, int], mesh: Mesh) -> np.ndarray:
        """What the rank at ``at`` loads of a node's weight.

        Of a weight that is partial on an axis (an expert's down bias under expert TP) the first rank holds the value
        and the others zeros.

        Raises:
            ShardFault: the model has no such weight, or of another shape.
        """
        name = weight_name(node, param)
        key = (layer, name) if (layer, name) in self.tensors else (-1, name)
        if key not in self.tensors:
            raise ShardFault(f"the checkpoint has no {name!r} in layer {layer}, which {node.name} takes")
        whole = self.tensors[key]
        if "slot" in param.type.names:
            # slot s holds expert s, and past the last expert a further copy of each in turn
            slots = int(param.type.dims[param.type.index("slot")].size)  # type: ignore[arg-type]
            if slots != len(whole):
                whole = whole[np.arange(slots) % len(whole)]
        expected = tuple(int(d.value({}, mesh)) for d in param.type.dims)
        if whole.shape != expected:
            raise ShardFault(f"{name!r} of layer {layer} has shape {whole.shape}, {node.name} wants {expected}")
        mine = whole[local_slices(param.type, at, mesh, {})]
        return np.zeros_like(mine) if any(at[a] for a in param.type.placement.partial_axes) else mine


class Checkpoint(Weights):
    """Random weights.

    Projections are scaled by fan-in, so that activations keep their size through any number of layers; norms, biases
    and sinks are random too, since ones and zeros would hide that they are missing.

    Args:
        model: The model.
        seed: Seed of the random numbers.
    """

    def __init__(self, model: ModelSpec, seed: int) -> None:
        rng = np.random.default_rng(seed)
        tensors = {(layer, name): _draw(rng, kind, shape) for layer, name, kind, shape in _inventory(model)}
        if model.tied:
            tensors[-1, "lm_head"] = tensors[-1, "embedding"].T
        super().__init__(model, tensors)


def shapes_of(model: ModelSpec) -> dict[Key, tuple[int, ...]]:
    """Name and shape of every weight; a tied LM head is one of its own."""
    shapes = {(layer, name): shape for layer, name, _, shape in _inventory(model)}
    if model.tied:
        shapes[-1, "lm_head"] = (model.hidden, model.vocab)
    return shapes


def weight_name(node: Node, param: Param) -> str:
    """Name in the checkpoint of a node's weight."""
    if node.op == "embedding":
        return "embedding"
    if node.op == "lm_head":
        return "lm_head"
    if node.op == "router":
        return f"router.{param.name}"
    if node.op == "expert":
        return f"expert.{param.name}"
    if param.name in ("w_gate", "w_up", "w_down"):
        return f"{'shared' if node.name.startswith('shared_') else 'ffn'}.{param.name}"
    if param.name in ("weight", "bias"):
        return node.name
    return param.name


def _draw(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape)
    if kind == "norm":
        return 1 + 0.3 * values
    if kind in ("bias", "sink"):
        return 0.5 * values
    return np.asarray(values / np.sqrt(int(kind)))


def _inventory(model: ModelSpec) -> Iterator[tuple[int, str, str, tuple[int, ...]]]:
    """(layer, name, ``norm``, ``bias``, ``sink`` or the fan-in, shape) of every weight."""
    h = model.hidden
    yield -1, "embedding", "1" if not model.tied else str(h), (model.vocab, h)
    yield -1, "final_norm", "norm", (h,)
    if not model.tied:
        yield -1, "lm_head", str(h), (h, model.vocab)
    for layer in range(model.layers.count):
        yield layer, "attn_norm", "norm", (h,)
        for name, kind, shape in _attention(model):
            yield layer, name, kind, shape
        for name, kind, shape in _moe(model) if model.is_moe_layer(layer) else _dense(model):
            yield layer, name, kind, shape


def _attention(model: ModelSpec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    a, h = model.attention, model.hidden
    if a.kind == "mla":
        assert a.kv_lora and a.nope_dim and a.rope_dim and a.v_dim
        q_in, width = a.q_lora or h, a.nope_dim + a.rope_dim
        if a.q_lora:
            yield "wq_a", str(h), (h, a.q_lora)
            yield "q_a_norm", "norm", (a.q_lora,)
        yield "wq_b" if a.q_lora else "wq", str(q_in), (q_in, a.heads, width)
        yield "wkv_a", str(h), (h, a.kv_lora + a.rope_dim)
        yield "kv_a_norm", "norm", (a.kv_lora,)
        yield "uk", str(a.kv_lora), (a.heads, a.nope_dim, a.kv_lora)
        yield "uv", str(a.kv_lora), (a.heads, a.v_dim, a.kv_lora)
        yield "wo", str(a.heads * a.v_dim), (a.heads, a.v_dim, h)
    else:
        for name, heads in (("wq", a.heads), ("wk", a.kv_heads), ("wv", a.kv_heads)):
            yield name, str(h), (h, heads, a.head_dim)
            if a.bias != "none":
                yield f"{name}_bias", "bias", (heads, a.head_dim)
            if a.qk_norm != "none" and name != "wv":
                full = a.qk_norm == "full"
                yield f"{name[1]}_norm", "norm", (heads, a.head_dim) if full else (a.head_dim,)
        if a.sinks:
            yield "sinks", "sink", (a.heads,)
        yield "wo", str(a.heads * a.head_dim), (a.heads, a.head_dim, h)
    if a.bias == "all":
        yield "o_bias", "bias", (h,)


def _dense(model: ModelSpec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    assert model.ffn is not None
    yield "ffn_norm", "norm", (model.hidden,)
    yield from _swiglu("ffn.w_", model.hidden, model.ffn)


def _moe(model: ModelSpec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    moe, h = model.moe, model.hidden
    assert moe is not None
    yield "moe_norm", "norm", (h,)
    yield "router.weight", str(h), (h, moe.experts)
    if moe.bias:
        yield "router.bias", "bias", (moe.experts,)
    if moe.router == "sigmoid":
        yield "router.correction", "bias", (moe.experts,)
    yield from _swiglu("expert.", h, moe.ffn, moe.experts)
    if moe.bias:
        for name, width in (("gate", moe.ffn), ("up", moe.ffn), ("down", h)):
            yield f"expert.{name}_bias", "bias", (moe.experts, width)
    if moe.shared:
        yield from _swiglu("shared.w_", h, moe.shared * moe.ffn)


def _swiglu(prefix: str, hidden: int, width: int, *copies: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for name, shape in (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden))):
        yield f"{prefix}{name}", str(prod(shape[:1])), (*copies, *shape)
