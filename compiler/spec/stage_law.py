"""The law of the stage: how many ranks a stage has and how each module lays its axes over them.

``R = adp * sp * tp = edp * ep * etp``; GPUs of a phase = ``dp * pp * R``. R is ``max(sp * tp, ep * etp)`` unless given.
It is the law that vLLM, SGLang, TensorRT-LLM and Megatron-core obey (attention side = expert side within one stage).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .strategy import StrategySpec


@dataclass(frozen=True)
class Degrees:
    """Degrees of one phase. ``sp_on_tp`` is the Megatron kind of sequence parallelism, without ranks of its own."""

    dp: int = 1
    pp: int = 1
    sp: int = 1
    ep: int = 1
    tp: int = 1
    etp: int = 1
    redundant: int = 0
    ranks: int = 1
    sp_on_tp: bool = False
    idle: int = 0
    """GPUs that a knowledge pack's law counts beyond those of the ranks."""

    @property
    def adp(self) -> int:
        """Attention-DP groups of a stage; meaningful where :meth:`fits`."""
        return self.ranks // (self.sp * self.tp)

    @property
    def edp(self) -> int:
        """Expert replicas of a stage."""
        return self.ranks // (self.ep * self.etp)

    @property
    def gpus(self) -> int:
        return self.dp * self.pp * self.ranks + self.idle

    def fits(self) -> bool:
        """Whether both views come out at whole numbers."""
        return self.ranks % (self.sp * self.tp) == 0 and self.ranks % (self.ep * self.etp) == 0


def degrees_of(strategy: StrategySpec, *, is_moe: bool) -> Degrees:
    """Degrees that a strategy asks for; :meth:`Degrees.fits` tells whether they are possible."""
    ep_term, sp_term = strategy.term("ep"), strategy.term("sp")
    tp = strategy.degree("tp")
    on_tp = sp_term is not None and sp_term.degree is None
    sp = strategy.degree("sp")
    ep = strategy.degree("ep")
    # A degree of 1 is absent: `ep 1` names no EP.
    names_ep = is_moe and ep > 1
    etp = ep_term.etp if is_moe and ep_term and ep_term.etp else 1 if names_ep else tp
    ranks = strategy.ranks or max(sp * tp, ep * etp)
    return Degrees(
        dp=strategy.degree("dp"),
        pp=strategy.degree("pp"),
        sp=sp,
        ep=ep,
        tp=tp,
        etp=etp,
        redundant=ep_term.redundant if ep_term else 0,
        ranks=ranks,
        sp_on_tp=on_tp,
    )


def balanced_stages(costs: Sequence[int], stages: int, *, first: int = 0, last: int = 0) -> tuple[int, ...]:
    """Layers per stage: counts that differ by one at most, the remainder where the heaviest stage stays lightest.

    Equal counts keep the compute time of prefill stages equal; the costs decide which stages take the remainder. Ties
    go to the most even costs, then to later stages.

    Args:
        costs: Cost of each layer in any unit, for instance weight bytes.
        stages: Number of stages, at most one per layer.
        first: What the first stage holds besides (the embedding), in the same unit.
        last: What the last stage holds besides (the LM head).

    Raises:
        ValueError: more stages than layers.
    """
    if not 1 <= stages <= len(costs):
        raise ValueError(f"{len(costs)} layers cannot fill {stages} stages")
    base, rest = divmod(len(costs), stages)
    sums = np.cumsum([0, *costs], dtype=np.float64)
    extra = [0] * stages
    extra[0] += first
    extra[-1] += last
    # used[u]: u stages so far have taken one layer of the remainder
    used = np.arange(rest + 1)
    starts = [np.minimum(stage * base + used, len(costs)) for stage in range(stages)]
    loads = [
        [sums[np.minimum(at + base + more, len(costs))] - sums[at] + held for more in (0, 1)]
        for at, held in zip(starts, extra, strict=True)
    ]
    heaviest = np.where(used == 0, 0.0, np.inf)
    for plain, longer in loads:
        heaviest = np.minimum(np.maximum(heaviest, plain), _shifted(np.maximum(heaviest, longer)))
    scale = max(float(heaviest[rest]), 1.0)
    squares = np.where(used == 0, 0.0, np.inf)
    takes = np.zeros((stages, rest + 1), dtype=bool)
    for stage, pair in enumerate(loads):
        plain, longer = (np.where(load <= heaviest[rest], squares + (load / scale) ** 2, np.inf) for load in pair)
        longer = _shifted(longer)
        takes[stage] = longer <= plain
        squares = np.minimum(plain, longer)
    counts: list[int] = []
    left = rest
    for stage in range(stages - 1, -1, -1):
        more = bool(takes[stage, left]) and left > 0
        counts.append(base + more)
        left -= more
    return tuple(reversed(counts))


def _shifted(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values one place on: a stage took one layer of the remainder."""
    return np.concatenate([[np.inf], values[:-1]])
