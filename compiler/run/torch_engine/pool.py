"""The ranks' processes as the parent sees them: started once, given jobs, watched, and ended whatever happens.

A host process imports torch and forks one process per rank. All of them hold the reading end of a *lifeline*, a pipe
whose writing end only the parent has: it closes when the parent closes the pool or dies in any way, and then they end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from ...diagnostics import Diagnostic, DiagnosticError
from ..store import ExecutionFault
from .messages import Done, Job, MakeGroups, Ready, Stopped

TIMEOUT_S = 60.0
"""How long a process waits for the others before it gives up, in seconds."""

_GRACE_S = 3.0
"""How long the end of a process may take to be reported once another one has noticed it, in seconds."""

_HOST = f"{__package__}.host"
_AGAIN = "the other ranks were ended; run it again"
_INSTALL = 'pip install "paradag[verify]"'


class Pool:
    """Processes that run jobs.

    Args:
        processes: How many.
        timeout_s: How long a process waits for the others before it gives up, in seconds.

    Raises:
        DiagnosticError: PD504 where torch, or what it needs, is not there.
    """

    def __init__(self, processes: int, timeout_s: float = TIMEOUT_S) -> None:
        if not hasattr(os, "fork"):
            raise DiagnosticError([Diagnostic("PD504", f"the torch engine needs fork, which {sys.platform} lacks")])
        self.processes = processes
        self.backend = ""
        self.pids: dict[int, int] = {}
        """Process id of each process, once all have started."""
        self._timeout_s = timeout_s
        self._groups: set[tuple[int, ...]] = set()
        self._lanes: set[tuple[int, int]] = set()
        self._ended: dict[int, int] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="paradag-ranks-")
        self.folder = Path(self._folder.name)
        self._progress = np.memmap(self.folder / "progress", dtype=np.int64, mode="w+", shape=(processes,))
        self._progress[:] = -1
        self._start()

    def _start(self) -> None:
        ends = [Pipe() for _ in range(self.processes)]
        self._links: list[Connection] = [mine for mine, _ in ends]
        self._control, control = Pipe(duplex=False)
        lifeline, self._lifeline = os.pipe()
        links = [theirs.fileno() for _, theirs in ends]
        settings = {
            "control": control.fileno(),
            "lifeline": lifeline,
            "links": links,
            "folder": str(self.folder),
            "timeout_s": self._timeout_s,
        }
        with (self.folder / "host.log").open("wb") as log:
            self._host = subprocess.Popen(
                [sys.executable, "-m", _HOST, json.dumps(settings)],
                pass_fds=[control.fileno(), lifeline, *links],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
            )
        for end in (control, *(theirs for _, theirs in ends)):
            end.close()
        os.close(lifeline)

    # --- talking to them ----------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Wait until all processes have joined.

        Raises:
            DiagnosticError: PD504 torch is missing, PD505 a process ended.
        """
        if self.backend:
            return
        while not self.pids:
            self._hear_host(None)
        joined = self._gather(range(self.processes), Ready, lambda call: "joined the others")
        self.backend = next(iter(joined.values())).backend

    def make_groups(self, groups: Sequence[tuple[int, ...]], lanes: Sequence[tuple[int, int]]) -> None:
        """Let every process know the process groups; those that exist are left alone."""
        self.ready()
        new = MakeGroups(
            [g for g in dict.fromkeys(groups) if g not in self._groups],
            [lane for lane in dict.fromkeys(lanes) if lane not in self._lanes],
        )
        if not new.groups and not new.lanes:
            return
        self._send(dict.fromkeys(range(self.processes), new))
        self._gather(range(self.processes), Done, lambda call: "made process groups")
        self._groups |= set(new.groups)
        self._lanes |= set(new.lanes)

    def run(self, jobs: Mapping[int, Job], describe: Callable[[int], str]) -> dict[int, Done]:
        """Run a job on each of some processes.

        Args:
            jobs: By process.
            describe: What a call does, for the error that names where a process ended.

        Raises:
            ExecutionFault: the graph asks for what is not there.
            DiagnosticError: PD505, a process ended or gave up.
        """
        self.ready()
        self._progress[:] = -1
        self._send(jobs)
        return self._gather(jobs, Done, lambda call: f"ran {describe(call)}" if call >= 0 else "fetched its KV cache")

    @property
    def host_pid(self) -> int:
        """Process id of the host."""
        return self._host.pid

    @property
    def progress(self) -> list[int]:
        """Call that each process is at, -1 before the first."""
        return [int(call) for call in self._progress]

    def _send(self, messages: Mapping[int, MakeGroups | Job]) -> None:
        for process, message in messages.items():
            try:
                self._links[process].send(message)
            except OSError:
                self._lost(process, "waited for work")

    def _gather(self, processes: Any, kind: type, where: Callable[[int], str]) -> dict[int, Any]:
        """One answer of each process."""
        answers: dict[int, Any] = {}
        while waiting := [p for p in processes if p not in answers]:
            for ready in wait([*(self._links[p] for p in waiting), self._control]):
                if ready is self._control:
                    self._hear_host(where)
                    continue
                process = self._links.index(ready)  # type: ignore[arg-type]
                try:
                    answers[process] = self._links[process].recv()
                except (EOFError, OSError):
                    self._lost(process, where(self.progress[process]))
                if isinstance(answers[process], Stopped):
                    self._stopped(process, answers[process], waiting, where)
                assert isinstance(answers[process], kind)
        return answers

    def _hear_host(self, where: Callable[[int], str] | None) -> None:
        try:
            what, *rest = self._control.recv()
        except (EOFError, OSError):
            status = _how(self._host.wait())
            self._fail(f"the process that starts the ranks {status}", self._last_words("host"))
        if what == "missing":
            message = f"the torch engine cannot start: {rest[0]}"
            self.close()
            raise DiagnosticError([Diagnostic("PD504", message, expected="torch with gloo", help=_INSTALL)])
        if what == "started":
            self.pids = rest[0]
        elif where is not None:
            self._ended[rest[0]] = rest[1]
            self._lost(rest[0], where(self.progress[rest[0]]))

    # --- when something goes wrong ------------------------------------------------------------------------------------

    def _stopped(self, process: int, stop: Stopped, others: list[int], where: Callable[[int], str]) -> NoReturn:
        """A process could not finish: by the graph's fault, or since another one has ended or does not come."""
        until = time.monotonic() + _GRACE_S
        while not stop.fault and (left := until - time.monotonic()) > 0:
            for ready in wait([*(self._links[p] for p in others if p != process), self._control], left):
                if ready is self._control:
                    self._hear_host(where)
                    continue
                other = self._links.index(ready)  # type: ignore[arg-type]
                try:
                    said = self._links[other].recv()
                except (EOFError, OSError):
                    self._lost(other, where(self.progress[other]))
                if isinstance(said, Stopped) and said.fault:
                    process, stop = other, said
                    break
                others = [p for p in others if p != other]
        if stop.fault:
            self.close()
            raise ExecutionFault(
                stop.text if stop.kind == ExecutionFault.__name__ else f"process {process}: {stop.kind}: {stop.text}"
            )
        message = f"rank {process} gave up while it {where(self.progress[process])}: {stop.kind}: {stop.text}"
        behind = min(range(self.processes), key=self.progress.__getitem__)
        waited_for = behind != process and 0 <= self.progress[behind] < self.progress[process]
        at = where(self.progress[behind])
        self._fail(message, f"furthest behind is rank {behind}, which {at}" if waited_for else _AGAIN)

    def _lost(self, process: int, where: str) -> NoReturn:
        until = time.monotonic() + _GRACE_S
        while process not in self._ended and self._control.poll(max(0.0, until - time.monotonic())):
            try:
                what, *rest = self._control.recv()
            except (EOFError, OSError):
                break
            if what == "ended":
                self._ended[rest[0]] = rest[1]
        status = _how(self._ended[process]) if process in self._ended else "ended"
        message = f"rank {process} (process {self.pids.get(process, '?')}) {status} while it {where}"
        self._fail(message, self._last_words(f"rank{process}"))

    def _last_words(self, name: str) -> str:
        try:
            lines = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"it said: {lines[-1]}" if lines else _AGAIN

    def _fail(self, message: str, help_text: str) -> NoReturn:
        self.close()
        expected = f"{self.processes} processes that run to the end"
        raise DiagnosticError([Diagnostic("PD505", message, expected=expected, help=help_text)])

    # --- the end ------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the processes are gone."""
        return self._lifeline < 0

    def close(self) -> None:
        """End all processes, and wait until they are gone."""
        if self.closed:
            return
        os.close(self._lifeline)
        self._lifeline = -1
        for link in self._links:
            link.close()
        try:
            self._host.wait(10)
        except subprocess.TimeoutExpired:
            # somebody forked from this process holds the lifeline too
            for pid in (*self.pids.values(), self._host.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._host.wait()
        self._control.close()
        self._folder.cleanup()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _how(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _environment() -> dict[str, str]:
    """For processes that share a machine: one thread each, sockets on the loopback device, the parent's modules."""
    settings = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        settings |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    settings["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in paths if p))
    return {**os.environ, **settings}
