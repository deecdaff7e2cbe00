"""Memory-bound operators: norms, additions, activations, look-ups, the KV cache's append."""

from __future__ import annotations

from ..ir.types import Number
from ..spec.calibration import StreamingParameters
from ._terms import Terms


def streaming_time(bytes_moved: Number, *, bandwidth: Number, parameters: StreamingParameters) -> Terms:
    """Seconds of a kernel that only reads and writes: ``latency + bytes / (bandwidth * efficiency)``.

    Args:
        bytes_moved: Bytes read and written.
        bandwidth: Memory bytes per second, datasheet.
        parameters: Fitted figures.
    """
    memory = bytes_moved / (bandwidth * parameters.bandwidth_efficiency)
    return Terms(parameters.latency_s + memory, memory=memory, latency=parameters.latency_s)
