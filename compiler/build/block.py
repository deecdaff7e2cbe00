"""A small builder for blocks of logical nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.graph import Arg, Block, Node, Param, Value, fresh_name
from ..ir.types import BATCH, CONTEXT, NEW, Size, TensorType, tensor
from ..spec import ACTIVATION_DTYPE, ModelSpec
from ..spec.model import NORM_EPSILON
from ..spec.rotary import ROTARY_THETA, YarnSpec

Shape = tuple[tuple[str, Size], ...]


def stream_type(hidden: int) -> TensorType:
    """The residual stream, replicated."""
    return tensor(ACTIVATION_DTYPE, ("batch", BATCH), ("seq", NEW), ("hidden", hidden))


class BlockBuilder:
    """Collects nodes and values of one block."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = "control"
        self.args: list[Arg] = []
        self.nodes: list[Node] = []
        self.values: dict[str, TensorType] = {}
        self.stream = ""

    def type(self, value: str) -> TensorType:
        return self.values[value]

    def take_stream(self, hidden: int) -> None:
        """Begin with the stream of the layer before."""
        self.args.append(Arg(Value("x", stream_type(hidden)), "layer"))
        self.values["x"] = stream_type(hidden)
        self.stream = "x"

    def emit(
        self,
        name: str,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[tuple[str, TensorType]],
        params: Sequence[Param] = (),
        *,
        attrs: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> list[str]:
        """Append a node; returns the names of its values (made unique)."""
        results = []
        for base, kind in outputs:
            value = Value(fresh_name(base, self.values), kind)
            self.values[value.name] = kind
            results.append(value)
        node = Node(
            fresh_name(name, [n.name for n in self.nodes]),
            op,
            tuple(inputs),
            tuple(results),
            tuple(params),
            dict(attrs or {}),
            self.module,
            **fields,
        )
        self.nodes.append(node)
        return [v.name for v in results]

    def norm(self, name: str, x: str, over: str, width: int, eps: float) -> str:
        """RMSNorm over (the first ``width`` features of) the last dimension ``over``."""
        weight = Param("weight", tensor(ACTIVATION_DTYPE, (over, width)))
        return self.emit(name, "norm", [x], [(name, self.type(x))], [weight], attrs=_epsilon(eps))[0]

    def norm_all_heads(self, name: str, x: str, heads: str, count: int, head_dim: int, eps: float) -> str:
        """RMSNorm over all heads at once: a sum of squares, then the scaling."""
        kind = self.type(x)
        squares = tensor("fp32", *((d.name, d.size) for d in kind.dims[:2]))
        total = self.emit(f"{name}_squares", "square_sum", [x], [(f"{name}_squares", squares)])[0]
        weight = Param("weight", tensor(ACTIVATION_DTYPE, (heads, count), ("head_dim", head_dim)))
        attrs = {"width": count * head_dim, **_epsilon(eps)}
        return self.emit(name, "scale_by_root", [x, total], [(name, kind)], [weight], attrs=attrs)[0]

    def linear(
        self,
        name: str,
        x: str,
        weights: Sequence[tuple[str, Shape]],
        outputs: Sequence[str],
        dtype: str,
        *,
        bias: bool = False,
    ) -> list[str]:
        """Projections of ``x``; each weight's dimensions that ``x`` has are summed, the others stay."""
        given = self.type(x)
        params: list[Param] = []
        results: list[tuple[str, TensorType]] = []
        biases: list[str] = []
        for (weight, shape), output in zip(weights, outputs, strict=True):
            params.append(Param(weight, tensor(dtype, *shape)))
            summed = {d for d, _ in shape} & set(given.names)
            kept = [(d.name, d.size) for d in given.dims if d.name not in summed]
            added = [(d, s) for d, s in shape if d not in summed]
            results.append((output, tensor(ACTIVATION_DTYPE, *kept, *added)))
            if bias:
                params.append(Param(f"{weight}_bias", tensor(ACTIVATION_DTYPE, *added)))
                biases.append(f"{weight}_bias")
        attrs: dict[str, Any] = {"biases": tuple(biases)} if biases else {}
        return self.emit(name, "linear", [x], results, params, attrs=attrs)

    def add(self, name: str, a: str, b: str) -> str:
        return self.emit(name, "add", [a, b], [(name, self.type(a))])[0]

    def bias(self, name: str, x: str, width: int) -> str:
        param = Param("bias", tensor(ACTIVATION_DTYPE, ("hidden", width)))
        return self.emit(name, "bias_add", [x], [(name, self.type(x))], [param])[0]

    def rotary(self, values: Sequence[str], model: ModelSpec) -> list[str]:
        """Rotary embedding of several values; constants carry the positions."""
        positions = Param("positions", tensor("int32", ("seq", NEW)), const=True)
        outputs = [(f"{v}_rot", self.type(v)) for v in values]
        return self.emit("rotary", "rotary", list(values), outputs, [positions], attrs=_rotary(model))

    def attention(
        self,
        q: str,
        kv: str,
        *,
        heads: int,
        v_dim: int,
        scale: float,
        window: int | None,
        latent: bool = False,
        extra: Sequence[Param] = (),
        width_name: str = "v_dim",
    ) -> str:
        """Attention of ``q`` over the cache value ``kv``; gives [batch, seq, heads, v_dim]."""
        context = next((d.size for d in self.type(kv).dims if d.name == "context"), CONTEXT)
        params = [
            Param("positions", tensor("int32", ("seq", NEW)), const=True),
            Param("key_positions", tensor("int32", ("context", context)), const=True),
            *extra,
        ]
        result = tensor(ACTIVATION_DTYPE, ("batch", BATCH), ("seq", NEW), ("heads", heads), (width_name, v_dim))
        attrs: dict[str, Any] = {"scale": scale, "v_dim": v_dim}
        if window:
            attrs["window"] = window
        if latent:
            attrs["latent"] = True
        return self.emit("attention", "attention", [q, kv], [("attn", result)], params, attrs=attrs)[0]

    def block(self, role: Any, layers: Sequence[int] = (), result: str = "") -> Block:
        return Block(self.name, role, tuple(layers), tuple(self.args), tuple(self.nodes), result)


def _epsilon(eps: float) -> dict[str, Any]:
    return {} if eps == NORM_EPSILON else {"eps": eps}


def _rotary(model: ModelSpec) -> dict[str, Any]:
    """Attributes of a rotary node: the width, and what differs from the defaults."""
    rotary, scaling = model.rotary, model.rotary.scaling
    attrs: dict[str, Any] = {"rotary": model.rotary_width}
    if model.attention.kind != "mla" and model.rotary_width != model.attention.head_dim:
        attrs["leading"] = True
    if rotary.theta != ROTARY_THETA:
        attrs["theta"] = rotary.theta
    if rotary.style != "half":
        attrs["style"] = rotary.style
    if scaling is None:
        return attrs
    mscale = {"mscale", "mscale_all_dim", "attention_factor"}
    attrs |= {"scaling": scaling.kind, **scaling.model_dump(exclude_defaults=True, exclude={"kind", *mscale})}
    if isinstance(scaling, YarnSpec) and scaling.amplitude != 1.0:
        attrs["amplitude"] = scaling.amplitude
    return attrs
