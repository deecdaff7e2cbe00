"""What the parent and the ranks' processes say to one another, pickled, over one pipe per process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...ir.unrolled import Unrolled
from ...spec import ModelSpec
from ..handover import Fetch
from ..records import PhaseRun
from ..store import Ref, Store

Caches = dict[tuple[int, int], np.ndarray]
"""KV caches of one rank before the first step, by (layer, item)."""


@dataclass(frozen=True)
class Ready:
    """A process has joined the others.

    Attributes:
        backend: gloo or nccl.
    """

    backend: str


@dataclass(frozen=True)
class MakeGroups:
    """Make process groups; every process gets the same message, in the same order.

    Attributes:
        groups: Processes of each, ascending.
        lanes: (from, to) of point-to-point messages.
    """

    groups: Sequence[tuple[int, ...]]
    lanes: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Program:
    """One phase, as one rank runs it.

    Attributes:
        unrolled: All calls; the rank executes those of its stage.
        stage: Its stage.
        rank: Its number in the stage.
        store: Its memory, with the shards of the weights.
        seeds: Versions of the cache that are there before the first step, where no node receives them.
        model: The model, which names the weights.
        dtype: Format in which it computes.
        prompts: Whole prompts [batch, prompt] by item (prefill).
        previous: Last tokens [batch] by item before the first step (decode).
    """

    unrolled: Unrolled
    stage: int
    rank: int
    store: Store
    seeds: Sequence[Ref]
    model: ModelSpec
    dtype: str
    prompts: Mapping[int, np.ndarray]
    previous: Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Job:
    """What one process does in a phase: first move KV cache, then run.

    Attributes:
        processes: Number of the process by device.
        program: None for a process that only gives away its cache.
        caches: Its caches; what is fetched is NaN as yet.
        fetches: Parts of the cache that it gives or takes, in the order that all processes keep.
    """

    processes: Mapping[int, int]
    program: Program | None
    caches: Caches
    fetches: Sequence[Fetch]


@dataclass(frozen=True)
class Done:
    """A job is done.

    Attributes:
        result: What the rank sampled, ran and moved.
        given: Shapes of the caches that KV sends gave away, by (device, layer, item).
        cached: Shapes of the versions of the cache that the rank holds.
    """

    result: PhaseRun = field(default_factory=PhaseRun)
    given: Mapping[tuple[int, int, int], tuple[int, ...]] = field(default_factory=dict)
    cached: Mapping[Ref, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stopped:
    """A job was not finished.

    Attributes:
        kind: Kind of the exception.
        text: What it says.
        fault: Whether the graph is to blame: it asks for what is not there, or its arrays do not fit.
    """

    kind: str
    text: str
    fault: bool
