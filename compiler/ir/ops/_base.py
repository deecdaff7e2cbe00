"""What an operator declares, once: kind, placement rule, FLOPs and bytes, numpy meaning, drawing, decomposition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar

from numpy.typing import NDArray

from ..graph import Node
from ..mesh import Mesh
from ..types import Number, Placement, TensorType

Array = NDArray[Any]
"""What kernels compute on."""


class Kind(StrEnum):
    """What a node does to the machine."""

    COMPUTE = "compute"
    COLLECTIVE = "collective"
    P2P = "p2p"
    STATE = "state"
    CONTROL = "control"


class CostClass(StrEnum):
    """Which efficiency applies to the operator."""

    GEMM = "gemm"
    ATTENTION = "attention"
    GROUPED_GEMM = "grouped_gemm"
    MEMORY = "memory"
    NETWORK = "network"
    FREE = "free"


@dataclass(frozen=True)
class Inference:
    """What a placement rule says of a node, given the types of its operands.

    Attributes:
        wants: Placement that each operand must have.
        params: Types that the parameters must have. A weight placed otherwise contradicts an operand or another weight.
        results: Types of the results under ``wants``.
    """

    wants: tuple[Placement, ...]
    params: tuple[TensorType, ...]
    results: tuple[TensorType, ...]


def passed_on(node: Node, inputs: Sequence[TensorType], inferred: Inference) -> Inference:
    """What a rule says, for a node that works on the block of the context that arrives at hop ``hop`` of a ring."""
    hop = node.attrs.get("hop", 0)

    def move(names: Sequence[str], placement: Placement) -> Placement:
        shift = (hop if d == "context" and axes else 0 for d, axes in zip(names, placement.shards, strict=True))
        return replace(placement, shift=tuple(shift))

    wants = tuple(move(t.names, w) for t, w in zip(inputs, inferred.wants, strict=True))
    params = tuple(t.placed(move(t.names, t.placement)) for t in inferred.params)
    results = tuple(t.placed(move(t.names, t.placement)) for t in inferred.results)
    return Inference(wants, params, results)


class Work:
    """Local shapes of one node on the fullest rank, as numbers or as arrays over items, steps or strategies."""

    def __init__(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh, extents: Mapping[str, Number]) -> None:
        self.node = node
        self.attrs = node.attrs
        self.mesh = mesh
        self.extents = extents
        self.input_types = tuple(inputs)

    def input(self, index: int) -> dict[str, Number]:
        return self.input_types[index].local_dims(self.extents, self.mesh)

    def output(self, index: int) -> dict[str, Number]:
        return self.node.outputs[index].type.local_dims(self.extents, self.mesh)

    def param(self, name: str) -> dict[str, Number]:
        return self.node.param(name).type.local_dims(self.extents, self.mesh)

    def input_elements(self, index: int) -> Number:
        return self.input_types[index].local_elements(self.extents, self.mesh)

    def output_elements(self, index: int) -> Number:
        return self.node.outputs[index].type.local_elements(self.extents, self.mesh)

    def input_bytes(self) -> Number:
        """Bytes of all operands on one rank."""
        return sum(t.local_bytes(self.extents, self.mesh) for t in self.input_types)

    def output_bytes(self) -> Number:
        return sum(v.type.local_bytes(self.extents, self.mesh) for v in self.node.outputs)

    def param_bytes(self) -> Number:
        """Bytes of the weights on one rank (constants are not read from memory)."""
        return sum(p.type.local_bytes(self.extents, self.mesh) for p in self.node.params if not p.const)


class Shard:
    """What a numpy kernel knows of the rank it runs on: attributes and where its shards begin.

    ``starts`` maps (dimension name) to (first global index, global size) for every cut dimension.
    """

    def __init__(self, node: Node, starts: Mapping[str, tuple[int, int]] | None = None) -> None:
        self.node = node
        self.attrs = node.attrs
        self._starts = dict(starts or {})

    def start(self, dim: str) -> int:
        return self._starts.get(dim, (0, 0))[0]

    def is_cut(self, dim: str) -> bool:
        """Whether the rank holds a part of the dimension only."""
        return dim in self._starts

    def global_size(self, dim: str, local: int) -> int:
        return self._starts[dim][1] if dim in self._starts else local


class Operator:
    """Base of all operators. Subclasses override what differs from an element-wise operator over named dimensions."""

    name: ClassVar[str]
    """Name in the textual IR."""
    public: ClassVar[str]
    """Name in JSON and drawings, from the closed set of the design."""
    kind: ClassVar[Kind] = Kind.COMPUTE
    cost_class: ClassVar[CostClass] = CostClass.MEMORY
    shape: ClassVar[str] = "box"
    """Graphviz shape, by the reviewers' conventions."""
    linear_in: ClassVar[tuple[int, ...]] = ()
    """Operands in which the operator is linear, so that a Partial(sum) may pass through."""

    alias: ClassVar[Mapping[str, str]] = {}
    """Dimension names that are cut alike under another name."""

    # --- placements -------------------------------------------------------------------------------------------------

    def whole(self, node: Node) -> frozenset[str]:
        """Dimensions that may not be cut."""
        return frozenset()

    def contracted(self, node: Node, inputs: Sequence[TensorType]) -> frozenset[str]:
        """Dimensions that are summed away: cutting them makes the result Partial(sum)."""
        given = {self.alias.get(d, d) for t in inputs for d in t.names}
        given |= {d for p in node.params if not p.const for d in p.type.names}
        kept = {self.alias.get(d, d) for v in node.outputs for d in v.type.names}
        return frozenset(given - kept - self.whole(node))

    def infer(self, node: Node, inputs: Sequence[TensorType], mesh: Mesh) -> Inference:
        """The placement rule.

        One axis list per dimension name: from constraints first, then weights, then operands in order. Within one
        iteration space an axis serves one dimension only; whoever comes first keeps it.
        """
        axes = self.factor_axes(node, inputs)
        wants = tuple(self._want(i, t, axes) for i, t in enumerate(inputs))
        summed = [a for d in sorted(self.contracted(node, inputs)) for a in axes.get(d, ())]
        passed = {a: r for i in self.linear_in if i < len(wants) for a, r in wants[i].partial}
        partial = tuple(sorted({**passed, **dict.fromkeys(summed, "sum")}.items()))
        results = tuple(v.type.placed(Placement(self._shards(v.type, axes), partial)) for v in node.outputs)
        return Inference(wants, self._param_types(node, axes), results)

    def factor_axes(self, node: Node, inputs: Sequence[TensorType]) -> dict[str, tuple[str, ...]]:
        """Axes that cut each dimension name of the node."""
        axes: dict[str, tuple[str, ...]] = {}
        whole = self.whole(node)
        spaces = self.spaces(node, inputs)
        used: set[str] = set()
        for dim, wanted in _wishes(node, inputs):
            dim = self.alias.get(dim, dim)
            if dim in axes or dim in whole:
                continue
            if spaces:
                rivals = set().union(*(s for s in spaces if dim in s))
                used = {a for other in rivals for a in axes.get(other, ())}
            axes[dim] = tuple([a for a in wanted if a not in used])
            used.update(axes[dim])
        return axes

    def spaces(self, node: Node, inputs: Sequence[TensorType]) -> tuple[frozenset[str], ...]:
        """Iteration spaces of an operator that fuses independent ones, as sets of dimensions; empty means one space."""
        return ()

    def _want(self, index: int, have: TensorType, axes: Mapping[str, tuple[str, ...]]) -> Placement:
        shards = self._shards(have, axes)
        used = {a for s in shards for a in s}
        keeps = index in self.linear_in
        partial = tuple(p for p in have.placement.partial if keeps and p[1] == "sum" and p[0] not in used)
        return Placement(shards, partial)

    def _shards(self, t: TensorType, axes: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
        return tuple(axes.get(self.alias.get(d, d), ()) for d in t.names)

    def _param_types(self, node: Node, axes: Mapping[str, tuple[str, ...]]) -> tuple[TensorType, ...]:
        return tuple(p.type.placed(Placement(self._shards(p.type, axes))) for p in node.params)

    # --- cost -------------------------------------------------------------------------------------------------------

    def flops(self, work: Work) -> Number:
        """Floating-point operations of one rank."""
        return 0

    def depth(self, work: Work) -> Number:
        """Products only: how many terms one element of the result sums (k of [m, k] x [k, n])."""
        raise NotImplementedError(f"{self.name} is no matrix product")

    def hbm_bytes(self, work: Work) -> Number:
        """Bytes that one rank moves to and from its memory."""
        return work.input_bytes() + work.output_bytes() + work.param_bytes()

    # --- meaning ----------------------------------------------------------------------------------------------------

    def kernel(self, shard: Shard, inputs: Sequence[Array], params: Mapping[str, Array]) -> list[Array]:
        """What the operator computes, on whatever shard it is given."""
        raise NotImplementedError(f"{self.name} has no numpy meaning of its own")

    # --- structure --------------------------------------------------------------------------------------------------

    def decompose(self, node: Node) -> tuple[Node, ...]:
        """The unfused nodes that a fused node stands for; itself where it is not fused."""
        return (node,)


def _wishes(node: Node, inputs: Sequence[TensorType]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Dimension names and the axes that are to cut them: of constraints first, then of weights, then of operands."""
    yield from node.constraints.items()
    for p in node.params:
        if not p.const:
            yield from zip(p.type.names, p.type.placement.shards, strict=True)
    for t in inputs:
        yield from zip(t.names, t.placement.shards, strict=True)


OPERATORS: dict[str, Operator] = {}


def register(cls: type[Operator]) -> type[Operator]:
    """Class decorator: makes the operator known under its name.

    Raises:
        ValueError: the name is taken.
    """
    if cls.name in OPERATORS:
        raise ValueError(f"operator {cls.name!r} is declared twice")
    OPERATORS[cls.name] = cls()
    return cls


def operator(node: Node | str) -> Operator:
    """The operator of a node (or of that name).

    Raises:
        KeyError: no such operator.
    """
    return OPERATORS[node if isinstance(node, str) else node.op]
