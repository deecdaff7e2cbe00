"""A spec small enough to be run, of the same structure: what divides keeps dividing, what is uneven stays uneven."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import lcm
from typing import Any

from ..spec import Spec, StrategySpec
from ..spec.stage_law import Degrees, degrees_of
from ..spec.strategy import ChainTerm, Phase
from ._shrink_degrees import shrink_degrees
from ._shrink_model import shrink_model, slots_of
from .report import Change

MAX_RANKS = 512
"""Ranks of one phase above which degrees shrink too, unless asked otherwise."""

_SMALL = {"hidden": 64, "vocab": 512, "tokens": 1024, "layers": 8, "heads": 128, "experts": 64}
"""Sizes up to which a spec is run as it is."""


def shrink(
    spec: Spec, stages: Mapping[Phase, Sequence[int]], max_ranks: int = MAX_RANKS, *, whole: bool = False
) -> tuple[Spec, tuple[Change, ...]]:
    """The spec with small dimensions, few layers, few sequences and few tokens; degrees are kept where they may be.

    One data-parallel replica is left (replicas exchange nothing), and one new token, so that decode follows the prompt.

    Args:
        spec: Legal spec.
        stages: Layers of each pipeline stage, by phase.
        max_ranks: Ranks of a phase up to which its degrees are kept.
        whole: Whether to keep the model, the work and all degrees, and drop data parallelism only.

    Returns:
        The small spec and what was changed.
    """
    before = {s.phase: degrees_of(s, is_moe=spec.model.moe is not None) for s in spec.strategies}
    after = {p: replace(d, dp=1) for p, d in before.items()} if whole else shrink_degrees(before, spec.model, max_ranks)
    work = _Work.of(spec, before, after)
    if whole or (_is_small(spec) and all(_same_ranks(before[p], after[p]) for p in before)):
        model, layers = spec.model, {p: tuple(stages[p]) for p in before}
        strategies = tuple(
            _rewritten(s, after[s.phase], layers[s.phase], s.microbatches, s.chunk) for s in spec.strategies
        )
        batch = max(-(-(spec.workload.batch or 1) // d.dp) for d in before.values())
        prompt = spec.workload.input
    else:
        model, layers, after = shrink_model(spec, stages, before, after)
        batch = work.batch()
        prompt, steps = work.tokens()
        strategies = tuple(
            _rewritten(s, after[s.phase], layers[s.phase], work.microbatches[s.phase],
                       steps[s.phase] * -(-batch // work.microbatches[s.phase]) if s.phase in steps else None)
            for s in spec.strategies
        )  # fmt: skip
    workload = spec.workload.model_copy(
        update={"batch": batch, "input": prompt, "output": 1, "sequence": None, "rate": None}
    )
    model = model.model_copy(update={"max_context": None, "weights": None})
    cluster = spec.cluster.model_copy(update={"nodes": None})
    small = Spec(model=model, cluster=cluster, workload=workload, strategies=strategies)
    return small, tuple(_changes(spec, small, stages, layers))


def _is_small(spec: Spec) -> bool:
    m, w = spec.model, spec.workload
    sizes = {
        "hidden": m.hidden,
        "vocab": m.vocab,
        "tokens": (w.batch or 1) * w.input,
        "layers": m.layers.count,
        "heads": m.attention.heads,
        "experts": m.moe.experts if m.moe else 0,
    }
    return all(sizes[name] <= _SMALL[name] for name in sizes) and max(m.ffn or 0, m.moe.ffn if m.moe else 0) <= 256


def _same_ranks(before: Degrees, after: Degrees) -> bool:
    return (before.pp, before.ranks, before.tp, before.ep) == (after.pp, after.ranks, after.tp, after.ep)


def _rewritten(
    strategy: StrategySpec, d: Degrees, layers: Sequence[int], microbatches: int, chunk: int | None
) -> StrategySpec:
    """The strategy with other degrees."""
    degrees = {"pp": d.pp, "sp": d.sp, "ep": d.ep, "tp": d.tp}
    chain = []
    for term in strategy.chain:
        if term.name == "dp":
            continue
        update: dict[str, Any] = {} if term.degree is None else {"degree": degrees[term.name]}
        if term.name == "pp":
            update["layers"] = tuple(layers)
        if term.name == "ep":
            update |= {"etp": d.etp if term.etp else None, "redundant": d.redundant}
        chain.append(ChainTerm.model_validate({**term.model_dump(), **update}))
    law = degrees_of(strategy.model_copy(update={"chain": tuple(chain), "ranks": None}), is_moe=True).ranks
    return strategy.model_copy(
        update={
            "chain": tuple(chain),
            "ranks": d.ranks if strategy.ranks or law != d.ranks else None,
            "microbatches": microbatches,
            "chunk": chunk,
        }
    )


# --- the work ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """Into how many parts the sequences of a micro-batch, or the tokens of a sequence, are cut; before and after."""

    before: int
    after: int

    def alike(self, before: int, after: int) -> bool:
        """Whether a size is cut in the same way before and after: evenly or not, with or without empty parts."""
        same = (before % self.before == 0) == (after % self.after == 0)
        return same and (before >= self.before) == (after >= self.after)


@dataclass(frozen=True)
class _Work:
    """Sequences and tokens of a spec, and what they must go on dividing by."""

    spec: Spec
    degrees: Mapping[Phase, tuple[Degrees, Degrees]]
    microbatches: Mapping[Phase, int]

    @classmethod
    def of(cls, spec: Spec, before: Mapping[Phase, Degrees], after: Mapping[Phase, Degrees]) -> _Work:
        """The work of a spec."""
        few = {s.phase: min(s.microbatches, max(2, after[s.phase].pp)) for s in spec.strategies}
        return cls(spec, {p: (before[p], after[p]) for p in before}, few)

    def batch(self) -> int:
        """Sequences of the small spec."""
        wanted = [
            (s.microbatches, self.microbatches[s.phase], self._replica(s), self._cut(s.phase, "batch"))
            for s in self.spec.strategies
        ]
        least = max(few * min(2, whole // many) for many, few, whole, _ in wanted)
        for relaxed in (False, True):
            for size in range(least, 4 * lcm(*(few * cut.after for _, few, _, cut in wanted)) + 1):
                if all(
                    relaxed or ((whole % many == 0) == (size % few == 0) and cut.alike(whole // many, size // few))
                    for many, few, whole, cut in wanted
                ):
                    return size
        return least

    def tokens(self) -> tuple[int, dict[Phase, int]]:
        """Prompt tokens of the small spec, and tokens per sequence and chunk of the phases that run in chunks."""
        window = 3 + 2  # a sliding layer must lose some tokens of the prompt, see shrink_model
        prefill = self.spec.strategy("prefill")
        least = max(6, window)
        if prefill is None:
            return least, {}
        cut, whole = self._cut("prefill", "seq"), self.spec.workload.input
        least = max(least, 2 * self.degrees["prefill"][1].sp)
        sequences = -(-self._replica(prefill) // prefill.microbatches)
        step = max(1, prefill.chunk // sequences) if prefill.chunk else whole
        if step >= whole:
            return next(n for n in count(least) if cut.alike(whole, n) or n > least + 4 * cut.after), {}
        small = next(n for n in count(max(2, least // 2)) if cut.alike(step, n) or n > least + 4 * cut.after)
        prompt = 2 * small if whole % step == 0 else 3 * small - 1
        return prompt, {"prefill": small}

    def _replica(self, strategy: StrategySpec) -> int:
        return -(-(self.spec.workload.batch or 1) // strategy.degree("dp"))

    def _cut(self, phase: Phase, dim: str) -> _Cut:
        """How finely attention DP, SP and the routing of tokens cut sequences or tokens."""
        return _Cut(*(_parts(d, phase, dim) for d in self.degrees[phase]))


def _parts(d: Degrees, phase: str, dim: str) -> int:
    # Routed tokens are cut over every rank of ep x edp; what attention has not cut, a TP group shares out.
    routed = min(d.tp, max(1, d.ep * d.edp // (d.adp * d.sp))) if d.ep > 1 or d.edp > 1 else 1
    if dim == "batch":
        return d.adp * (routed if phase == "decode" else 1)
    return d.sp * max(routed, d.tp if d.sp_on_tp else 1)


# --- what was changed -------------------------------------------------------------------------------------------------


def _changes(
    before: Spec, after: Spec, stages: Mapping[Phase, Sequence[int]], layers: Mapping[Phase, Sequence[int]]
) -> Iterator[Change]:
    old, new = _facts(before), _facts(after)
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name) and name not in ("model.max_context", "model.weights"):
            yield Change(name, _text(old.get(name)), _text(new.get(name)))
    for phase, each in stages.items():
        if len(each) > 1 and tuple(each) != tuple(layers[phase]):
            yield Change(f"{phase}.stages", _text(tuple(each)), _text(tuple(layers[phase])))


def _facts(spec: Spec) -> dict[str, Any]:
    """Sizes by dotted name."""
    facts: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        else:
            facts[prefix] = value

    walk("model", spec.model.model_dump())
    walk("workload", spec.workload.model_dump(include={"batch", "input", "output"}))
    for s in spec.strategies:
        d = degrees_of(s, is_moe=spec.model.moe is not None)
        names = ("dp", "pp", "sp", "ep", "tp", "etp", "redundant", "ranks")
        facts |= {f"{s.phase}.{n}": getattr(d, n) for n in names}
        facts |= {f"{s.phase}.adp": d.adp, f"{s.phase}.edp": d.edp, f"{s.phase}.microbatches": s.microbatches}
        facts |= {f"{s.phase}.chunk": s.chunk, f"{s.phase}.slots": slots_of(spec.model, d)}
    return facts


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
