"""One lowered graph for many strategies: meshes whose axis sizes are arrays.

The nodes of a lowered graph depend on how the rank groups of attention and of the experts nest, never on how large
they are. The running products of a stage, innermost first, are

    attention   kv group <= tp <= sp * tp <= R          (Ulysses: the KV group on sp times tp in between)
    experts     etp <= ep * etp <= R        (or edp <= edp * etp <= R, with edp innermost)

and a structure is one way to merge the two sequences into a chain. Its intervals are atomic axes; in a given
strategy some of them have size 1, and what reshards over them is nothing. So a few structures stand for all strategies
of a model, whatever their degrees. Two cases are apart, because there an axis of size 1 can move a collective of its
neighbours: experts with edp innermost, and expert TP beside shared experts or a stream cut over tp. Their structures
leave out every interval of size 1.

The kind of SP decides what attention looks like. A ring has nodes for every hop, but from the third on hops are alike:
rings of two, of three and of more ranks have graphs of their own, and in the last a hop stands for all in the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...passes.lowering import lower_at_once
from ..build import expert_half, graph_on
from ..ir.graph import Block, Graph, Node, Phase
from ..ir.mesh import Axis, Mesh
from ..ir.ops import GROUP
from ..ir.types import Dim, Extent, Number, TensorType
from ..spec import ModelSpec
from ..spec.stage_law import Degrees

Ints = NDArray[np.int64]

_ATTENTION_OWNER = {3: ("tp", "tp", "sp", "adp"), 4: ("tp", "tp", "sp", "sp", "adp")}
_EXPERT_OWNER = {False: ("etp", "ep", "edp"), True: ("edp", "etp", "ep")}


@dataclass(frozen=True, order=True)
class SpKind:
    """What attention does about tokens on other ranks.

    Attributes:
        name: allgather, ring, ulysses, or ``tp`` for the Megatron kind.
        hops: Hops of a ring in its graph.
        shared: Whether TP ranks share KV heads, so that Ulysses has none left to cut.
    """

    name: str = "allgather"
    hops: int = 0
    shared: bool = False


LONG_RING = 4
"""Hops in the graph of a ring of so many ranks or more: the first two, one for all in the middle, and the last."""

SP_KINDS = (
    SpKind(), SpKind("tp"), *(SpKind("ring", hops) for hops in range(2, LONG_RING + 1)),
    SpKind("ulysses"), SpKind("ulysses", shared=True),
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Structure:
    """How the cuts of a stage interleave.

    Attributes:
        labels: The chain of cuts, innermost first: ``a`` of attention (KV group, tp, perhaps the KV group on sp times
            tp, sp * tp), ``e`` of the experts, ``x`` of whoever else.
        absent: Intervals of the chain, innermost first, that have size 1 in every strategy and are no axes.
        replicas_inside: Whether edp is the experts' innermost axis.
        kind: The kind of SP.
    """

    labels: str = "aaa"
    absent: tuple[int, ...] = ()
    replicas_inside: bool = False
    kind: SpKind = SpKind()

    @cached_property
    def owners(self) -> tuple[tuple[str, str, bool], ...]:
        """Attention view, expert view and whether it cuts KV heads, of each atomic axis, innermost first."""
        found = []
        for index in range(len(self.labels) + 1):
            passed, seen = self.labels.count("a", 0, index), self.labels.count("e", 0, index)
            expert = _EXPERT_OWNER[self.replicas_inside][seen] if "e" in self.labels else "etp"
            if index not in self.absent:
                found.append((_ATTENTION_OWNER[self.labels.count("a")][passed], expert, passed == 1))
        return tuple(found)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the atomic axes, innermost first: the attention view's, numbered from its outermost."""
        owners = [attention for attention, _, _ in self.owners]
        return tuple(f"{owner}{owners[i + 1 :].count(owner)}" for i, owner in enumerate(owners))

    @property
    def kept(self) -> Ints:
        """Intervals of the chain that are axes."""
        return np.setdiff1d(np.arange(len(self.labels) + 1), self.absent)

    def views(self) -> dict[str, tuple[str, ...]]:
        """Named axes to atomic axes, outermost first."""
        views: dict[str, list[str]] = {v: [] for v in ("adp", "sp", "tp", "edp", "ep", "etp", "kv")}
        for name, (attention, expert, cuts_kv) in zip(reversed(self.names), reversed(self.owners), strict=True):
            views[attention].append(name)
            if "e" in self.labels or attention == "tp":
                views[expert].append(name)
            if cuts_kv:
                views["kv"].append(name)
        return {view: tuple(atoms) for view, atoms in views.items()}

    def mesh(self, sizes: Ints, strides: Ints) -> Mesh:
        """The mesh of many strategies.

        Args:
            sizes: [axes, strategies] of the atomic axes, innermost first.
            strides: Distances in ranks, alike.
        """
        axes = tuple(
            Axis(name, cast(int, size), cast(int, stride))
            for name, size, stride in zip(reversed(self.names), sizes[::-1], strides[::-1], strict=True)
        )
        return Mesh(axes, self.views())


@dataclass(frozen=True)
class AxisSize(Extent):
    """The size of an atomic axis, whatever the mesh: the number of groups in which tokens are routed."""

    axis: str = ""

    def value(self, extents: Mapping[str, Number], mesh: Mesh) -> Number:
        return mesh.size((self.axis,))


@dataclass(frozen=True)
class Core:
    """All blocks that know nothing of experts: ends, attention, dense FFN, boundary between stages.

    Attributes:
        alone: Graph of a pipeline of one stage.
        staged: Graph of one of several stages, with a boundary; that of one stage for a model of one layer.
    """

    alone: Graph
    staged: Graph

    def on(self, mesh: Mesh, crosses: NDArray[np.bool_]) -> Core:
        """The graphs on a mesh of arrays; ``crosses`` tells of a ring whether its messages leave their domain."""
        return Core(*(_ringed(g, mesh.size(mesh.view("sp")), crosses) for g in (self.alone, self.staged)))


def _ringed(graph: Graph, ranks: Number, crosses: NDArray[np.bool_]) -> Graph:
    """The graph with rings of so many ranks."""

    def ringed(node: Node) -> Node:
        return replace(node, attrs={**node.attrs, "ring": ranks}) if "ring" in node.attrs else node

    if not any("ring" in node.attrs for _, node in graph.nodes()):
        return graph
    return replace(graph.map_nodes(ringed), meta={**graph.meta, "ring_crosses": crosses})


CORE_LABELS = "xxaxxaxxaxxaxx"
"""Cuts of the core: attention's own, and between them (``x``) wherever the experts' two may fall."""


def core_structure(model: ModelSpec, kind: SpKind) -> Structure:
    """The structure of the blocks without experts; without a KV group on tp where there cannot be one."""
    alone = not groups_heads(model) or (kind.name == "ulysses" and not kind.shared)
    return Structure(CORE_LABELS, tuple(range(CORE_LABELS.index("a") + 1)) if alone else (), kind=kind)


def groups_heads(model: ModelSpec) -> bool:
    """Whether several query heads share a KV head, so that TP ranks may have to."""
    return model.attention.kind != "mla" and model.attention.kv_heads < model.attention.heads


@lru_cache(maxsize=64)
def core(model: ModelSpec, phase: Phase, prompt: int, kind: SpKind) -> Core:
    """Build and lower the blocks without experts, KV transfers included."""
    structure, usual = core_structure(model, kind), core_structure(model, SpKind())
    logical = _logical(structure, model, phase, prompt)
    logical = replace(logical, blocks=tuple(b for b in logical.blocks if b.name != MOE))
    count = model.layers.count
    split = (1, count - 1) if count > 1 else (1,)
    if kind.name in ("ring", "ulysses") and structure.names == usual.names:
        # Attention alone tells them from all-gather.
        known = core(model, phase, prompt, SpKind())
        own = tuple(b for b in logical.blocks if any(n.op == "attention" for n in b.nodes))
        changed = {b.name: _marked(b, kind) for b in lower_at_once(replace(logical, blocks=own), split).blocks}
        return Core(*(g.map_blocks(lambda b: changed.get(b.name, b)) for g in (known.alone, known.staged)))
    staged = lower_at_once(logical, split)
    if count == 1 or phase == "prefill":
        # Only in decode do the ends differ: the sampled ids return from the last stage to the first.
        blocks = tuple(b for b in staged.blocks if b.role != "boundary")
        return Core(replace(staged, blocks=blocks, stages=(count,)), staged)
    ends = tuple(b for b in logical.blocks if b.role in ("prologue", "epilogue"))
    alone = lower_at_once(replace(logical, blocks=ends), (count,))
    prologue, epilogue = alone.blocks
    return Core(replace(alone, blocks=(prologue, *staged.with_role("layer"), epilogue)), staged)


IN_THE_MIDDLE = "in_the_middle"
"""Attribute of nodes of the hop that stands for all but three of a long ring."""


def _marked(block: Block, kind: SpKind) -> Block:
    """The block with the hop of a long ring marked that repeats: the last but one."""
    if kind.hops < LONG_RING:
        return block
    hop = kind.hops - 2
    states = {v.name for n in block.nodes if n.op == "attention_partial" and n.attrs["hop"] == hop for v in n.outputs}

    def marked(node: Node) -> Node:
        shifted = node.op == "ring_shift" and sum(node.outputs[0].type.placement.shift) == hop
        if shifted or node.attrs.get("hop") == hop or (node.op == "attention_merge" and states & set(node.inputs[1:])):
            return replace(node, attrs={**node.attrs, IN_THE_MIDDLE: True})
        return node

    return block.map_nodes(marked)


def in_the_middle(node: Node, mesh: Mesh) -> Number:
    """How many nodes of its ring a node stands for."""
    return mesh.size(mesh.view("sp")) - (LONG_RING - 1) if IN_THE_MIDDLE in node.attrs else 1


MOE = "moe_ffn"
"""Name of the block with the experts."""


@lru_cache(maxsize=1024)
def experts(structure: Structure, model: ModelSpec, phase: Phase) -> Graph:
    """Build and lower the FFN of a layer with experts."""
    mesh, degrees = _sample_mesh(structure, model), Degrees(sp_on_tp=structure.kind.name == "tp")
    logical = expert_half(mesh, model, phase, degrees)
    return _free_groups(lower_at_once(logical, (model.layers.count,)))


def _logical(structure: Structure, model: ModelSpec, phase: Phase, prompt: int) -> Graph:
    mesh, kind = _sample_mesh(structure, model), structure.kind.name
    degrees = Degrees(sp_on_tp=kind == "tp")
    graph = graph_on(mesh, model, phase, degrees, prompt=prompt, transfer=True, halves=True)
    return replace(graph, meta={**graph.meta, "sp_kind": kind}) if kind in ("ring", "ulysses") else graph


def _sample_mesh(structure: Structure, model: ModelSpec) -> Mesh:
    """A mesh to lower on. Sizes matter to two rules only: which axes share out KV heads, and how long a ring is."""
    attention, kind = model.attention, structure.kind
    owners = [owner for owner, _, _ in structure.owners]
    sizes = [1] * len(owners)
    if groups_heads(model):
        # More ranks than heads along the outermost axis inside a KV group, so that they have to share.
        inside = sum(owner == "tp" and not cuts for owner, _, cuts in structure.owners)
        if kind.name == "ulysses" and not kind.shared:
            # The first half of the axes of sp.
            inside = owners.index("sp") + owners.count("sp") // 2
        sizes[:inside] = [*sizes[: inside - 1], attention.heads * attention.kv_heads + 1][:inside]
    if kind.name == "ring":
        sizes[owners.index("sp")] = kind.hops
    columns = np.array(sizes, dtype=np.int64)[:, None]
    mesh = structure.mesh(columns, np.ones_like(columns))
    axes = tuple(Axis(a.name, int(cast(Any, a.size)[0]), 1) for a in mesh.axes)
    return Mesh(axes, mesh.views)


def _free_groups(graph: Graph) -> Graph:
    """The graph with numbers of routing groups that follow the mesh."""

    def free(kind: TensorType) -> TensorType:
        dims = tuple(
            Dim(d.name, AxisSize("axis", axis=d.name.removeprefix(GROUP))) if d.name.startswith(GROUP) else d
            for d in kind.dims
        )
        return replace(kind, dims=dims)

    def node(n: Node) -> Node:
        if not any(name.startswith(GROUP) for v in n.outputs for name in v.type.names):
            return n
        return replace(n, outputs=tuple(replace(v, type=free(v.type)) for v in n.outputs))

    def block(b: Block) -> Block:
        args = tuple(replace(a, value=replace(a.value, type=free(a.value.type))) for a in b.args)
        return replace(b.map_nodes(node), args=args)

    return graph.map_blocks(block)
