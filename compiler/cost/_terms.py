"""What a cost function returns: seconds by cause, over arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..ir.types import Number


class Terms(NamedTuple):
    """Seconds of one kernel or collective.

    Attributes:
        time: All of it. Causes overlap, so this is at most their sum.
        compute: Arithmetic.
        memory: Device memory traffic.
        network: Link traffic.
        latency: What an empty call takes.
        ideal: Link traffic at datasheet bandwidth.
    """

    time: Number
    compute: Number = 0.0
    memory: Number = 0.0
    network: Number = 0.0
    latency: Number = 0.0
    ideal: Number = 0.0


def smooth_max(first: Number, second: Number, exponent: float) -> Number:
    """``(a^p + b^p)^(1/p)``: the sum at exponent 1, the maximum in the limit; increasing in both."""
    largest = np.maximum(np.maximum(first, second), 1e-30)
    return largest * (1 + (np.minimum(first, second) / largest) ** exponent) ** (1 / exponent)
