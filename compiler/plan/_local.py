"""Workers that are processes of this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Thread
from typing import Any, Generic, TypeVar

from .sweep import Done, Failed, Lost, attempt

__all__ = ["LocalExecutor", "cores"]

Job = TypeVar("Job")
Result = TypeVar("Result")

_ENDING_S = 5.0
"""Seconds from the end of a worker's line to its own."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    line: Connection[Any, Any]


class LocalExecutor(Generic[Job, Result]):
    """One process per job under way, kept for the next job.

    A pipe of its own connects each worker, unlike the shared queues of ``concurrent.futures``: the end of one worker
    then is known to be that of one job, and is nothing to the others.
    """

    def __init__(self, work: Callable[[Job], Result], workers: int | None = None) -> None:
        self._work = work
        self._workers = workers or cores()
        self._context = get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[int, _Worker] = {}
        self._unstarted: list[tuple[int, Lost]] = []

    @property
    def slots(self) -> int:
        return self._workers

    @property
    def workers(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return tuple(w.process.pid or 0 for w in (*self._idle, *self._busy.values()))

    def submit(self, number: int, job: Job) -> None:
        try:
            worker = self._idle.pop() if self._idle else self._start()
        except OSError as error:
            self._unstarted.append((number, Lost(f"not started: {error.strerror or error}")))
            return
        self._busy[number] = worker
        # Where the worker is gone its line is at its end: `wait` finds that.
        with suppress(ConnectionError):
            worker.line.send(job)

    def wait(self) -> list[tuple[int, Done[Result] | Failed | Lost]]:
        if self._unstarted:
            lost, self._unstarted = self._unstarted, []
            return list(lost)
        ready = set(connection.wait([w.line for w in self._busy.values()]))
        ended = [n for n, w in self._busy.items() if w.line in ready]
        return [(number, self._outcome(self._busy.pop(number))) for number in ended]

    def close(self) -> None:
        workers = [*self._idle, *self._busy.values()]
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.line.close()
        self._idle.clear()
        self._busy.clear()

    def _start(self) -> _Worker:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._work), daemon=True)
        # Theirs is then open in the worker alone, so that the line ends when the worker does.
        with theirs, _interrupts_blocked():
            process.start()
        return _Worker(process, mine)

    def _outcome(self, worker: _Worker) -> Done[Result] | Failed | Lost:
        try:
            outcome: Done[Result] | Failed = worker.line.recv()
        except (EOFError, OSError):
            worker.process.join(_ENDING_S)
            worker.process.kill()
            worker.line.close()
            return Lost(_end(worker.process.exitcode or 0))
        self._idle.append(worker)
        return outcome


def _end(code: int) -> str:
    """How a process ended, from its exit code as ``multiprocessing`` tells it: negative for a signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, which a terminal sends to all: their caller ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(line: Connection[Any, Any], work: Callable[[Any], Any]) -> None:
    """A worker: answer jobs until the line ends."""
    Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = line.recv()
        except EOFError:
            return
        line.send(attempt(work, job))


def _end_with_parent() -> None:
    """No orphans: a parent that is killed cannot end its workers."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
