"""What the process of a rank does: join the others, then take jobs from the parent until it hangs up."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..handover import Fetch
from ..store import ExecutionFault
from .messages import Caches, Done, Job, MakeGroups, Program, Ready, Stopped
from .rank import RankExecutor

if TYPE_CHECKING:
    from .wire import Wire

PROGRESS = "progress"
"""File in the shared folder with the call that each process is at, as int64."""

_FAULTS = (ValueError, LookupError)
"""What stops the execution of a wrong graph."""


def serve(process: int, processes: int, link: Connection, lifeline: int, folder: Path, timeout_s: float) -> None:
    """Work until the parent hangs up or dies.

    Args:
        process: Number of this process.
        processes: How many there are.
        link: Pipe to the parent.
        lifeline: Read end of a pipe to which nobody writes; its other end closes when the parent is gone.
        folder: Folder that the processes share.
        timeout_s: How long a process waits for the others, in seconds.
    """
    import torch

    from .wire import Wire

    # A thread, since the main one may be waiting for a rank that waits for the parent.
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(1)
    progress = np.memmap(folder / PROGRESS, dtype=np.int64, mode="r+", shape=(processes,))
    try:
        wire = Wire(process, processes, folder, timeout_s)
    except Exception as failed:
        link.send(Stopped(type(failed).__name__, str(failed), fault=False))
        return
    link.send(Ready(wire.backend))
    worker = Worker(wire, process, progress)
    while True:
        try:
            message = link.recv()
        except EOFError:
            break
        try:
            link.send(worker.answer(message))
        except Exception as failed:
            link.send(Stopped(type(failed).__name__, str(failed), fault=isinstance(failed, _FAULTS)))
    wire.close()


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


class Worker:
    """One rank's memory from phase to phase.

    Args:
        wire: The way to the other processes.
        process: Number of this one.
        progress: Where each process tells the call that it is at.
    """

    def __init__(self, wire: Wire, process: int, progress: np.ndarray) -> None:
        self.wire = wire
        self.process = process
        self.progress = progress
        self.done: RankExecutor | None = None
        """The phase that ran last; its caches are what decode starts from."""

    def answer(self, message: MakeGroups | Job) -> Done:
        """Do what a message asks for."""
        if isinstance(message, MakeGroups):
            self.wire.make_groups(message.groups, message.lanes)
            return Done()
        caches = self._filled(message)
        return Done() if message.program is None else self._run(message.program, caches, message.processes)

    def _run(self, program: Program, caches: Caches, processes: Mapping[int, int]) -> Done:
        for ref in program.seeds:
            program.store.put(ref, caches[ref.layer, ref.item], "kv_recv")
        run = RankExecutor(program, caches, processes, self.wire, self._begin)
        run.run()
        self.done = run
        return Done(
            run.run_result,
            {key: cache.shape for key, cache in run.outbox.items()},
            {ref: version.shape for ref, version in run.store.versions.items()},
        )

    def _begin(self, call: int) -> None:
        self.progress[self.process] = call

    # --- the KV cache between the phases ------------------------------------------------------------------------------

    def _filled(self, job: Job) -> Caches:
        """Give and take parts of the cache that prefill left; everybody keeps to one order."""
        caches = {key: np.array(cache) for key, cache in job.caches.items()}
        for fetch in job.fetches:
            giver, taker = job.processes[fetch.source], job.processes[fetch.device]
            data = self._held(fetch)[fetch.out_of][fetch.fresh] if giver == self.process else None
            if taker != self.process:
                assert data is not None
                self.wire.send(data, taker)
                continue
            cache = caches[fetch.layer, fetch.item]
            if data is None:
                data = self.wire.receive((int(fetch.fresh.sum()),), cache.dtype, giver)
            part = cache[fetch.into]
            part[fetch.fresh] = data
            cache[fetch.into] = part
        self.wire.flush()
        return caches

    def _held(self, fetch: Fetch) -> np.ndarray:
        """The cache of a layer as prefill left it: what a KV send gave away, or the last version."""
        if self.done is None:
            raise ExecutionFault(f"device {fetch.source} never ran prefill, whose cache it should give")
        key = (fetch.source, fetch.layer, fetch.given)
        if key in self.done.outbox:
            return self.done.outbox[key]
        return self.done.last_version(fetch.layer, fetch.given)
