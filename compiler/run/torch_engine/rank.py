"""One rank of a phase: the calls of its own stage, in the one order that all ranks keep.

That order is topological, collectives block until all members have come, and sends do not block. So whoever waits,
waits for a call that stands no later in the order, and the earliest call that is not done can always be done: there is
no deadlock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...ir.graph import Block, Node, Param
from ...ir.mesh import Mesh
from ...ir.types import TensorType
from ...spec import ModelSpec
from ...spec.dtypes import INDEX_DTYPES, dtype
from ..collectives import Position
from ..executor import Executor
from ..records import Inputs, Moved, PhaseRun
from ..store import ExecutionFault, Ref, Store
from ..weights import Weights
from .messages import Program
from .moves import Member, move

if TYPE_CHECKING:
    from .wire import Wire


class Letter(NamedTuple):
    """A message that the stage before will send to this rank."""

    ref: Ref
    shape: tuple[int, ...]
    kind: np.dtype[np.generic]


class OwnWeights(Weights):
    """The shards that a rank was given; there is no whole weight in its process."""

    def __init__(self, model: ModelSpec, store: Store, kind: str) -> None:
        super().__init__(model, {})
        self._store = store
        self._kind = np.dtype(kind)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self._kind

    def shard(self, node: Node, param: Param, layer: int, at: Mapping[str, int], mesh: Mesh) -> np.ndarray:
        """The shard as it was given."""
        return self._store.weights[layer, node.name, param.name]


class RankExecutor(Executor):
    """An executor that plays one rank.

    Args:
        program: What to run, and as whom.
        caches: KV caches that ``kv_recv`` takes, by (layer, item).
        processes: Process of each device.
        wire: The way to them.
        begin: Told the number of each call before it runs.
    """

    def __init__(
        self,
        program: Program,
        caches: Mapping[tuple[int, int], np.ndarray],
        processes: Mapping[int, int],
        wire: Wire,
        begin: Callable[[int], None],
    ) -> None:
        inputs = Inputs(
            prompts=program.prompts.__getitem__,
            previous=program.previous.__getitem__ if program.previous else None,
            received=lambda device, layer, item: caches[layer, item],
        )
        weights = OwnWeights(program.model, program.store, program.dtype)
        fleet = {program.store.device: program.store}
        super().__init__(program.unrolled, weights, fleet, inputs, only=(program.stage, program.rank))
        self.stage = program.stage
        self.processes = processes
        self.wire = wire
        self.begin = begin
        self._letters = deque(self._expected())

    @property
    def store(self) -> Store:
        """The rank's memory."""
        return self.stores[self.stage][0]

    def run(self) -> PhaseRun:
        """Execute the calls of the stage.

        Raises:
            ExecutionFault: the rank lacks an operand, a result has not the shape of its type, a message is left over.
        """
        for call, stage in enumerate(self.unrolled.stage.tolist()):
            if stage != self.stage:
                self._pass_over(call)
                continue
            self.begin(call)
            self._run_call(call)
        left = [*self.store.unread, *(letter.ref for letter in self._letters)]
        if left:
            raise ExecutionFault(f"{left[0]} was sent and never received")
        self.wire.flush()
        return self.run_result

    def _pass_over(self, call: int) -> None:
        """A call of another stage: what it makes is there from now on, and what it was the last to need is not."""
        block, layer, item, step, node = self._place(call)
        for value in node.outputs:
            self.flow.made(Ref(block.name, value.name, layer, item, step), call)
        self.store.free(self.flow.finish(block, layer, item, step))

    def _place(self, call: int) -> tuple[Block, int, int, int, Node]:
        u = self.unrolled
        block, node = u.templates[int(u.template[call])]
        return block, int(u.layer[call]), int(u.item[call]), int(u.step[call]), node

    def last_version(self, layer: int, item: int) -> np.ndarray:
        """The cache of a layer as the last chunk of an item left it.

        Raises:
            ExecutionFault: the rank does not hold it.
        """
        block = next(b for b in self.graph.with_role("layer") if layer in b.layers)
        version = next(a.source for a in block.args if a.carry == "version")
        held = self.store.cached(Ref(block.name, version, layer, item, 0))
        if held is None:
            raise ExecutionFault(f"rank {self.store.device} has no cache of layer {layer} to give")
        return held

    # --- messages between stages --------------------------------------------------------------------------------------

    def _expected(self) -> Iterator[Letter]:
        """What the same position of the stage before sends, in the order in which it does."""
        stages = len(self.graph.stages)
        before = (self.stage - 1) % stages
        if before == self.stage:
            return
        for call in np.flatnonzero(self.unrolled.stage == before).tolist():
            block, layer, item, step, node = self._place(call)
            if node.op != "send":
                continue
            for value in node.outputs:
                shape = self._shape(value.type, block, self.places[0], item, step, self.extents(item, step))
                kind = np.dtype(np.int64) if value.type.dtype in INDEX_DTYPES else self.checkpoint.dtype
                yield Letter(Ref(block.name, value.name, layer, item, step), shape, kind)

    def _deliver(self, stage: int, rank: int, ref: Ref, value: np.ndarray) -> None:
        target = (stage + 1) % len(self.graph.stages)
        if target == stage:
            super()._deliver(stage, rank, ref, value)
        else:
            self.wire.send(value, self._process(target))

    def _receive(self, store: Store, ref: Ref) -> np.ndarray:
        """Take letters out of the box until the one asked for is there."""
        while self._letters and ref not in store.unread:
            letter = self._letters.popleft()
            source = self._process((self.stage - 1) % len(self.graph.stages))
            store.deliver(letter.ref, self.wire.receive(letter.shape, letter.kind, source))
        return store.receive(ref)

    def _process(self, stage: int, at: Mapping[str, int] | None = None) -> int:
        """Process of the rank at some coordinates (default: this one's) of a stage."""
        return self.processes[self._device_at(stage, self.places[0] if at is None else at)]

    # --- collectives --------------------------------------------------------------------------------------------------

    def _collective(self, call: int, block: Block, node: Node, shards: list[np.ndarray]) -> list[np.ndarray]:
        outcome = move(self._member(call, block, node), shards[0])
        if node.op != "slice":
            size = dtype(block.types[node.inputs[0]].dtype).bytes
            uneven = self._uneven(call, block, node, shards[0])
            self.run_result.moved[call] = Moved(outcome.sent * size, outcome.payload * size, 1, uneven)
        return [outcome.shard]

    def _member(self, call: int, block: Block, node: Node) -> Member:
        axes, here = node.attrs["axes"], self.places[0]
        sizes = tuple(self.mesh.size((a,)) for a in axes)
        places: dict[Position, Mapping[str, int]] = {
            at: {**here, **dict(zip(axes, at, strict=True))} for at in product(*(range(s) for s in sizes))
        }
        return Member(
            wire=self.wire,
            at=tuple(here[a] for a in axes),
            processes={at: self._process(self.stage, place) for at, place in places.items()},
            shapes={at: self._operand_shape(call, block, node, place) for at, place in places.items()},
            sizes=sizes,
            op=node.op,
            attrs=node.attrs,
            names=block.types[node.inputs[0]].names,
        )

    def _operand_shape(self, call: int, block: Block, node: Node, at: Mapping[str, int]) -> tuple[int, ...]:
        _, _, item, step, _ = self._place(call)
        return self._shape(block.types[node.inputs[0]], block, at, item, step, self.extents(item, step))

    def _count(self, call: int, kind: TensorType, shards: list[np.ndarray]) -> None:
        super()._count(call, kind, shards)
        block, _, _, _, node = self._place(call)
        self.run_result.moved[call].uneven = int(len(self._shapes_of_all(call, block, node)) > 1)

    def _shapes_of_all(self, call: int, block: Block, node: Node) -> set[tuple[int, ...]]:
        return {self._operand_shape(call, block, node, at) for at in self.everyone}

    def _uneven(self, call: int, block: Block, node: Node, shard: np.ndarray) -> int:
        """1 where not all ranks of the stage give equally much, and to everyone alike."""
        shapes = self._shapes_of_all(call, block, node)
        if node.op == "all_to_all":
            cut = shard.shape[block.types[node.inputs[0]].names.index(node.attrs["to"])]
            return int(len(shapes) > 1 or cut % self.mesh.size(node.attrs["axes"]) != 0)
        return int(len(shapes) > 1)
