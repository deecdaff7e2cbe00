"""The ranks' programs on threads: the code of the processes without torch, over queues in memory.

Collectives check what ``torch.distributed`` would only hang on or mix up: that all members of a group come with the
same collective, in the same order. Whoever waits longer than a few seconds fails.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from queue import Empty, Queue
from typing import Any

import numpy as np
import pytest

from paradag.compiler.run.shards import COMBINE
from paradag.compiler.run.store import ExecutionFault
from paradag.compiler.run.torch_engine import TorchEngine, engine
from paradag.compiler.run.torch_engine.messages import Done, Job
from paradag.compiler.run.torch_engine.worker import Worker

PATIENCE_S = 10.0

Group = tuple[int, ...]


class Office:
    """Where the threads' messages lie: one queue for each (group, from, to)."""

    def __init__(self, processes: int) -> None:
        self.queues: dict[tuple[Group, int, int], Queue[Any]] = defaultdict(Queue)
        self.lock = threading.Lock()
        self.down = threading.Event()

    def queue(self, group: Group, source: int, target: int) -> Queue[Any]:
        with self.lock:
            return self.queues[group, source, target]


class ThreadWire:
    """What :class:`paradag.compiler.run.torch_engine.wire.Wire` does, in memory."""

    backend = "threads"

    def __init__(self, process: int, office: Office) -> None:
        self.process = process
        self.office = office

    def all_reduce(self, array: np.ndarray, reduction: str, group: Group) -> np.ndarray:
        arrays = self._exchange(f"all_reduce {reduction} {array.shape}", [array] * len(group), group)
        return np.array(reduce(COMBINE[reduction], arrays))

    def all_gather(self, array: np.ndarray, lengths: Sequence[int], group: Group) -> list[np.ndarray]:
        assert len(array) == lengths[group.index(self.process)]
        arrays = self._exchange(f"all_gather {list(lengths)}", [array] * len(group), group)
        assert [len(a) for a in arrays] == list(lengths)
        return arrays

    def reduce_scatter(self, parts: Sequence[np.ndarray], reduction: str, group: Group) -> np.ndarray:
        arrays = self._exchange(f"reduce_scatter {[len(p) for p in parts]}", parts, group)
        return np.array(reduce(COMBINE[reduction], arrays))

    def all_to_all(self, parts: Sequence[np.ndarray], lengths: Sequence[int], group: Group) -> list[np.ndarray]:
        arrays = self._exchange("all_to_all", [p.ravel() for p in parts], group)
        assert [a.size for a in arrays] == list(lengths)
        return arrays

    def send(self, array: np.ndarray, process: int) -> None:
        self.office.queue((), self.process, process).put(np.array(array))

    def receive(self, shape: tuple[int, ...], kind: np.dtype[Any], process: int) -> np.ndarray:
        array: np.ndarray = self._take(self.office.queue((), process, self.process))
        assert (array.shape, array.dtype) == (shape, kind)
        return array

    def flush(self) -> None:
        return

    def _exchange(self, what: str, parts: Sequence[np.ndarray], group: Group) -> list[np.ndarray]:
        assert list(group) == sorted(group)
        for other, part in zip(group, parts, strict=True):
            self.office.queue(group, self.process, other).put((what, np.array(part)))
        arrays = []
        for other in group:
            said, part = self._take(self.office.queue(group, other, self.process))
            assert said == what, f"process {other} comes with {said}, process {self.process} with {what}"
            arrays.append(part)
        return arrays

    def _take(self, queue: Queue[Any]) -> Any:
        for _ in range(int(PATIENCE_S / 0.05)):
            try:
                return queue.get(timeout=0.05)
            except Empty:
                if self.office.down.is_set():
                    raise TimeoutError("another rank has stopped") from None
        raise TimeoutError(f"process {self.process} waits in vain")


class ThreadPool:
    """What :class:`paradag.compiler.run.torch_engine.Pool` does, on threads."""

    closed = False
    backend = "threads"

    def __init__(self, processes: int, timeout_s: float) -> None:
        self.office = Office(processes)
        self.progress = np.full(processes, -1)
        wires: list[Any] = [ThreadWire(p, self.office) for p in range(processes)]
        self.workers = [Worker(wire, p, self.progress) for p, wire in enumerate(wires)]
        self.groups: set[Group] = set()

    def make_groups(self, groups: Sequence[Group], lanes: Sequence[tuple[int, int]]) -> None:
        self.groups |= set(groups)

    def run(self, jobs: Mapping[int, Job], describe: Callable[[int], str]) -> dict[int, Done]:
        def work(process: int) -> Done:
            try:
                return self.workers[process].answer(jobs[process])
            except BaseException:
                self.office.down.set()
                raise

        with ThreadPoolExecutor(len(jobs)) as threads:
            futures = {process: threads.submit(work, process) for process in jobs}
        failed = [e for e in (f.exception() for f in futures.values()) if e]
        for error in sorted(failed, key=lambda e: isinstance(e, TimeoutError)):
            self.closed = True
            raise error if isinstance(error, ExecutionFault) else AssertionError(str(error)) from error
        assert all(q.empty() for q in self.office.queues.values()), "nothing is left on the way"
        return {process: future.result() for process, future in futures.items()}

    def close(self) -> None:
        self.closed = True


def thread_engine(monkeypatch: pytest.MonkeyPatch, processes: int = 8) -> TorchEngine:
    """A torch engine whose processes are threads."""
    monkeypatch.setattr(engine, "Pool", ThreadPool)
    return TorchEngine(processes)
