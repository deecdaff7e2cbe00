"""Sweeps: many jobs on workers that may be lost, with the same results whatever runs them.

A job and its result are values, and a worker is a function of one to the other; it shares no folder with the caller.
An :class:`Executor` says where workers live. What happens when one is lost is decided here, for all of them alike.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

__all__ = ["ATTEMPTS", "Done", "Executor", "Failed", "Lost", "attempt", "sweep"]

ATTEMPTS = 3
"""Workers that a job may cost before it is given up: one that exhausts a machine's memory does so every time."""

Job = TypeVar("Job")
Result = TypeVar("Result")
JobIn = TypeVar("JobIn", contravariant=True)


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A job's result."""

    result: Result


@dataclass(frozen=True)
class Failed:
    """A job that will give no result, and why."""

    reason: str


@dataclass(frozen=True)
class Lost:
    """A job whose worker went away under it, and how; another worker may succeed."""

    how: str


class Executor(Protocol[JobIn, Result]):
    """A place where jobs run. Used by one thread."""

    @property
    def slots(self) -> int:
        """Jobs that may be under way together; at least 1."""

    def submit(self, number: int, job: JobIn) -> None:
        """Start a job under a number that no other job under way has."""

    def wait(self) -> list[tuple[int, Done[Result] | Failed | Lost]]:
        """What came of jobs that ended, at least one; they are no longer under way."""

    def close(self) -> None:
        """End all workers, those at work too. What they had not answered is lost."""


def attempt(work: Callable[[Job], Result], job: Job) -> Done[Result] | Failed:
    """Run a job on a worker. A fault costs this job alone, so it is an answer and not the end of the worker."""
    try:
        return Done(work(job))
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}")


def sweep(
    jobs: Iterable[tuple[int, Job]], executor: Executor[Job, Result]
) -> Generator[tuple[int, Done[Result] | Failed], None, None]:
    """Run jobs, each under its number, and tell what came of them as they end.

    A job whose worker is lost is given to another one, up to :data:`ATTEMPTS` times in all. Workers are ended when the
    iteration ends, for whatever reason; close it (``contextlib.closing``) if it may be left early.

    Args:
        jobs: Numbered jobs; taken one by one as workers become free.
        executor: Where they run; closed at the end.

    Yields:
        Number and outcome, in the order of completion.
    """
    fresh = iter(jobs)
    again: deque[tuple[int, Job]] = deque()
    flying: dict[int, Job] = {}
    losses: Counter[int] = Counter()
    try:
        while True:
            while len(flying) < executor.slots:
                following = again.popleft() if again else next(fresh, None)
                if following is None:
                    break
                number, job = following
                flying[number] = job
                executor.submit(number, job)
            if not flying:
                return
            for number, outcome in executor.wait():
                job = flying.pop(number)
                if isinstance(outcome, Lost):
                    losses[number] += 1
                    if losses[number] < ATTEMPTS:
                        again.append((number, job))
                        continue
                    outcome = Failed(f"it lost {ATTEMPTS} workers, the last one {outcome.how}")
                yield number, outcome
    finally:
        executor.close()
