"""One lowered graph for many strategies: meshes whose axis sizes are arrays.

The nodes of a lowered graph depend on how the rank groups of attention and of the experts nest, never on how large
they are. The running products of a stage, innermost first, are

    attention   kv group <= tp <= sp * tp <= R
    experts     etp <= ep * etp <= R        (or edp <= edp * etp <= R, with edp innermost)

and a structure is one way to merge the two sequences into a chain. Its six intervals are atomic axes; in a given
strategy some of them have size 1, and what reshards over them is nothing. So a few structures stand for all strategies
of a model, whatever their degrees. Two cases are apart, because there an axis of size 1 can move a collective of its
neighbours: experts with edp innermost, and expert TP beside shared experts or a stream cut over tp. Their structures
leave out every interval of size 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...passes.lowering import lower_at_once
from ..build import graph_on
from ..ir.graph import Block, Graph, Node, Phase
from ..ir.mesh import Axis, Mesh
from ..ir.ops import GROUP
from ..ir.types import Dim, Extent, Number, TensorType
from ..spec import ModelSpec
from ..spec.stage_law import Degrees

Ints = NDArray[np.int64]

_ATTENTION_OWNER = ("tp", "tp", "sp", "adp")
_EXPERT_OWNER = {False: ("etp", "ep", "edp"), True: ("edp", "etp", "ep")}


@dataclass(frozen=True, order=True)
class Structure:
    """How the cuts of a stage interleave.

    Attributes:
        labels: The chain of cuts, innermost first: ``a`` of attention (KV group, tp, sp * tp), ``e`` of the experts,
            ``x`` of whoever else.
        absent: Intervals of the chain, innermost first, that have size 1 in every strategy and are no axes.
        replicas_inside: Whether edp is the experts' innermost axis.
        megatron: Whether the stream is cut over tp (``sp tp``).
    """

    labels: str = "aaa"
    absent: tuple[int, ...] = ()
    replicas_inside: bool = False
    megatron: bool = False

    @cached_property
    def owners(self) -> tuple[tuple[str, str, bool], ...]:
        """Attention view, expert view and whether it cuts KV heads, of each atomic axis, innermost first."""
        found = []
        for index in range(len(self.labels) + 1):
            passed, seen = self.labels.count("a", 0, index), self.labels.count("e", 0, index)
            expert = _EXPERT_OWNER[self.replicas_inside][seen] if "e" in self.labels else "etp"
            if index not in self.absent:
                found.append((_ATTENTION_OWNER[passed], expert, passed == 1))
        return tuple(found)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the atomic axes, innermost first: the attention view's, numbered from its outermost."""
        owners = [attention for attention, _, _ in self.owners]
        return tuple(f"{owner}{owners[i + 1 :].count(owner)}" for i, owner in enumerate(owners))

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


CORE_LABELS = "xxaxxaxxaxx"
"""Cuts of the core: attention's own, and between them (``x``) wherever the experts' two may fall."""


@lru_cache(maxsize=64)
def core(model: ModelSpec, phase: Phase, prompt: int, *, megatron: bool) -> Core:
    """Build and lower the blocks without experts, KV transfers included."""
    logical = _logical(Structure(CORE_LABELS, megatron=megatron), model, phase, prompt)
    logical = replace(logical, blocks=tuple(b for b in logical.blocks if b.name != MOE))
    count = model.layers.count
    staged = lower_at_once(logical, (1, count - 1) if count > 1 else (1,))
    if count == 1 or phase == "prefill":
        # Only in decode do the ends differ: the sampled ids return from the last stage to the first.
        blocks = tuple(b for b in staged.blocks if b.role != "boundary")
        return Core(replace(staged, blocks=blocks, stages=(count,)), staged)
    ends = tuple(b for b in logical.blocks if b.role in ("prologue", "epilogue"))
    alone = lower_at_once(replace(logical, blocks=ends), (count,))
    prologue, epilogue = alone.blocks
    return Core(replace(alone, blocks=(prologue, *staged.with_role("layer"), epilogue)), staged)


MOE = "moe_ffn"
"""Name of the block with the experts."""


@lru_cache(maxsize=1024)
def experts(structure: Structure, model: ModelSpec, phase: Phase) -> Graph:
    """Build and lower the FFN of a layer with experts."""
    logical = _logical(structure, model, phase, 1)
    logical = replace(logical, blocks=tuple(b for b in logical.blocks if b.name == MOE))
    return _free_groups(lower_at_once(logical, (model.layers.count,)))


def _logical(structure: Structure, model: ModelSpec, phase: Phase, prompt: int) -> Graph:
    mesh, degrees = _sample_mesh(structure, model), Degrees(sp_on_tp=structure.megatron)
    return graph_on(mesh, model, phase, degrees, prompt=prompt, transfer=True, halves=True)


def _sample_mesh(structure: Structure, model: ModelSpec) -> Mesh:
    """A mesh to lower on. Sizes matter to one placement rule only: whether ranks along an axis share KV heads."""
    attention = model.attention
    grouped = attention.kind != "mla" and attention.kv_heads < attention.heads
    sizes = [1] * len(structure.owners)
    if grouped:
        # More ranks than heads along the outermost axis inside a KV group, so that they have to share.
        inside = sum(owner == "tp" and not cuts for owner, _, cuts in structure.owners)
        sizes[:inside] = [*[1] * (inside - 1), attention.heads * attention.kv_heads + 1][:inside]
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
        outputs = tuple(replace(v, type=free(v.type)) for v in n.outputs)
        return replace(n, outputs=outputs)

    def block(b: Block) -> Block:
        args = tuple(replace(a, value=replace(a.value, type=free(a.value.type))) for a in b.args)
        return replace(b.map_nodes(node), args=args)

    return graph.map_blocks(block)
