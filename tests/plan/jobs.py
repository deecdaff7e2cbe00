"""Work for sweeps, in a module that workers can import: squares, and what may befall a worker on the way to one."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from time import sleep


@dataclass(frozen=True)
class Square:
    """A number to square.

    Attributes:
        number: The number.
        deaths: Workers that are killed by this job before one ends it, counted by files in ``folder``.
        folder: Seen by all attempts.
        fault: What the work raises.
        seconds: How long it takes.
    """

    number: int
    deaths: int = 0
    folder: Path = Path()
    fault: str = ""
    seconds: float = 0.0


def square(job: Square) -> int:
    """The work."""
    for death in range(job.deaths):
        mark = job.folder / f"{job.number}-{death}"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if job.fault:
        raise RuntimeError(job.fault)
    sleep(job.seconds)
    return job.number**2
