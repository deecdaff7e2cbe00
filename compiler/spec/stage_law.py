"""The law of the stage: how many ranks a stage has and how each module lays its axes over them.

``R = adp * sp * tp = edp * ep * etp``; GPUs of a phase = ``dp * pp * R``. R is ``max(sp * tp, ep * etp)`` unless given.
It is the law that vLLM, SGLang, TensorRT-LLM and Megatron-core obey (attention side = expert side within one stage).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

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
    loads = _loads(costs, stages, first, last)
    # heaviest[u], squares[u]: so far u stages have taken one layer of the remainder
    heaviest = [0.0] + [inf] * rest
    for plain, longer in loads:
        longer_first = [inf, *(max(h, load) for h, load in zip(heaviest, longer, strict=True))]
        heaviest = [min(max(h, load), other) for h, load, other in zip(heaviest, plain, longer_first, strict=False)]
    limit = heaviest[rest]
    scale = max(float(limit), 1.0)
    squares = [0.0] + [inf] * rest
    takes: list[list[bool]] = []
    for pair in loads:
        plain, longer = (
            [
                total + (load / scale) * (load / scale) if load <= limit else inf
                for total, load in zip(squares, each, strict=True)
            ]
            for each in pair
        )
        takes.append([b <= a for a, b in zip(plain, [inf, *longer], strict=False)])
        squares = [min(a, b) for a, b in zip(plain, [inf, *longer], strict=False)]
    counts: list[int] = []
    left = rest
    for stage in range(stages - 1, -1, -1):
        more = left > 0 and takes[stage][left]
        counts.append(base + more)
        left -= more
    return tuple(reversed(counts))


def _loads(costs: Sequence[int], stages: int, first: int, last: int) -> list[tuple[list[float], list[float]]]:
    """Of each stage, what it costs without and with a layer of the remainder, by how many stages before took one."""
    base, rest = divmod(len(costs), stages)
    # one more at the end: where all of the remainder is taken, nothing is left to be longer by
    sums = [float(total) for total in (*accumulate(costs, initial=0), sum(costs))]
    found = []
    for stage in range(stages):
        held = first * (stage == 0) + last * (stage == stages - 1)
        begins = sums[stage * base : stage * base + rest + 1]
        ends = sums[(stage + 1) * base : (stage + 1) * base + rest + 2]
        plain = [end - begin + held for begin, end in zip(begins, ends, strict=False)]
        found.append((plain, [end - begin + held for begin, end in zip(begins, ends[1:], strict=True)]))
    return found
