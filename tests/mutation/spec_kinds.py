"""Damage to strategies: chains, degrees, stages, work, machines."""

from __future__ import annotations

import random
from math import ceil
from typing import Any

from paradag.compiler.build.items import replica_batch
from paradag.compiler.ir.graph import Phase
from paradag.compiler.spec import ChainTerm, Spec, StrategySpec
from paradag.tests.mutation.damage import Damage, NoPlace, pick

_ORDER = ("dp", "pp", "sp", "ep", "tp")


def kind(
    name: str, codes: str, apply: Any, *, phases: tuple[Phase, ...] = (), must: str = "", repaired: bool = True
) -> Damage[Spec]:
    """A kind of damage; codes and needs as words."""
    wanted = phases or ("prefill", "decode")
    return Damage(name, frozenset(codes.split()), apply, repaired, wanted, frozenset(must.split()))


def changed(spec: Spec, rng: random.Random, change: Any) -> Spec:
    """The spec with one strategy changed."""
    index = rng.randrange(len(spec.strategies))
    new = change(spec.strategies[index])
    strategies = tuple(new if i == index else s for i, s in enumerate(spec.strategies))
    return spec.model_copy(update={"strategies": strategies})


def chain(spec: Spec, rng: random.Random, change: Any) -> Spec:
    """The spec with the terms of one chain changed."""
    return changed(spec, rng, lambda s: s.model_copy(update={"chain": tuple(change(list(s.chain)))}))


def degree(name: str, of: Any) -> Any:
    """A damage that gives a term another degree."""

    def apply(spec: Spec, rng: random.Random) -> Spec:
        def change(terms: list[ChainTerm]) -> list[ChainTerm]:
            if not any(t.name == name and t.degree for t in terms):
                raise NoPlace
            new = of(spec, rng)
            return [t.model_copy(update={"degree": new}) if t.name == name else t for t in terms]

        return chain(spec, rng, change)

    return apply


def _unknown(spec: Spec, rng: random.Random) -> Spec:
    term = ChainTerm(name=rng.choice(("cp", "vp", "zero", "fsdp", "xp")), degree=2)

    def change(terms: list[ChainTerm]) -> list[ChainTerm]:
        terms.insert(rng.randint(0, len(terms)), term)
        return terms

    return chain(spec, rng, change)


def _inverted(spec: Spec, rng: random.Random) -> Spec:
    def change(terms: list[ChainTerm]) -> list[ChainTerm]:
        if len(terms) < 2:
            raise NoPlace
        first, second = sorted(rng.sample(range(len(terms)), 2))
        terms[first], terms[second] = terms[second], terms[first]
        return terms

    return chain(spec, rng, change)


def _twice(spec: Spec, rng: random.Random) -> Spec:
    def change(terms: list[ChainTerm]) -> list[ChainTerm]:
        return [*terms, pick(rng, terms)]

    return chain(spec, rng, change)


def _sp_in_decode(spec: Spec, rng: random.Random) -> Spec:
    def change(terms: list[ChainTerm]) -> list[ChainTerm]:
        sp = ChainTerm(name="sp", degree=2)
        at = next((i for i, t in enumerate(terms) if _ORDER.index(t.name) > _ORDER.index("sp")), len(terms))
        return [*terms[:at], sp, *terms[at:]]

    return chain(spec, rng, change)


def _too_many_stages(spec: Spec, rng: random.Random) -> int:
    return spec.model.layers.count + rng.randint(1, 4)


def _layers(*, more: int, twisted: bool = False) -> Any:
    """Layers per stage that add up to ``more`` than there are, or as unequal as they can be."""

    def apply(spec: Spec, rng: random.Random) -> Spec:
        def change(terms: list[ChainTerm]) -> list[ChainTerm]:
            pp = next((t for t in terms if t.name == "pp"), None)
            if pp is None or pp.degree is None:
                raise NoPlace
            layers = [1] * pp.degree
            layers[rng.randrange(len(layers))] += spec.model.layers.count - pp.degree + more
            if twisted and max(layers) - min(layers) < 2:
                raise NoPlace
            return [t.model_copy(update={"layers": tuple(layers)}) if t is pp else t for t in terms]

        return chain(spec, rng, change)

    return apply


def _ranks(spec: Spec, rng: random.Random) -> Spec:
    def change(strategy: StrategySpec) -> StrategySpec:
        side = strategy.degree("tp") * strategy.degree("sp")
        if side < 2:
            raise NoPlace
        return strategy.model_copy(update={"ranks": side * rng.randint(1, 4) + 1})

    return changed(spec, rng, change)


def _microbatches(spec: Spec, rng: random.Random) -> Spec:
    most = spec.workload.batch or 1
    return changed(spec, rng, lambda s: s.model_copy(update={"microbatches": most + rng.randint(1, 9)}))


def _small_cluster(spec: Spec, rng: random.Random) -> Spec:
    return spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"nodes": 1, "gpus_per_node": 1})})


def _ep_in_dense(spec: Spec, rng: random.Random) -> Spec:
    def change(terms: list[ChainTerm]) -> list[ChainTerm]:
        at = next((i for i, t in enumerate(terms) if t.name == "tp"), len(terms))
        return [*terms[:at], ChainTerm(name="ep", degree=2), *terms[at:]]

    return chain(spec, rng, change)


def _chunk(spec: Spec, rng: random.Random) -> Spec:
    def change(strategy: StrategySpec) -> StrategySpec:
        sequences = ceil(replica_batch(spec, strategy) / strategy.microbatches)
        if sequences < 2:
            raise NoPlace
        return strategy.model_copy(update={"chunk": rng.randint(1, sequences - 1)})

    return changed(spec, rng, change)


def _short_input(spec: Spec, rng: random.Random) -> Spec:
    degrees = [s.degree("sp") for s in spec.strategies]
    if max(degrees) < 2:
        raise NoPlace
    strategies = tuple(s.model_copy(update={"chunk": None}) for s in spec.strategies)
    workload = spec.workload.model_copy(update={"input": rng.randint(1, max(degrees) - 1)})
    return spec.model_copy(update={"workload": workload, "strategies": strategies})


def _memory(spec: Spec, rng: random.Random) -> Spec:
    """An accelerator with a few bytes."""
    chip = spec.cluster.accelerator.model_copy(update={"memory": float(rng.randint(1, 100))})
    return spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"accelerator": chip})})


PREFILL: tuple[Phase, ...] = ("prefill",)
DECODE: tuple[Phase, ...] = ("decode",)

SPEC_KINDS: tuple[Damage[Spec], ...] = (
    kind("unknown dimension", "PD201", _unknown, repaired=False),
    kind("inverted hierarchy", "PD202", _inverted, must="pp tp"),
    kind("dimension given twice", "PD203", _twice, must="tp"),
    kind("SP in decode", "PD204", _sp_in_decode, phases=DECODE, repaired=False),
    kind("ranks that hold no whole groups", "PD205", _ranks, must="tp"),
    kind("more GPUs than the cluster has", "PD207", _small_cluster, must="tp"),
    kind("EP in a dense model", "PD209", _ep_in_dense, must="dense"),
    kind("heads not divisible by TP", "PD211", degree("tp", lambda s, r: s.model.attention.heads + 1), must="tp"),
    kind("experts not divisible by EP", "PD215", degree("ep", lambda s, r: s.model.moe.experts - 1), must="ep"),
    kind("more stages than layers", "PD216", degree("pp", _too_many_stages), must="pp"),
    kind("stages with a layer too many", "PD216", _layers(more=1), must="pp"),
    kind("unbalanced stages", "PD221", _layers(more=0, twisted=True), must="pp", repaired=False),
    kind("more token shards than tokens", "PD217", _short_input, phases=PREFILL, must="sp"),
    kind("more micro-batches than sequences", "PD218", _microbatches),
    kind("chunk smaller than the micro-batch", "PD220", _chunk, phases=PREFILL),
    kind("over memory", "PD301", _memory, must="moe", repaired=False),
)
