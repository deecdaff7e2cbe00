"""What enters a phase that is executed, and what its execution gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Sampled:
    """What one rank of the last stage samples from.

    Attributes:
        item: Pipeline item.
        step: Decode step.
        rows: Sequences of the item that the rank holds.
        logits: [sequences, vocabulary].
        ids: Tokens chosen.
    """

    item: int
    step: int
    rows: slice
    logits: np.ndarray
    ids: np.ndarray


@dataclass
class Moved:
    """Bytes of one kind of communication.

    Attributes:
        sent: Bytes that reached another rank, counted on the arrays, in the formats of the graph.
        payload: Bytes in the input buffers, a rank's own share included.
        count: Collectives or messages, one per call.
        uneven: How many of them had ranks with less than the fullest one.
    """

    sent: float = 0.0
    payload: float = 0.0
    count: int = 0
    uneven: int = 0


@dataclass
class PhaseRun:
    """What the execution of a phase gave.

    Attributes:
        sampled: Per rank that samples, item and step.
        calls: Calls executed (nodes x steps x items x layers).
        ops: Executions of a node on a rank.
        moved: Bytes by call, for calls that communicate.
    """

    sampled: list[Sampled] = field(default_factory=list)
    calls: int = 0
    ops: int = 0
    moved: dict[int, Moved] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """What enters a phase from outside, per rank of a stage.

    Attributes:
        prompts: Prompt ids [batch, prompt] of an item, whole (prefill).
        previous: Last token [batch] of an item before the first step, whole (decode).
        received: KV cache that a ``kv_recv`` delivers to a device: (device, layer, item) to array (decode).
    """

    prompts: Callable[[int], np.ndarray] | None = None
    previous: Callable[[int], np.ndarray] | None = None
    received: Callable[[int, int, int], np.ndarray] | None = None
