"""The process that imports torch once and forks the ranks' processes from there.

Started by :mod:`.pool` as ``python -m paradag.compiler.run.torch_engine.host``. Forking is safe here: nothing has
started a thread, opened a socket or touched a GPU before the fork. The host ends its children when the parent is gone,
and tells it how each of them ended.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

_TICK_S = 0.05
"""How long a child may be dead before it is noticed, in seconds."""


def main(text: str) -> int:
    """Run the host.

    Args:
        text: JSON: ``control``, ``lifeline`` and ``links`` are file descriptors, ``folder`` a path, ``timeout_s``
            seconds.
    """
    settings = json.loads(text)
    # Ctrl-C reaches the whole terminal group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control: Connection = Connection(settings["control"], readable=False)
    try:
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_gloo_available()):
            raise ImportError("this build of torch has no gloo")
        from .worker import serve
    except (ImportError, OSError) as missing:
        control.send(("missing", f"{missing}"))
        return 1
    children: dict[int, int] = {}
    links: list[int] = settings["links"]
    folder = Path(settings["folder"])
    for process, link in enumerate(links):
        child = os.fork()
        if not child:
            code = 1
            try:
                control.close()
                for other in links[:process] + links[process + 1 :]:
                    _close(other)
                _write_to(folder / f"rank{process}.log")
                serve(process, len(links), Connection(link), settings["lifeline"], folder, settings["timeout_s"])
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                # without the exit handlers of the host, which are not the child's
                sys.stderr.flush()
                os._exit(code)
        children[child] = process
    for link in links:
        _close(link)
    control.send(("started", {process: child for child, process in children.items()}))
    _watch(children, control, settings["lifeline"])
    select.select([settings["lifeline"]], [], [])
    # the parent may not be there any more to do it
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _watch(children: dict[int, int], control: Connection, lifeline: int) -> None:
    """Until all children have ended; those that are left when the parent goes are ended."""
    while children:
        gone, _, _ = select.select([lifeline], [], [], _TICK_S)
        for child in children if gone else ():
            os.kill(child, signal.SIGKILL)
        while children:
            child, status = os.waitpid(-1, 0 if gone else os.WNOHANG)
            if not child:
                break
            process = children.pop(child)
            try:
                control.send(("ended", process, os.waitstatus_to_exitcode(status)))
            except OSError:
                gone = [lifeline]


def _write_to(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:
        return


if __name__ == "__main__":
    # all children are gone; taking torch apart again would only take time
    os._exit(main(sys.argv[1]))
