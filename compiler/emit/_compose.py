"""From an analysed phase to what its drawing shows: boxes, clusters and links."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...passes.analysis import PhaseAnalysis, expanded_axes
from ...passes.analysis.flatten import shard_map
from ..ir.graph import Block, Node, fresh_name
from ._boxes import folded_box, later_steps_box, later_steps_name, layers_title, node_box
from ._facts import Key, PhaseFacts
from ._labels import gpus_text, groups_text, number_ranges, quantity
from ._plan import Alternation, Part, StagePlan, plan_stages
from ._scene import Box, Cluster, Link, Scene
from ._title import title_lines

EXPANSIONS = frozenset({"layers", "shards", "ranks"})


@dataclass(frozen=True)
class _Family:
    """The boxes of one node of the lowered graph (``key``), one per coordinate on ``axes``; no key where folded."""

    ids: tuple[str, ...]
    axes: tuple[str, ...] = ()
    key: Key | None = None


def plan_of(analysis: PhaseAnalysis, expand: frozenset[str]) -> tuple[StagePlan, ...]:
    """Stages and parts of the drawing."""
    return plan_stages(analysis.graph, unfold_layers="layers" in expand, fold_stages=not expand)


def count_boxes(analysis: PhaseAnalysis, expand: frozenset[str]) -> int:
    """Boxes that the drawing would have, without making any."""
    graph = analysis.graph
    facts = PhaseFacts(analysis)

    def width(nodes: Iterable[Node]) -> int:
        return sum(graph.mesh.size(shard_axes(n, analysis, expand)) for n in nodes)

    parts = [part for plan in plan_of(analysis, expand) for part in plan.flat_parts()]
    total = sum(1 if p.folded else width(n for n in p.nodes if facts.exists(n)) for p in parts)
    if graph.steps > 1:
        total += 1 + width(n for _, n in graph.nodes() if n.op == "decode_end" or facts.exists(n, later=True))
    return total


def shard_axes(node: Node, analysis: PhaseAnalysis, expand: frozenset[str]) -> tuple[str, ...]:
    """Mesh axes over which the boxes of a node are spread."""
    if not expand & {"shards", "ranks"}:
        return ()
    return expanded_axes(node, analysis.graph.mesh, "ranks" in expand)


def compose(analysis: PhaseAnalysis, expand: frozenset[str] = frozenset()) -> Scene:
    """The drawing of a phase: one step, one pipeline item, folded as ``expand`` says."""
    return _Composer(analysis, expand).scene()


class _Composer:
    def __init__(self, analysis: PhaseAnalysis, expand: frozenset[str]) -> None:
        self.analysis = analysis
        self.graph = analysis.graph
        self.mesh = analysis.graph.mesh
        self.facts = PhaseFacts(analysis)
        self.expand = expand
        self.ids: set[str] = set()
        self.links: dict[Link, None] = {}
        self.values: dict[str, dict[str, _Family]] = {}
        self.stream: _Family | None = None
        self.caches: list[_Family] = []
        self.column = 0
        self.columns: dict[str, int] = {}

    def scene(self) -> Scene:
        clusters = [self._stage(plan) for plan in plan_of(self.analysis, self.expand)]
        if self.graph.steps > 1:
            clusters.append(self._later_steps())
        return Scene(title_lines(self.analysis), tuple(clusters), tuple(self.links))

    # --- clusters ---------------------------------------------------------------------------------------------------

    def _stage(self, plan: StagePlan) -> Cluster:
        self.column += not self.expand
        cluster = Cluster(self._id("stage", number_ranges(plan.stages)), self._stage_title(plan), "stage")
        for part in plan.parts:
            if isinstance(part, Alternation):
                self._next_column(cluster)
                names = ", ".join(p.block.name.replace("_", " ") for p in part.parts)
                title = f"x {part.repeats} in turn: {names} (layers {number_ranges(part.layers)})"
                frame = Cluster(self._id("alternation"), f"{title} | {self._gpus(plan.stages)}", "layer")
                for inner in part.parts:
                    self._part(frame, inner)
                cluster.children.append(frame)
            else:
                self._part(cluster, part)
        return cluster

    def _stage_title(self, plan: StagePlan) -> str:
        words = []
        if len(self.graph.stages) > 1:
            many = len(plan.stages) > 1
            words.append(f"stage{'s' if many else ''} {number_ranges(plan.stages)} of {len(self.graph.stages)}")
            if many:
                words[-1] += f" in a row, {self.graph.stages[plan.stages[0]]} layers each"
        memory = max((self.analysis.memory.stages[s].total for s in plan.stages), default=0.0)
        words += [
            groups_text(self.facts.partition((), plan.stages)),
            f"layer{'s' if len(plan.layers) > 1 else ''} {number_ranges(plan.layers)}",
            f"{quantity(memory, 'B')} of {quantity(self.analysis.memory.capacity, 'B')} per GPU",
        ]
        return " | ".join(words)

    def _gpus(self, stages: Sequence[int]) -> str:
        return gpus_text([r for g in self.facts.partition((), stages) for r in g])

    def _part(self, parent: Cluster, part: Part) -> None:
        if part.folded:
            parent.children.append(self._folded(part))
            return
        if part.block.role != "boundary":
            self._next_column(parent)
        boxes = self._nodes(part)
        if part.block.role == "boundary":
            parent.children += boxes
            return
        frame = Cluster(self._id(part.block.name, *map(str, part.layers[:1])), self._part_title(part), "layer")
        frame.children += _by_gpus(boxes, frame.id) if self.expand & {"shards", "ranks"} else boxes
        parent.children.append(frame)

    def _next_column(self, parent: Cluster) -> None:
        """Frames of a folded drawing stand side by side, for a page rather than a strip of paper."""
        if parent.children and isinstance(parent.children[-1], Cluster):
            self.column += not self.expand

    def _part_title(self, part: Part) -> str:
        name = layers_title(part) if part.block.role == "layer" else part.block.name.replace("_", " ")
        return f"{name} | {self._gpus(part.stages)}"

    # --- boxes ------------------------------------------------------------------------------------------------------

    def _nodes(self, part: Part) -> list[Box]:
        block = part.block
        receives = block.role == "boundary" and part.nodes and part.nodes[0].op != "send"
        local = self.values[block.name] if receives else self._arguments(block)
        self.values[block.name] = local
        boxes: list[Box] = []
        for node in part.nodes:
            if not self.facts.exists(node):
                continue
            family, mine = self._family(part, node)
            boxes += mine
            for source in dict.fromkeys(local[name] for name in node.inputs if name in local):
                self._connect(source, family)
            local.update((v.name, family) for v in node.outputs)
            if node.op == "kv_write":
                self.caches.append(family)
        for name, arg in ((a.value.name, a) for a in block.args if a.carry == "version"):
            self._initial_version(block, local, name, arg.init)
        if block.result in local:
            self.stream = local[block.result]
        return boxes

    def _arguments(self, block: Block) -> dict[str, _Family]:
        if self.stream is None:
            return {}
        return {a.value.name: self.stream for a in block.args if a.carry == "layer"}

    def _initial_version(self, block: Block, local: Mapping[str, _Family], name: str, init: str) -> None:
        """The value that stands in for a version before the first one feeds its readers."""
        if init not in local:
            return
        for node in block.nodes:
            if name in node.inputs:
                readers = [f for f in local.values() if f.key == (block.name, node.name)]
                for reader in dict.fromkeys(readers):
                    self._connect(local[init], reader)

    def _family(self, part: Part, node: Node) -> tuple[_Family, list[Box]]:
        axes = shard_axes(node, self.analysis, self.expand)
        layer = (f"L{part.layers[0]}",) if "layers" in self.expand and part.layers else ()
        stage = (f"S{number_ranges(part.stages)}",) if part.block.role == "boundary" else ()
        groups = self.facts.partition(axes, part.stages) if axes else self.facts.device_groups(node, part.stages)
        boxes: list[Box] = []
        for shard in range(self.mesh.size(axes)):
            name = (part.block.name, node.name, *layer, *stage, *((f"s{shard}",) if axes else ()))
            mine = groups[shard :: self.mesh.size(axes)] if axes else groups
            boxes.append(node_box(self.facts, part, node, self._id(*name), mine))
        return _Family(tuple(b.id for b in boxes), axes, (part.block.name, node.name)), boxes

    def _folded(self, part: Part) -> Box:
        """One box for a block that is drawn elsewhere."""
        box = folded_box(self.facts, part, self._id(part.block.name, f"L{part.layers[0]}"))
        family = _Family((box.id,))
        if self.stream is not None:
            self._connect(self.stream, family)
        self.stream = family
        self.caches.append(family)
        return box

    def _later_steps(self) -> Cluster:
        """The decode steps after the first, as one box between the ids of the first step and the end of the last."""
        self.column += not self.expand
        stages = range(len(self.graph.stages))
        frame = Cluster(self._id("steps"), f"{later_steps_name(self.graph.steps)} | {self._gpus(stages)}", "stage")
        entry: list[_Family] = []
        for block in self.graph.with_role("prologue"):
            sources = [a.source for a in block.args if a.carry == "step"]
            given = [f for values in self.values.values() for name, f in values.items() if name in sources]
            part = Part(block, tuple(n for n in block.nodes if self.facts.exists(n, later=True)), (), (0,))
            entry += given
            for node in part.nodes:
                family, boxes = self._family(part, node)
                frame.children += boxes
                for source in entry:
                    self._connect(source, family, "sampled ids")
                entry = [family]
        box = later_steps_box(self.facts, self._id("later_steps"), self._gpus(stages))
        frame.children.append(box)
        for source in entry:
            self._connect(source, _Family((box.id,)), "sampled ids")
        for cache in self.caches:
            self._connect(cache, _Family((box.id,)), kind="state", loose=True)
        for block in self.graph.with_role("epilogue"):
            part = Part(block, tuple(n for n in block.nodes if n.op == "decode_end"), (), (len(self.graph.stages) - 1,))
            for node in part.nodes:
                family, boxes = self._family(part, node)
                frame.children += boxes
                self._connect(_Family((box.id,)), family)
        return frame

    # --- links ------------------------------------------------------------------------------------------------------

    def _connect(
        self, source: _Family, target: _Family, label: str = "", *, kind: str = "", loose: bool = False
    ) -> None:
        if not kind and source.key and target.key:
            kind = self.facts.edge_kinds.get((source.key, target.key), "")
        table = shard_map(source.axes, target.axes, self.mesh).tolist()
        for number, row in enumerate(table):
            for shard in row:
                ends = source.ids[shard], target.ids[number]
                across = self.columns.get(ends[0]) != self.columns.get(ends[1])
                self.links.setdefault(Link(*ends, kind or "data", label, loose or across))

    def _id(self, *words: str) -> str:
        """A readable identifier that no other box or cluster has; letters that DOT gives a meaning are replaced."""
        name = fresh_name(re.sub(r"[^A-Za-z0-9_]", "_", ".".join(words)).strip("_") or "node", self.ids)
        self.ids.add(name)
        self.columns[name] = self.column
        return name


def _by_gpus(boxes: Iterable[Box], prefix: str) -> list[Box | Cluster]:
    """Boxes framed by their GPUs; a group that lies within another is framed inside it."""
    ordered = list(boxes)
    groups = sorted({b.ranks for b in ordered if b.ranks}, key=lambda g: (-len(g), g))
    if len(groups) < 2:
        return list(ordered)
    frames: dict[tuple[int, ...], Cluster] = {}
    top: list[Box | Cluster] = []
    for group in groups:
        frame = Cluster(f"{prefix}_gpus_{len(frames)}", gpus_text(group), "group")
        around = [g for g in frames if set(group) < set(g)]
        (frames[min(around, key=len)].children if around else top).append(frame)
        frames[group] = frame
    for box in ordered:
        (frames[box.ranks].children if box.ranks in frames else top).append(box)
    only = top[0]
    return only.children if len(top) == 1 and isinstance(only, Cluster) else top
