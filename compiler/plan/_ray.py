"""Workers that are tasks of an existing Ray cluster; see docs.ray.io. Needs the extra ``paradag[ray]``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, TypeVar

from ..diagnostics import Diagnostic, DiagnosticError
from .sweep import Done, Failed, Lost, attempt

__all__ = ["RayExecutor"]

Job = TypeVar("Job")
Result = TypeVar("Result")

_POLL_S = 1.0
_REACHED_S = 5.0
"""Seconds in which a cluster's address must answer."""

_WITHOUT_CPU_S = 120.0
"""Seconds that a cluster may be without any CPU, while nodes are replaced."""

_START = "start one with `ray start --head`, or name it in RAY_ADDRESS; --executor local needs none"


class RayExecutor(Generic[Job, Result]):
    """One Ray task per job under way, each on one CPU.

    The cluster is the one that ``RAY_ADDRESS`` names, else the one that this machine is part of.

    Raises:
        DiagnosticError: PD606, ray is not installed, or no cluster answers.
    """

    def __init__(self, work: Callable[[Job], Result], workers: int | None = None) -> None:
        self._ray, self._connected = _connect()
        self._work = work
        self._workers = workers
        # Retries are the sweep's business: Ray's own have no bound where a task exhausts a node's memory.
        self._task = self._ray.remote(num_cpus=1, max_retries=0)(_attempt)
        self._flying: dict[Any, int] = {}
        self._with_cpu = monotonic()

    @property
    def slots(self) -> int:
        """As asked for; else two for each CPU, so that none is idle and an autoscaler sees that there is more to do."""
        return self._workers or max(1, 2 * self._cpus())

    def submit(self, number: int, job: Job) -> None:
        from ... import __version__

        self._flying[self._task.remote(__version__, self._work, job)] = number

    def wait(self) -> list[tuple[int, Done[Result] | Failed | Lost]]:
        while True:
            ready, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=_POLL_S)
            if ready:
                return [(self._flying.pop(ref), self._outcome(ref)) for ref in ready]
            self._check_cpus()

    def close(self) -> None:
        for ref in self._flying:
            self._ray.cancel(ref, force=True)
        self._flying.clear()
        if self._connected:
            self._ray.shutdown()

    def _outcome(self, ref: Any) -> Done[Result] | Failed | Lost:
        errors = self._ray.exceptions
        try:
            outcome: Done[Result] | Failed = self._ray.get(ref)
        except errors.RayTaskError as error:
            # `attempt` answers every fault of the work: this is one of getting there, such as a missing package.
            return Failed(f"a node of the Ray cluster cannot run it: {_last_line(error)}")
        except errors.RayError as error:
            return Lost(f"with {type(error).__name__}")
        return outcome

    def _cpus(self) -> int:
        return int(self._ray.cluster_resources().get("CPU", 0))

    def _check_cpus(self) -> None:
        if self._cpus():
            self._with_cpu = monotonic()
        elif monotonic() - self._with_cpu > _WITHOUT_CPU_S:
            raise _unavailable("the Ray cluster has no CPU left", "a node with a CPU", "add a node to the cluster")


def _attempt(version: str, work: Callable[[Job], Result], job: Job) -> Done[Result] | Failed:
    """Run a job on a node, which must have the caller's paradag: another one may plan differently."""
    from ... import __version__

    if __version__ != version:
        return Failed(f"a node of the Ray cluster has paradag {__version__} and not {version}")
    return attempt(work, job)


def _connect() -> tuple[Any, bool]:
    """The ``ray`` module, connected; and whether that was done here."""
    try:
        import ray
    except ImportError:
        raise _unavailable("ray is not installed", "the package ray", 'pip install "paradag[ray]"') from None
    if ray.is_initialized():
        return ray, False
    address = os.environ.get("RAY_ADDRESS") or "auto"
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise _unavailable(f"no Ray cluster answers at {address}: {_last_line(error)}", "a running cluster") from error
    return ray, True


def _check_reachable(address: str) -> None:
    """Ask the address itself: Ray takes minutes to give up, and may end the process then."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_S).close()
    except (OSError, OverflowError) as error:
        raise _unavailable(f"no Ray cluster answers at {address}: {error}", "a running cluster") from error


def _unavailable(message: str, expected: str, help_: str = _START) -> DiagnosticError:
    return DiagnosticError([Diagnostic("PD606", message, expected=expected, help=help_)])


def _last_line(error: BaseException) -> str:
    """What an error says, without the traceback that Ray puts before it."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
