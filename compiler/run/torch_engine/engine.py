"""The torch engine as the verification uses it: executors that hand their ranks over to processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType

import numpy as np

from ...ir.unrolled import Unrolled
from ..collectives import groups_of, is_collective
from ..engine import EngineName
from ..executor import Executor, Fleet
from ..records import Inputs, Moved, PhaseRun
from ..store import ExecutionFault, Store
from ..weights import Weights
from .messages import Caches, Done, Job, Program
from .pool import TIMEOUT_S, Pool

MAX_PROCESSES = 8
"""Processes of all phases above which degrees shrink too, unless asked otherwise."""


class TorchEngine:
    """Runs every rank as a process of its own, connected by ``torch.distributed`` alone.

    The processes start at once and serve all phases that are run; after a fault they are started anew.

    Args:
        processes: How many there are.
        timeout_s: How long a process waits for the others before it gives up, in seconds.

    Raises:
        DiagnosticError: PD504 where torch is missing (here or as soon as something runs).
    """

    name: EngineName = "torch"

    def __init__(self, processes: int, timeout_s: float = TIMEOUT_S) -> None:
        self.processes: int = processes
        self._timeout_s = timeout_s
        self._numbers: dict[int, int] = {}
        self._pool = Pool(processes, timeout_s)

    def __call__(self, unrolled: Unrolled, weights: Weights, fleet: Fleet, inputs: Inputs) -> TorchExecutor:
        """An executor for one graph."""
        return TorchExecutor(unrolled, weights, fleet, inputs, self)

    @property
    def pool(self) -> Pool:
        """The processes."""
        if self._pool.closed:
            self._pool = Pool(self.processes, self._timeout_s)
        return self._pool

    @property
    def backend(self) -> str:
        """``gloo`` or ``nccl``; empty before anything ran."""
        return self._pool.backend

    def number(self, device: int) -> int:
        """Process of a device.

        Raises:
            ExecutionFault: there are more devices than processes.
        """
        number = self._numbers.setdefault(device, len(self._numbers))
        if number >= self.processes:
            raise ExecutionFault(f"device {device} has none of the {self.processes} processes")
        return number

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def __enter__(self) -> TorchEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TorchExecutor(Executor):
    """Loads the shards of every rank, has them run elsewhere, and collects what came of it.

    After the run the caches of its stores are placeholders, of the right shape and full of NaN: what they stand for
    lies in the ranks' processes, and goes from there to where decode needs it.
    """

    def __init__(self, unrolled: Unrolled, weights: Weights, fleet: Fleet, inputs: Inputs, engine: TorchEngine) -> None:
        self.engine = engine
        super().__init__(unrolled, weights, fleet, inputs)

    def _load_weights(self) -> None:
        super()._load_weights()
        for block, node in self.graph.nodes():
            constants = [p for p in node.params if p.const and not self._is_position(p.name)]
            for layer, stage in zip(block.layers or (-1,), self.graph.stages_of(block, node).tolist(), strict=True):
                for p in constants:
                    for store, at in zip(self.stores[stage], self.places, strict=True):
                        shard = self.checkpoint.shard(node, p, layer, at, self.mesh)
                        store.weights[layer, node.name, p.name] = shard

    @staticmethod
    def _is_position(name: str) -> bool:
        return name.endswith(("positions", "position"))

    def run(self) -> PhaseRun:
        """Have every rank execute its calls.

        Raises:
            ExecutionFault: some rank's faults, see :meth:`Executor.run`.
            DiagnosticError: PD505, a process ended or gave up.
        """
        devices = {store.device for stage in self.stores for store in stage}
        devices |= {fetch.source for fetch in self.fetches}
        processes = {device: self.engine.number(device) for device in sorted(devices)}
        pool = self.engine.pool
        pool.make_groups(*self._groups(processes))
        self._collect(pool.run(self._jobs(processes), self.describe))
        return self.run_result

    def describe(self, call: int) -> str:
        """A call, for people."""
        u = self.unrolled
        block, node = u.templates[int(u.template[call])]
        layer = f"layer {u.layer[call]}, " if u.layer[call] >= 0 else ""
        return f"{node.op} {node.name} of {block.name} ({layer}item {u.item[call]}, step {u.step[call]})"

    # --- what they are told -------------------------------------------------------------------------------------------

    def _groups(self, processes: Mapping[int, int]) -> tuple[list[tuple[int, ...]], list[tuple[int, int]]]:
        """Process groups of all collectives, and the ways of all messages, as processes."""
        groups, lanes = [], []
        for block, node in self.graph.nodes():
            stages = sorted(set(self.graph.stages_of(block, node).tolist()))
            for stage in stages if is_collective(node.op) and node.op != "slice" else ():
                for members in groups_of(self.mesh, node.attrs["axes"]):
                    ring = [processes[self.device(stage, members[at])] for at in sorted(members)]
                    groups.append(tuple(sorted(ring)))
                    hops = node.attrs.get("hops", 0)
                    lanes += [(p, ring[(i + hops) % len(ring)]) for i, p in enumerate(ring) if hops]
            for stage in stages if node.op == "send" else ():
                for rank in range(len(self.places)):
                    target = self.device((stage + 1) % len(self.stores), rank)
                    lanes.append((processes[self.device(stage, rank)], processes[target]))
        lanes += [(processes[f.source], processes[f.device]) for f in self.fetches]
        return groups, [(a, b) for a, b in lanes if a != b]

    def _jobs(self, processes: Mapping[int, int]) -> dict[int, Job]:
        places = {store.device: (s, r) for s, stage in enumerate(self.stores) for r, store in enumerate(stage)}
        jobs = {}
        for device, process in processes.items():
            program, caches = None, {}
            if device in places:
                stage, rank = places[device]
                caches = self._caches(self.stores[stage][rank], stage)
                program = self._program(stage, rank)
            fetches = [f for f in self.fetches if device in (f.source, f.device)]
            jobs[process] = Job(processes, program, caches, fetches)
        return jobs

    def _program(self, stage: int, rank: int) -> Program:
        items = range(len(self.graph.items))
        store = self.stores[stage][rank]
        prompts, previous = self.inputs.prompts, self.inputs.previous
        return Program(
            unrolled=self.unrolled,
            stage=stage,
            rank=rank,
            store=Store(store.device, store.weights),
            seeds=tuple(store.versions),
            model=self.checkpoint.model,
            dtype=str(self.checkpoint.dtype),
            prompts={i: prompts(i) for i in items} if prompts and stage == 0 else {},
            previous={i: previous(i) for i in items} if previous else {},
        )

    def _caches(self, store: Store, stage: int) -> Caches:
        received = self.inputs.received
        if received is None:
            return {}
        layers = [layer for layer, its in enumerate(self.graph.stage_of_layer) if its == stage]
        items = range(len(self.graph.items))
        return {(layer, item): received(store.device, layer, item) for layer in layers for item in items}

    # --- what they did ------------------------------------------------------------------------------------------------

    def _collect(self, answers: Mapping[int, Done]) -> None:
        total = self.run_result
        total.calls = len(self.unrolled)
        for done in answers.values():
            total.sampled += done.result.sampled
            total.ops += done.result.ops
            for call, moved in done.result.moved.items():
                so_far = total.moved.setdefault(call, Moved(count=1))
                so_far.sent += moved.sent
                so_far.payload += moved.payload
                so_far.uneven = max(so_far.uneven, moved.uneven)
            self.outbox |= {key: _elsewhere(shape) for key, shape in done.given.items()}
        self._mark(answers)

    def _mark(self, answers: Mapping[int, Done]) -> None:
        """Placeholders for the versions of the cache that the ranks hold."""
        for store in (store for stage in self.stores for store in stage):
            done = answers[self.engine.number(store.device)]
            for ref, shape in done.cached.items():
                if store.cached(ref) is None:
                    store.put(ref, _elsewhere(shape), "kv_recv")


def _elsewhere(shape: Iterable[int]) -> np.ndarray:
    """What lies in another process, as an array that takes no memory and spoils whatever is computed from it."""
    return np.broadcast_to(np.array(np.nan), tuple(shape))
