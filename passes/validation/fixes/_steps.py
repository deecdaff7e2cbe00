"""Elementary changes of a spec: what a repair may do. Every one sets a value and does nothing when done again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ....compiler.spec import ChainTerm, Spec, StrategySpec
from ....compiler.spec.strategy import Phase
from .._chain_rules import ORDER

Change = Callable[[StrategySpec], StrategySpec]


class Kind(IntEnum):
    """Kinds of repair, the most welcome first."""

    INSERT = 1
    """The missing thing is added, or what means nothing is taken out."""
    REDUCE = 2
    """A parallel degree is reduced."""
    CHANGE = 3
    """The strategy becomes another: a dimension more, another kind."""
    WORKLOAD = 4
    """The work is reduced; only where the user asks for it."""


@dataclass(frozen=True)
class Candidate:
    """A possible repair of one fault.

    Attributes:
        kind: How welcome it is.
        change: On the strategies that it concerns; the identity where only the workload changes.
        phases: Whose strategies; None for those of the block that holds the fault.
        batch: Sequences in flight, where the workload changes.
    """

    kind: Kind
    change: Change
    phases: tuple[Phase, ...] | None = None
    batch: int | None = None


@dataclass(frozen=True)
class Step:
    """A repair that was chosen: the rule that asked for it, and whose strategies it changes how."""

    rule: str
    kind: Kind
    phases: tuple[Phase, ...]
    change: Change
    batch: int | None = None

    def apply(self, spec: Spec) -> Spec:
        """The spec with the step done; parts that it does not touch stay the same objects."""
        strategies = tuple(self.change(s) if s.phase in self.phases else s for s in spec.strategies)
        update: dict[str, Any] = {"strategies": strategies}
        if self.batch is not None:
            update["workload"] = spec.workload.model_copy(update={"batch": self.batch})
        return spec.model_copy(update=update)


def same(strategy: StrategySpec) -> StrategySpec:
    """No change."""
    return strategy


def together(*changes: Change) -> Change:
    """One change after the other."""

    def change(strategy: StrategySpec) -> StrategySpec:
        for each in changes:
            strategy = each(strategy)
        return strategy

    return change


def set_options(**values: Any) -> Change:
    """Options of the strategy: ``ranks``, ``microbatches``, ``chunk``, ``placement``, ``pools``."""
    return lambda strategy: strategy.model_copy(update=values)


def set_term(name: str, **values: Any) -> Change:
    """Fields of the first term of that name; nothing where there is none."""

    def change(strategy: StrategySpec) -> StrategySpec:
        first = strategy.term(name)
        if first is None:
            return strategy
        return _with_chain(strategy, (t if t is not first else t.model_copy(update=values) for t in strategy.chain))

    return change


def set_degree(name: str, degree: int) -> Change:
    """The degree of a dimension, ``ranks`` or ``etp``; a dimension new to the chain takes its place in the order."""
    if name == "ranks":
        return set_options(ranks=degree)
    if name == "etp":
        return set_term("ep", etp=degree)
    # a list of layers fits one degree only
    present = set_term(name, degree=degree, layers=()) if name == "pp" else set_term(name, degree=degree)

    def change(strategy: StrategySpec) -> StrategySpec:
        if strategy.term(name) is not None:
            return present(strategy)
        if degree == 1 or name == "sp":  # a decode strategy has none
            return strategy
        inner = [i for i, t in enumerate(strategy.chain) if _rank(t.name) > _rank(name)]
        at = inner[0] if inner else len(strategy.chain)
        new = ChainTerm(name=name, degree=degree)
        return _with_chain(strategy, (*strategy.chain[:at], new, *strategy.chain[at:]))

    return change


def drop_term(name: str) -> Change:
    """The chain without a dimension."""
    return lambda strategy: _with_chain(strategy, (t for t in strategy.chain if t.name != name))


def without_decode_sp(strategy: StrategySpec) -> StrategySpec:
    """What the language makes of a block that serves both phases."""
    return drop_term("sp")(strategy) if strategy.phase == "decode" and strategy.term("sp") else strategy


def rename(old: str, new: str) -> Change:
    """Another name for every term of a name."""
    return lambda strategy: _with_chain(
        strategy, (t if t.name != old else t.model_copy(update={"name": new}) for t in strategy.chain)
    )


def sort_chain(strategy: StrategySpec) -> StrategySpec:
    """The terms in their legal order."""
    return _with_chain(strategy, sorted(strategy.chain, key=lambda t: _rank(t.name)))


def _rank(name: str) -> int:
    """Place in the order; what is no dimension comes last."""
    return ORDER.index(name) if name in ORDER else len(ORDER)


def drop_repeated(strategy: StrategySpec) -> StrategySpec:
    """Of terms that say the same one, the first that says most. Terms that contradict one another all stay."""
    keep: dict[int, ChainTerm] = {}
    for name in dict.fromkeys(t.name for t in strategy.chain):
        terms = [t for t in strategy.chain if t.name == name]
        full = max(terms, key=lambda t: len(t.model_dump(exclude_defaults=True)))
        plain = ChainTerm(name=name, degree=full.degree)
        kept = [full] if all(t in (full, plain) for t in terms) else terms
        keep.update((id(t), t) for t in kept)
    return _with_chain(strategy, (t for t in strategy.chain if id(t) in keep))


def _with_chain(strategy: StrategySpec, chain: Any) -> StrategySpec:
    return strategy.model_copy(update={"chain": tuple(chain)})
