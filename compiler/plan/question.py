"""What a search is asked, and how far it looks where the file sets no bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.typing import NDArray

from ..build import decode_context
from ..cost import Hardware, resolve_hardware
from ..spec import Assumption, LoadedSpec, Spec
from ..spec.counts import kv_bytes_per_token, parameters
from ..spec.dtypes import dtype
from ..spec.pack_law import stated
from ..spec.strategy import Phase
from .result import Objective
from .space import COARSE, CONTINUOUS, FINE_GPUS, Bounds, Law

Floats = NDArray[np.float64]

Progress = Callable[[str], None]
"""Told what is being done."""

MOST_GPUS = 64
"""GPUs that `nodes any` is searched up to, unless asked otherwise or the weights need more."""

MOST_RANKS = 512
"""Ranks of a stage that are tried up to: more GPUs are more stages and replicas."""

MOST_BATCH = 4096
"""Sequences in flight that are tried up to where the file gives no batch."""

MOST_PROMPT_TOKENS = 1 << 18
"""Tokens of the prompts that enter prefill together, at most; a single prompt may be longer."""


class Question:
    """One deployment condition, with everything that the search takes for granted.

    Attributes:
        spec: The request.
        objective: What is optimised.
        top: How many deployments are told.
        law: The GPU-count law.
        bounds: Where the search of schedules stops.
        hardware: GPU and links.
        context: Tokens per sequence of the costed decode step.
        gpus: Most GPUs.
        ranks: Most ranks of a stage.
        phases: Phases that are planned.
        continuous: Whether requests come and go one by one (``mode mixed``, and where no batch is given), so that
            prompts enter prefill a few at a time while others decode. Else all are prefilled, then all decode.
        batches: Sequences in flight that are tried: over all replicas, or of one replica of a continuous batch.
        prompts: Sequences of one prefill step of a replica that are tried, of a continuous batch.
        capacity: Bytes of a GPU.
        assumptions: What is taken for the user.
        began: When the search began, as ``time.perf_counter`` tells.
    """

    def __init__(
        self,
        loaded: LoadedSpec,
        objective: Objective | None,
        *,
        top: int,
        max_gpus: int | None,
        law: Law | None,
        bounds: Bounds | None,
        hardware: Hardware | None,
        context: int | None,
    ) -> None:
        self.began = time.perf_counter()
        self.spec = loaded.spec
        self.top, self.law = max(1, top), law or Law()
        known, assumed = resolve_hardware(self.spec.cluster, self.spec.model.dtype, pack=self.spec.pack)
        self.hardware = hardware or known
        self.assumptions: list[Assumption] = [*loaded.assumptions, *assumed, *stated(self.spec.pack)]
        work = self.spec.workload
        self.context = context or decode_context(self.spec)
        self.objective: Objective = objective or ("latency" if work.require.ttft is None else "throughput")
        self.capacity = self.hardware.memory
        self.gpus, made = gpus_searched(self.spec, self.capacity, max_gpus)
        self.assumptions += made
        self.ranks = min(self.gpus, MOST_RANKS)
        if self.ranks < self.gpus:
            why = "more GPUs than that are more stages and replicas"
            self.assumptions.append(Assumption("ranks of a stage", f"up to {self.ranks}", why))
        self.phases: tuple[Phase, ...] = tuple(p for p in ("prefill", "decode") if work.mode in ("both", "mixed", p))
        self.continuous = len(self.phases) == 2 and (work.mode == "mixed" or work.batch is None)
        self.batches, made = self._batches()
        self.assumptions += made
        most = max(1, min(max(self.batches), MOST_PROMPT_TOKENS // work.input))
        self.prompts = tuple(1 << shift for shift in range(most.bit_length()) if self.continuous)
        fine = Bounds() if work.batch is not None and self.gpus <= FINE_GPUS else COARSE
        self.bounds = bounds or (CONTINUOUS if self.continuous else fine)

    def assume(self, assumption: Assumption) -> None:
        """State what is taken for the user, once."""
        if assumption not in self.assumptions:
            self.assumptions.append(assumption)

    def limit(self, phase: Phase) -> float | None:
        """Required TTFT or TPOT."""
        require = self.spec.workload.require
        return require.ttft if phase == "prefill" else require.tpot

    def met(self, ttft: Floats, tpot: Floats, *, strict: bool) -> NDArray[np.bool_]:
        """What meets the required latencies; everything where they are not asked for, or not ``strict``."""
        good = np.ones(len(ttft), dtype=bool)
        for limit, value in ((self.limit("prefill"), ttft), (self.limit("decode"), tpot)):
            if strict and limit is not None:
                good &= value <= limit
        return good

    def asked(self, batch: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which batches are the file's, where it gives one."""
        given = self.spec.workload.batch
        return np.ones(len(batch), dtype=bool) if given is None else np.asarray(batch == given)

    def kept(self, phase: Phase) -> tuple[int, int]:
        """Tokens per sequence that the cache holds: in a pool of its own, and on GPUs of both phases."""
        work = self.spec.workload
        both = work.input + work.output
        return (work.input if phase == "prefill" else both), both

    @property
    def per_gpu(self) -> bool:
        """Whether GPUs are as many as wanted, so that throughput counts per GPU."""
        return self.spec.cluster.nodes is None

    def _batches(self) -> tuple[tuple[int, ...], list[Assumption]]:
        """Batches that are tried, and what was assumed: the file's, or as many sizes as caches can fit."""
        work = self.spec.workload
        if work.batch is not None and not self.continuous:
            return (work.batch,), []
        if work.batch is not None:
            return tuple(sorted({work.batch // dp for dp in range(1, self.gpus + 1) if work.batch % dp == 0})), []
        per_sequence = max(1, kv_bytes_per_token(self.spec.model)) * (work.input + work.output)
        most = max(1, min(MOST_BATCH, int(self.gpus * self.capacity / per_sequence)))
        found = _sizes(most, (4, 5, 6, 7) if self.continuous else (2, 3))
        whose = " of a replica" if self.continuous else ""
        why = "the file gives none" + ("; requests come and go one by one" if self.continuous else "")
        return found, [Assumption("batch", f"searched over {len(found)} sizes{whose} from 1 to {found[-1]}", why)]


def _sizes(most: int, steps: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes from 1 up to ``most``: the steps times powers of two, and those halved as long as they are whole."""
    found = {step << shift for step in steps for shift in range(most.bit_length())} | set(range(1, steps[0]))
    return tuple(sorted(size for size in found if size <= most))


def gpus_searched(spec: Spec, memory: float, asked: int | None) -> tuple[int, list[Assumption]]:
    """Most GPUs that the search may use, and what was assumed for it.

    Args:
        spec: The request.
        memory: Bytes of a GPU.
        asked: Most GPUs that the user allows, if any.
    """
    cluster, model = spec.cluster, spec.model
    if cluster.gpus is not None:
        return (min(cluster.gpus, asked) if asked else cluster.gpus), []
    if asked:
        return asked, []
    least = parameters(model) * min(dtype(model.dtype).bytes, dtype(model.expert_dtype).bytes)
    nodes = ceil(2 * least / memory / cluster.gpus_per_node)
    bound = max(MOST_GPUS, nodes * cluster.gpus_per_node)
    return bound, [Assumption("GPUs searched", f"up to {bound}", "`nodes any` sets no limit; `--max-gpus` moves it")]
