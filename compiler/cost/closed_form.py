"""Closed forms of the schedule that the DAG's critical path obeys.

A stage is a server that takes items first in, first out; a send is a server of its own between two stages. All
functions work on arrays: leading dimensions may run over strategies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pipeline_makespan(times: Floats) -> Floats:
    """Time at which the last item leaves the last server.

    Args:
        times: [..., items, servers] seconds of item j at server s: stages and sends in order.

    The recurrence is ``C[j, s] = max(C[j-1, s], C[j, s-1]) + t[j, s]``. With equal items it equals the sum over the
    servers plus (items - 1) times the slowest (:func:`equal_items_makespan`).
    """
    items, servers = times.shape[-2:]
    found = [_last_done(one, servers) for one in times.reshape(-1, items, servers).tolist()]
    return np.array(found, dtype=np.float64).reshape(times.shape[:-2])


def _last_done(times: list[list[float]], servers: int) -> float:
    """The makespan of one pipeline, in plain numbers: an array of one number per step would cost more."""
    done = [0.0] * servers
    for item in times:
        before = 0.0
        for server, seconds in enumerate(item):
            before = max(done[server], before) + seconds
            done[server] = before
    return done[-1]


def equal_items_makespan(times: Floats, items: Floats | int) -> Floats:
    """Makespan of ``items`` equal micro-batches; ``times`` is [..., servers]."""
    total: Floats = times.sum(axis=-1) + (np.asarray(items) - 1) * times.max(axis=-1)
    return total


def decode_interval(times: Floats, items: Floats | int) -> Floats:
    """Steady interval between successive step ends of one micro-batch.

    ``max(sum of stages, sends and token return, items x slowest)``; ``times`` is [..., servers], the token return
    among them.
    """
    interval: Floats = np.maximum(times.sum(axis=-1), np.asarray(items) * times.max(axis=-1))
    return interval


def decode_makespan(times: Floats) -> Floats:
    """Time at which the last step of the last micro-batch ends on the last stage.

    Args:
        times: [steps, items, servers]; the last server is the token return, which the last step does not use. A
            single-stage pipeline has no sends and no return, so its servers are one.

    ``C[t, j, s] = max(C[t, j-1, s], C[t, j, s-1], C[t-1, j, last] if s = 0) + t[t, j, s]``, a server taking (step,
    item) in order.
    """
    steps, items, servers = times.shape
    busy = np.zeros(servers)
    returned = np.zeros(items)
    finished = 0.0
    for step in range(steps):
        for item in range(items):
            before = returned[item]
            for server in range(servers):
                before = max(busy[server], before) + times[step, item, server]
                busy[server] = before
                if server == max(0, servers - 2):
                    finished = max(finished, before)
            returned[item] = before
    return np.float64(finished)  # type: ignore[return-value]
