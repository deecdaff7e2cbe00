"""Seconds and bytes of the blocks of a phase, for many layouts and micro-batches at once.

A row is one layout with one micro-batch (or chunk of one). Everything comes from the functions that `compile` calls,
on graphs whose mesh holds arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...passes.analysis.memory import buffer_bytes, cache_bytes, param_bytes, peak_activations, tied_away
from ...passes.analysis.schedule import stream_of
from ..cost import Hardware, node_terms
from ..ir.graph import Block, Graph, Phase
from ..ir.mesh import Mesh
from ..ir.types import Number, Rows
from ..ir.unrolled import STREAMS
from ..spec import ModelSpec
from .layouts import Layouts, by_structure, core_axes, sights
from .rows import Bytes, NodeFilter, Seconds, distinct_rows, everything, looks_at_context, sees_tokens_only
from .structure import MOE, SP_KINDS, Core, Structure, core, core_structure, experts, in_the_middle

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

ROWS_AT_ONCE = 1 << 16
"""Rows evaluated together: bounds the memory of temporaries to some tens of megabytes."""

ENDS = ("prologue", "epilogue")


@dataclass
class Evaluator:
    """Costs of one phase of one model on one hardware, for a table of layouts."""

    model: ModelSpec
    hardware: Hardware
    phase: Phase
    prompt: int
    layouts: Layouts
    parts: tuple[str, ...] = field(init=False)
    """Names of the parts of a layer."""
    counts: Ints = field(init=False)
    """[parts, layers]: 1 where the layer has the part."""
    _wanted: Ints | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._seen = core_axes(self.layouts, self.model, self.hardware.domain)
        self._cores: dict[int, Core] = {
            k: core(self.model, self.phase, self.prompt, SP_KINDS[k]) for k in sorted({0, *self._seen.kind.tolist()})
        }
        layers = [b for b in next(iter(self._cores.values())).staged.blocks if b.role == "layer"]
        names = [b.name for b in layers]
        members = [b.layers for b in layers]
        with_experts = tuple(i for i in range(self.model.layers.count) if self.model.is_moe_layer(i))
        if with_experts:
            names.append(MOE)
            members.append(with_experts)
        self._has_experts = bool(with_experts)
        self._sights = sights(self.layouts, self.model)
        self.parts = tuple(names)
        self.counts = np.zeros((len(names), self.model.layers.count), dtype=np.int64)
        for part, having in enumerate(members):
            self.counts[part, list(having)] = 1

    # --- seconds ----------------------------------------------------------------------------------------------------

    def by_tokens(self, layout: Ints, batch: Ints, new: Ints, first: Ints, last: Ints) -> Seconds:
        """Seconds of every block per row, of the nodes that do not look at what came before.

        Args:
            layout: Number of the layout.
            batch: Sequences of the micro-batch over all attention-DP groups.
            new: New tokens per sequence.
            first: 1 where the row is the first chunk of its micro-batch, else 0.
            last: 1 where it is the last, else 0.
        """
        distinct, where = distinct_rows(*self._core_batch(layout, batch), new, first, last)
        found = self._core_parts(distinct).at(where)
        if self._has_experts:
            distinct, where = distinct_rows(*self._expert_tokens(layout, batch, new))
            found.parts[-1] = self._expert_seconds(distinct)[where]
        return found

    def by_context(self, layout: Ints, batch: Ints, new: Ints, past: Ints) -> Floats:
        """[parts, rows] seconds of the nodes that do, of ``past`` tokens per sequence; see :meth:`by_tokens`."""
        distinct, where = distinct_rows(*self._core_batch(layout, batch), new, past)
        return self._core_context(distinct)[:, where]

    def _core_context(self, rows: Sequence[Ints]) -> Floats:
        """[parts, rows] seconds of the nodes that look at the context; rows are core, batch of a group, new, past."""
        core, batch, new, past = rows
        out = np.zeros((len(self.parts), len(core)))
        for chunk in _chunks(len(core)):
            extents = {"batch": batch[chunk], "new": new[chunk], "context": past[chunk] + new[chunk]}
            for mine, graphs, mesh in self._core_rows(core[chunk]):
                here = np.arange(chunk.start, chunk.stop)[mine]
                picked = Rows(**{k: v[mine] for k, v in extents.items()})
                graph = _on(graphs.staged, mesh)
                for part, block in enumerate(graph.with_role("layer")):
                    out[part, here] = self._total(graph, block, picked, {}, looks_at_context)
        return out

    def _expert_seconds(self, rows: Sequence[Ints]) -> Floats:
        """Seconds of an FFN with experts; rows are layout as experts see it, batch, new."""
        layout, batch, new = rows
        out = np.zeros(len(layout))
        for chunk in _chunks(len(layout)):
            extents = {"batch": batch[chunk], "new": new[chunk], "context": new[chunk]}
            for mine, graph, mesh in self._expert_rows(layout[chunk]):
                placed = _on(graph, mesh)
                some = Rows(**{k: v[mine] for k, v in extents.items()})
                out[chunk.start + mine] = self._total(placed, placed.blocks[0], some, {}, everything)
        return out

    def _core_parts(self, rows: Sequence[Ints]) -> Seconds:
        """Seconds of what the new tokens decide alone, experts left out; rows are core, group's batch, new, masks."""
        core, batch, new, first, last = rows
        count = len(core)
        out = Seconds(
            np.zeros((len(self.parts), count)), np.zeros(count), np.zeros(count),
            np.zeros((2, count)), np.zeros((2, count)),
        )  # fmt: skip
        for chunk in _chunks(count):
            extents = {"batch": batch[chunk], "new": new[chunk], "context": new[chunk]}
            masks = {"first": first[chunk] > 0, "last": last[chunk] > 0, "early": last[chunk] == 0}
            for mine, graphs, mesh in self._core_rows(core[chunk]):
                here = np.arange(chunk.start, chunk.stop)[mine]
                some = Rows(**{k: v[mine] for k, v in extents.items()})
                self._core_seconds(graphs, mesh, some, {k: v[mine] for k, v in masks.items()}, here, out)
        return out

    def sending(self, layout: Ints, batch: Ints) -> Floats:
        """[parts, rows] seconds that a rank sends the cache of one layer and micro-batch to another pool."""
        (core, sizes), where = distinct_rows(*self._core_batch(layout, batch))
        out = np.zeros((len(self.parts), len(core)))
        for mine, graphs, mesh in self._core_rows(core):
            tokens = np.full(len(mine), self.prompt)
            extents = {"batch": sizes[mine], "new": tokens, "context": tokens}
            graph = _on(graphs.staged, mesh)
            for part, block in enumerate(graph.with_role("layer")):
                for node in block.nodes:
                    if node.op == "kv_send":
                        out[part, mine] = node_terms(graph, block, node, self.hardware, extents).time
        return out[:, where]

    def _core_seconds(
        self,
        graphs: Core,
        mesh: Mesh,
        extents: Mapping[str, Number],
        masks: Mapping[str, Bools],
        here: Ints,
        out: Seconds,
    ) -> None:
        inside, outside = (_on(graphs.staged, mesh, crosses=c) for c in (False, True))
        part = 0
        for block in inside.blocks:
            if block.role == "layer":
                out.parts[part, here] = self._total(inside, block, extents, masks, sees_tokens_only)
                part += 1
            elif block.role != "boundary":
                target = out.prologue if block.role == "prologue" else out.epilogue
                target[here] = self._total(inside, block, extents, masks, sees_tokens_only)
            message = out.send if block.role == "boundary" else out.back
            for node in block.nodes:
                if node.op == "send":
                    for crosses, graph in enumerate((inside, outside)):
                        message[crosses, here] = node_terms(graph, block, node, self.hardware, extents).time

    def _total(
        self,
        graph: Graph,
        block: Block,
        extents: Mapping[str, Number],
        masks: Mapping[str, Bools],
        nodes: NodeFilter,
    ) -> Number:
        """Seconds of the block's nodes that occupy the main stream at the only step there is."""
        total: Number = 0.0
        for node in block.nodes:
            if STREAMS[stream_of(node)] == "main" and node.steps not in ("later", "early") and nodes(block, node):
                time = node_terms(graph, block, node, self.hardware, extents).time
                time = time * in_the_middle(node, graph.mesh)
                total = total + (time if node.items == "all" else np.where(masks[node.items], time, 0.0))
        return total

    # --- bytes ------------------------------------------------------------------------------------------------------

    def weights(self) -> tuple[Floats, Floats]:
        """Weight bytes per layout: of the parts [parts, layouts], and of (prologue, epilogue) [2, 2 (stages), layouts].

        The second axis of the ends is (one stage, several stages).
        """
        count = len(self._seen.kind)
        parts, ends = np.zeros((len(self.parts), count)), np.zeros((2, 2, count))
        every = np.arange(count)
        for mine, graphs, mesh in self._core_rows(every):
            part = 0
            for block in graphs.staged.blocks:
                if block.role == "layer":
                    parts[part, mine] = _weights(_on(graphs.staged, mesh), block, 2)
                    part += 1
            for stages, graph in enumerate((graphs.alone, graphs.staged)):
                for block in graph.blocks:
                    if block.role in ENDS:
                        ends[ENDS.index(block.role), stages, mine] = _weights(_on(graph, mesh), block, stages + 1)
        parts, ends = parts[:, self._seen.of], ends[:, :, self._seen.of]
        if self._has_experts:
            parts[-1] = self._expert_weights()
        return parts, ends

    def _expert_weights(self) -> Floats:
        """[layouts] weight bytes of an FFN with experts, which how the cuts interleave has no part in."""
        one = np.ones_like(self.layouts.ranks)
        total: Number = 0.0
        for labels, inner, outer in (
            ("eeaaa", self.layouts.etp, self.layouts.ep),
            ("aaaee", self.layouts.tp, one),
        ):
            structure = Structure(labels)
            sizes = np.stack([inner, outer, *[one] * (len(labels) - 1)])
            graph = _on(experts(structure, self.model, self.phase), structure.mesh(sizes, sizes))
            for node in graph.blocks[0].nodes:
                if node.params and (node.op == "expert") == (labels == "eeaaa"):
                    total = total + param_bytes(graph, node)
        return np.broadcast_to(np.asarray(total, dtype=np.float64), one.shape)

    def cache(self, layout: Ints, batch: Ints, context: int) -> Floats:
        """[parts, rows] bytes of one layer's cache of a micro-batch of ``batch`` sequences."""
        (core, sizes), where = distinct_rows(*self._core_batch(layout, batch))
        out = np.zeros((len(self.parts), len(core)))
        for mine, graphs, mesh in self._core_rows(core):
            graph = _on(graphs.staged, mesh)
            part = 0
            for block in graph.blocks:
                if block.role == "layer":
                    if any(n.op == "kv_write" for n in block.nodes):
                        out[part, mine] = cache_bytes(graph, block, sizes[mine], context)
                    part += 1
        return out[:, where]

    def working(self, layout: Ints, batch: Ints, new: Ints, context: Ints) -> Bytes:
        """Activations and buffers per row.

        Args:
            layout: [rows] number of the layout.
            batch: [items, rows] sequences of a micro-batch; items that differ in size.
            new: [items, rows] most new tokens per sequence of the item.
            context: [items, rows] tokens per sequence in the end.
        """
        out = self._core_working(layout, batch, new, context)
        if self._has_experts:
            seen, sizes, tokens = self._expert_tokens(layout, batch, new)
            (seen, *rest), where = distinct_rows(seen, *sizes, *tokens)
            sizes, new = np.split(np.stack(rest), 2)
            both = np.zeros((2, len(seen)))
            for chunk in _chunks(len(seen)):
                for mine, graph, mesh in self._expert_rows(seen[chunk]):
                    here, placed = chunk.start + mine, _on(graph, mesh)
                    some = Rows(batch=sizes[:, here], new=new[:, here], context=new[:, here])
                    both[0, here] = peak_activations(placed, placed.blocks[0], some)
                    both[1, here] = _buffers(placed, placed.blocks[0], some)
            out.activations[-1], out.buffers[-1] = both[:, where]
        return out

    def _core_working(self, layout: Ints, batch: Ints, new: Ints, context: Ints) -> Bytes:
        """Bytes of the blocks without experts; see :meth:`working`."""
        core, sizes = self._core_batch(layout, batch)
        items = len(batch)
        (core, *rest), where = distinct_rows(core, *sizes, *new, *context)
        names = ("batch", "new", "context")
        columns = {name: np.stack(rest[n * items : (n + 1) * items]) for n, name in enumerate(names)}
        parts, rows = len(self.parts), len(core)
        out = Bytes(
            np.zeros((parts, rows)), np.zeros((parts, rows)), np.zeros((parts, rows)),
            np.zeros((2, 2, 2, rows)), np.zeros((2, rows)),
        )  # fmt: skip
        for chunk in _chunks(rows):
            for mine, graphs, mesh in self._core_rows(core[chunk]):
                here = np.arange(chunk.start, chunk.stop)[mine]
                self._core_bytes(graphs, mesh, Rows(**{k: v[:, here] for k, v in columns.items()}), here, out)
        return Bytes(*(getattr(out, f.name)[..., where] for f in fields(Bytes)))

    def _core_bytes(self, graphs: Core, mesh: Mesh, extents: Mapping[str, Number], here: Ints, out: Bytes) -> None:
        staged, alone = _on(graphs.staged, mesh), _on(graphs.alone, mesh)
        part = 0
        for block in staged.blocks:
            if block.role == "boundary":
                out.boundary[0, here] = peak_activations(staged, block, extents)
                out.boundary[1, here] = _buffers(staged, block, extents)
            elif block.role == "layer":
                out.activations[part, here] = peak_activations(staged, block, extents)
                out.buffers[part, here] = _buffers(staged, block, extents)
                for node in block.nodes:
                    if node.op == "kv_send":
                        out.transfer[part, here] = buffer_bytes(staged, block, node, extents)
                part += 1
        for stages, graph in enumerate((alone, staged)):
            for block in graph.blocks:
                if block.role in ENDS:
                    end = ENDS.index(block.role)
                    out.ends[end, 0, stages, here] = peak_activations(graph, block, extents)
                    out.ends[end, 1, stages, here] = _buffers(graph, block, extents)

    # --- structures of the experts ----------------------------------------------------------------------------------

    def keep(self, layouts: Ints) -> None:
        """Tell which layouts rows will be asked for, so that the structures of the others need not be built."""
        self._wanted = layouts

    @cached_property
    def _placed(self) -> tuple[list[tuple[Structure, Graph, Ints, Ints]], Ints, Ints]:
        """Structures, and of each layout that experts tell apart its structure and its column there."""
        wanted = self._sights.of if self._wanted is None else self._sights.of[self._wanted]
        wanted = np.unique(wanted)
        made: list[tuple[Structure, Graph, Ints, Ints]] = []
        number_of, column = (np.full(len(self._sights.layouts), -1, dtype=np.int64) for _ in range(2))
        for number, placed in enumerate(by_structure(self._sights.layouts[wanted], self.model)):
            graph = experts(placed.structure, self.model, self.phase)
            made.append((placed.structure, graph, placed.sizes, placed.strides))
            number_of[wanted[placed.index]] = number
            column[wanted[placed.index]] = np.arange(len(placed.index))
        return made, number_of, column

    # --- rows -------------------------------------------------------------------------------------------------------

    def _core_batch(self, layout: Ints, batch: Ints) -> tuple[Ints, Ints]:
        """What blocks without experts see: the layout's core, and the sequences of its fullest group."""
        return self._seen.of[layout], -(-batch // self._seen.groups[layout])

    def _expert_tokens(self, layout: Ints, batch: Ints, new: Ints) -> tuple[Ints, Ints, Ints]:
        """What experts see: the layout, the sequences of its part of the stage, new tokens of each.

        They see tokens only, so that sequences which divide evenly are as good as one that is so much longer.
        """
        seen = self._sights.of[layout]
        share, groups = -(-batch // self._sights.apart[layout]), self._sights.groups[seen]
        share = -(-share // groups) * groups
        some = self._sights.layouts[seen]
        times, rest = np.divmod(share, some.adp)
        even = (rest == 0) & (new % (some.sp * some.tp) == 0)
        return seen, np.where(even, some.adp, share), np.where(even, times * new, new)

    def _core_rows(self, core: Ints) -> Iterator[tuple[Ints, Core, Mesh]]:
        """Rows by kind of core: their places, its graphs, the mesh of their layouts."""
        sizes, strides = self._seen.sizes, self._seen.strides
        kinds = self._seen.kind[core]
        for kind, graphs in self._cores.items():
            mine = np.flatnonzero(kinds == kind)
            if len(mine):
                chosen, structure = core[mine], core_structure(self.model, SP_KINDS[kind])
                axes = np.ix_(structure.kept, chosen)
                mesh = structure.mesh(sizes[axes], strides[axes])
                yield mine, graphs.on(mesh, self._seen.crosses[chosen]), mesh

    def _expert_rows(self, layout: Ints) -> Iterator[tuple[Ints, Graph, Mesh]]:
        """Rows by structure of the experts: their places, the graph, the mesh of their layouts."""
        structures, number_of, columns = self._placed
        kind = number_of[layout]
        order = np.argsort(kind, kind="stable")
        bounds = np.searchsorted(kind[order], np.arange(len(structures) + 1))
        for number, (structure, graph, sizes, strides) in enumerate(structures):
            mine = order[bounds[number] : bounds[number + 1]]
            if len(mine):
                column = columns[layout[mine]]
                yield mine, graph, structure.mesh(sizes[:, column], strides[:, column])


def _chunks(rows: int) -> Iterator[slice]:
    for low in range(0, rows, ROWS_AT_ONCE):
        yield slice(low, min(rows, low + ROWS_AT_ONCE))


def _on(graph: Graph, mesh: Mesh, *, crosses: bool = True) -> Graph:
    return replace(graph, mesh=mesh, meta={**graph.meta, "crosses": crosses})


def _weights(graph: Graph, block: Block, stages: int) -> Number:
    return sum((param_bytes(graph, n) for n in block.nodes if n.params and not tied_away(n, stages)), 0.0)


def _buffers(graph: Graph, block: Block, extents: Mapping[str, Number]) -> Number:
    largest: Number = 0.0
    for node in block.nodes:
        if node.op != "kv_send":
            largest = np.maximum(largest, buffer_bytes(graph, block, node, extents))
    return largest
