"""The default schedule: micro-batches first in, first out; compute and collectives of a device share one serial stream.

Each send occupies only its sender's send stream, a KV transfer its transfer stream; a receive takes no time. The
schedule is written into the graph as ``order`` edges between consecutive calls of one device and stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...compiler.ir.graph import Node
from ...compiler.ir.unrolled import STREAMS

Ints = NDArray[np.int64]

_STREAM = {name: number for number, name in enumerate(STREAMS)}
_OFF_MAIN = {"send": "send", "kv_send": "transfer", "recv": "free", "kv_recv": "free"}


def stream_of(node: Node) -> int:
    """Index into :data:`STREAMS` of the stream that the node occupies."""
    return _STREAM[_OFF_MAIN.get(node.op, "main")]


def order_edges(unit: Ints, stage: Ints, position: Ints, stream: Ints, source: Ints, target: Ints) -> tuple[Ints, Ints]:
    """Order edges (sources, targets) between consecutive calls of a stage and stream, where dataflow has none.

    Args:
        unit: (step, item, stage) number of each call; stage by stage it grows with step and item.
        stage: Stage of each call.
        position: Place in the stage's program.
        stream: Stream of each call.
        source: Sources of the dataflow edges.
        target: Their targets.
    """
    occupied = np.flatnonzero(stream != _STREAM["free"])
    order = occupied[np.lexsort((position[occupied], unit[occupied], stage[occupied], stream[occupied]))]
    first, second = order[:-1], order[1:]
    same = (stage[first] == stage[second]) & (stream[first] == stream[second])
    previous = np.full(len(unit), -1, dtype=np.int64)
    previous[second[same]] = first[same]
    covered = previous[target] == source
    previous[target[covered]] = -1
    targets = np.flatnonzero(previous >= 0)
    return previous[targets], targets
