"""Running a lowered graph: every call of the unrolled DAG, in its topological order, on virtual ranks.

Each rank has a store of its own. A compute node sees its own rank's operands; a collective sees the shards of its
group; a send puts a message into the store of one other rank, from which a receive takes it. Whatever a node takes must
come from a call on which the DAG says it depends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..ir.graph import Block, Graph, Node, Param
from ..ir.ops import Shard, operator
from ..ir.types import PAST, Number, TensorType
from ..ir.unrolled import Unrolled
from ..spec.dtypes import dtype
from .collectives import is_collective, run_collective, volume
from .dataflow import Dataflow
from .kernels import pad_rows, starts_of
from .positions import Positions, cache_axes
from .records import Inputs, Moved, PhaseRun, Sampled
from .shards import coordinates, held_by, local_slices
from .store import ExecutionFault, Ref, Store
from .weights import Weights

if TYPE_CHECKING:
    from .handover import Fetch

Fleet = dict[int, Store]
"""Stores of all ranks, by device number."""


@dataclass(frozen=True)
class _Frame:
    """What is the same for a template in all layers at one item and step: per rank, shard facts and result shapes."""

    extents: Mapping[str, Number]
    shards: list[Shard]
    shapes: list[list[tuple[int, ...]]]


class Executor:
    """Runs one graph.

    Args:
        unrolled: The calls of the graph.
        checkpoint: Weights; each rank loads its own shards before the first call, and computes in their format.
        fleet: Stores by device; missing ones are made.
        inputs: What enters from outside.
        only: (stage, rank) of the one rank that is played here, where the others run elsewhere.
    """

    def __init__(
        self,
        unrolled: Unrolled,
        checkpoint: Weights,
        fleet: Fleet,
        inputs: Inputs,
        *,
        only: tuple[int, int] | None = None,
    ) -> None:
        self.unrolled = unrolled
        self.graph: Graph = unrolled.graph
        self.mesh = self.graph.mesh
        self.fleet = fleet
        self.inputs = inputs
        self.checkpoint = checkpoint
        self.everyone = coordinates(self.mesh)
        self.places = self.everyone if only is None else [self.everyone[only[1]]]
        self.positions = Positions(self.graph)
        self.run_result = PhaseRun()
        self.outbox: dict[tuple[int, int, int], np.ndarray] = {}
        """KV caches that ``kv_send`` gave away, by (device, layer, item)."""
        self.fetches: Sequence[Fetch] = ()
        """What the caches before the first step are made of, for an engine whose ranks have a process each."""
        self._frames: dict[tuple[int, int, int], _Frame] = {}
        self.flow = Dataflow(unrolled)
        self.stores = [
            [fleet.setdefault(d, Store(d)) for d in (self.device(stage, r) for r in range(len(self.places)))]
            if only is None or stage == only[0]
            else []
            for stage in range(len(self.graph.stages))
        ]
        self._load_weights()

    # --- ranks --------------------------------------------------------------------------------------------------------

    def device(self, stage: int, rank: int) -> int:
        """Device number of a rank of a stage."""
        return self._device_at(stage, self.places[rank])

    def _device_at(self, stage: int, at: Mapping[str, int]) -> int:
        return self.mesh.first_rank + stage * self.mesh.pp_stride + sum(a.stride * at[a.name] for a in self.mesh.axes)

    def _load_weights(self) -> None:
        for block, node in self.graph.nodes():
            weights = [p for p in node.params if not p.const]
            if not weights:
                continue
            for layer, stage in zip(block.layers or (-1,), self.graph.stages_of(block, node).tolist(), strict=True):
                for store, at in zip(self.stores[stage], self.places, strict=False):
                    for p in weights:
                        store.weights[layer, node.name, p.name] = self.checkpoint.shard(node, p, layer, at, self.mesh)

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> PhaseRun:
        """Execute every call.

        Raises:
            ExecutionFault: a rank lacks an operand, a result has not the shape of its type, a message is left over.
        """
        for call in range(len(self.unrolled)):
            self._run_call(call)
        left = [ref for store in self.fleet.values() for ref in store.unread]
        if left:
            raise ExecutionFault(f"{left[0]} was sent and never received")
        return self.run_result

    def _run_call(self, call: int) -> None:
        u = self.unrolled
        template, item, step = int(u.template[call]), int(u.item[call]), int(u.step[call])
        layer, stage = int(u.layer[call]), int(u.stage[call])
        block, node = u.templates[template]
        refs = [self.flow.source(block, layer, item, step, name) for name in node.inputs]
        for ref in refs:
            self.flow.check_edge(call, ref, node)
        results = self._execute(call, block, node, refs, layer, item, step, stage)
        frame = self._frame(template, item, step)
        for index, value in enumerate(node.outputs):
            ref = Ref(block.name, value.name, layer, item, step)
            self.flow.made(ref, call)
            for rank in range(len(self.places)):
                self._keep(node, ref, results[index][rank], frame.shapes[rank][index], stage, rank)
        self.run_result.calls += 1
        self.run_result.ops += len(self.places)
        gone = self.flow.finish(block, layer, item, step)
        for store in self.stores[stage] if gone else ():
            store.free(gone)

    def _keep(self, node: Node, ref: Ref, value: np.ndarray, shape: tuple[int, ...], stage: int, rank: int) -> None:
        if value.shape != shape:
            raise ExecutionFault(
                f"{node.op} {node.name} gives {value.shape} for {ref} on rank {self.device(stage, rank)}, "
                f"its type says {shape}"
            )
        if value.dtype.kind == "f":
            value = value.astype(self.checkpoint.dtype, copy=False)
        if node.op == "send":
            self._deliver(stage, rank, ref, value)
        else:
            self.stores[stage][rank].put(ref, value, node.op)

    def _deliver(self, stage: int, rank: int, ref: Ref, value: np.ndarray) -> None:
        """A message of a rank goes to the same position of the next stage; the last stage's to the first."""
        self.stores[(stage + 1) % len(self.stores)][rank].deliver(ref, value)

    def _receive(self, store: Store, ref: Ref) -> np.ndarray:
        return store.receive(ref)

    def _execute(
        self, call: int, block: Block, node: Node, refs: Sequence[Ref], layer: int, item: int, step: int, stage: int
    ) -> list[list[np.ndarray]]:
        """Results of a node: per output, per rank."""
        stores = self.stores[stage]
        if node.op == "recv":
            return [[self._receive(store, refs[0]) for store in stores]]
        if node.op == "kv_recv":
            return [[self._received(store, layer, item) for store in stores]]
        operands = [[self._operand(store, rank, ref, block, node) for rank, store in enumerate(stores)] for ref in refs]
        if is_collective(node.op):
            return [self._collective(call, block, node, operands[0])]
        if node.op == "send":
            self._count(call, block.types[node.inputs[0]], operands[0])
        if node.op == "kv_send":
            for store, array in zip(stores, operands[0], strict=True):
                self.outbox[store.device, layer, item] = array
        frame = self._frame(self.flow.number[block.name, node.name], item, step)
        results: list[list[np.ndarray]] = [[] for _ in node.outputs]
        kernel = operator(node).kernel
        for rank, store in enumerate(stores):
            params = self._params(store, block, node, layer, item, step, rank)
            mine = [o[rank] for o in operands]
            values = kernel(frame.shards[rank], mine, params)
            for result, value, output in zip(results, values, node.outputs, strict=True):
                result.append(pad_rows(np.asarray(value), output.type, self.mesh, frame.extents))
            if node.op == "sample":
                rows = local_slices(block.types[node.inputs[0]], self.places[rank], self.mesh, frame.extents)[0]
                self.run_result.sampled.append(Sampled(item, step, rows, mine[0], results[0][rank]))
        return results

    # --- operands -----------------------------------------------------------------------------------------------------

    def _operand(self, store: Store, rank: int, ref: Ref, block: Block, node: Node) -> np.ndarray:
        if ref.step >= 0 or store.cached(ref) is not None:
            return store.get(ref, node.op)
        return self._initial(ref, rank, block, node)

    def _initial(self, ref: Ref, rank: int, block: Block, node: Node) -> np.ndarray:
        """What stands for a value that nothing has made yet: an empty cache, or the tokens of the phase before."""
        arg = next(a for a in block.args if a.value.name == ref.value)
        extents = self.extents(ref.item, 0)
        where = local_slices(arg.value.type, self.places[rank], self.mesh, extents)
        if arg.carry == "step" and self.inputs.previous is not None:
            return self.inputs.previous(ref.item)[where]
        if self.graph.phase == "prefill" and node.op == "kv_write":
            return np.zeros([s.stop - s.start for s in where])
        raise ExecutionFault(f"{node.name} takes {ref}, which nothing gives")

    def _received(self, store: Store, layer: int, item: int) -> np.ndarray:
        if self.inputs.received is None:
            raise ExecutionFault("a KV cache is awaited that no prefill sent")
        return self.inputs.received(store.device, layer, item)

    def _params(
        self, store: Store, block: Block, node: Node, layer: int, item: int, step: int, rank: int
    ) -> dict[str, np.ndarray]:
        params = {
            p.name: self._constant(block, node, p, layer, item, step, rank)
            if p.const
            else store.weights[layer, node.name, p.name]
            for p in node.params
        }
        if node.op == "prefill_begin":
            assert self.inputs.prompts is not None
            where = local_slices(node.outputs[0].type, self.places[rank], self.mesh, self.extents(item, step))
            params["prompt"] = self.inputs.prompts(item)[where]
        return params

    def _constant(
        self, block: Block, node: Node, param: Param, layer: int, item: int, step: int, rank: int
    ) -> np.ndarray:
        at = self.places[rank]
        if param.name == "positions":
            where = local_slices(param.type, at, self.mesh, self.extents(item, step))
            return self.positions.new(item, step)[where]
        if param.name == "key_positions":
            return self.positions.keys(block, param, at, item, step)
        if param.name == "last_position":
            return np.asarray(self.positions.last(item, step))
        return self.checkpoint.shard(node, param, layer, at, self.mesh)

    # --- communication ------------------------------------------------------------------------------------------------

    def _collective(self, call: int, block: Block, node: Node, shards: list[np.ndarray]) -> list[np.ndarray]:
        kind = block.types[node.inputs[0]]
        if node.op != "slice":
            size = dtype(kind.dtype).bytes
            found = volume(node.op, node.attrs, shards, kind.names, self.mesh)
            self.run_result.moved[call] = Moved(found.sent * size, found.payload * size, 1, int(not found.even))
        return run_collective(node.op, node.attrs, shards, kind.names, self.mesh)

    def _count(self, call: int, kind: TensorType, shards: list[np.ndarray]) -> None:
        total = sum(s.size for s in shards) * dtype(kind.dtype).bytes
        self.run_result.moved[call] = Moved(total, total, 1, int(len({s.shape for s in shards}) > 1))

    # --- shapes and lifetimes -----------------------------------------------------------------------------------------

    def extents(self, item: int, step: int) -> dict[str, Number]:
        """Sizes of an item at a step."""
        it = self.graph.items[item]
        return {"batch": it.batch, "new": it.new, "context": it.past + it.new + step}

    def _frame(self, template: int, item: int, step: int) -> _Frame:
        key = (template, item, step)
        if key not in self._frames:
            block, node = self.unrolled.templates[template]
            extents = self.extents(item, step)
            types = [block.types[name] for name in node.inputs]
            shards = [Shard(node, starts_of(node, types, at, self.mesh, extents)) for at in self.places]
            shapes = [[self._shape(v.type, block, at, item, step, extents) for v in node.outputs] for at in self.places]
            self._check_stream(block, node, shapes, extents)
            self._frames[key] = _Frame(extents, shards, shapes)
        return self._frames[key]

    def _check_stream(
        self, block: Block, node: Node, shapes: Sequence[Sequence[tuple[int, ...]]], extents: Mapping[str, Number]
    ) -> None:
        """What leaves a block must lie as the graph says that the stream does."""
        for index in (i for i, v in enumerate(node.outputs) if v.name == block.result):
            for at, shape in zip(self.places, shapes, strict=True):
                stream = tuple(s.stop - s.start for s in local_slices(self.graph.stream, at, self.mesh, extents))
                if shape[index] != stream:
                    raise ExecutionFault(f"{block.name} leaves {shape[index]} where the stream is {stream}")

    def _shape(
        self, t: TensorType, block: Block, at: Mapping[str, int], item: int, step: int, extents: Mapping[str, Number]
    ) -> tuple[int, ...]:
        where = local_slices(t, at, self.mesh, extents)
        shape = [s.stop - s.start for s in where]
        if t.has("context") and t.axes_of("context"):
            # each chunk is cut for itself
            axes = t.axes_of("context")
            if t.dims[t.index("context")].size == PAST:
                raise ExecutionFault(f"a context without the new tokens in {block.name}")
            if axes != cache_axes(block):
                raise ExecutionFault(f"a context cut by {axes} of a cache cut by {cache_axes(block)} in {block.name}")
            held = held_by(axes, t.shift_of("context"), at, self.mesh)
            shape[t.index("context")] = len(self.positions.cached(axes, held, item, step))
        return tuple(shape)
