"""What a rule on a strategy sees, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from ...compiler.build.mesh import mesh_of
from ...compiler.diagnostics import Diagnostic, Severity
from ...compiler.ir.mesh import AxesDoNotNest, Mesh
from ...compiler.spec import ChainTerm, LoadedSpec, ModelSpec, Spec, StrategySpec
from ...compiler.spec.pack_law import degrees_in, open_strategy
from ...compiler.spec.stage_law import Degrees
from ...compiler.spec.strategy import Phase

_ROOTS = ("model", "cluster", "workload", "strategy")


@dataclass(frozen=True)
class Finding:
    """A diagnostic without its code, which the rule table gives.

    Attributes:
        message: The fault.
        at: Field paths, the first known one gives the place: relative to the strategy (``tp``, ``ep.etp``) or from the
            root (``workload.batch``).
        expected: What the law asks for.
        help: A fix that can be typed in.
        severity: Where it differs from the code's own.
    """

    message: str
    at: tuple[str, ...]
    expected: str
    help: str
    severity: Severity | None = None


@dataclass(frozen=True)
class Case:
    """One phase of a spec.

    Attributes:
        loaded: The spec and its places.
        strategy: The phase's strategy.
        advised: Whether somebody reads the fixes that findings name; legal ones take long to look for.
    """

    loaded: LoadedSpec
    strategy: StrategySpec
    advised: bool = True

    @property
    def spec(self) -> Spec:
        return self.loaded.spec

    @property
    def model(self) -> ModelSpec:
        return self.loaded.spec.model

    @property
    def phase(self) -> Phase:
        return self.strategy.phase

    @cached_property
    def moe_layers(self) -> int:
        return sum(self.model.is_moe_layer(i) for i in range(self.model.layers.count))

    @cached_property
    def dense_layers(self) -> int:
        return self.model.layers.count - self.moe_layers

    @cached_property
    def degrees(self) -> Degrees:
        """Degrees of the phase; EP counts only where there are experts."""
        return degrees_in(self.spec, self.strategy)

    @cached_property
    def mesh(self) -> Mesh | None:
        """The ranks in the default order, or None where the axes do not nest."""
        try:
            return mesh_of(self.degrees, self.model, self.strategy.model_copy(update={"placement": ()}))
        except AxesDoNotNest:
            return None

    def with_option(self, name: str, value: int) -> Case:
        """The case with another degree (or ``etp``, ``redundant``, ``ranks``, ``microbatches``)."""
        s = self.strategy if name == "ranks" else open_strategy(self.spec, self.strategy)
        if name in {"ranks", "microbatches", "chunk"}:
            return replace(self, strategy=s.model_copy(update={name: value}))
        owner, field = ("ep", name) if name in {"etp", "redundant"} else (name, "degree")
        chain = s.chain if s.term(owner) else (*s.chain, ChainTerm(name=owner, degree=1))
        chain = tuple([t.model_copy(update={field: value}) if t.name == owner else t for t in chain])
        return replace(self, strategy=s.model_copy(update={"chain": chain}))

    def diagnose(self, code: str, finding: Finding) -> Diagnostic:
        """The finding as a diagnostic; without a span its message names the phase."""
        base = f"strategy.{self.phase}"
        paths = [p if p.startswith(_ROOTS) else f"{base}.{p}" for p in finding.at]
        span = self.loaded.span(*paths, base)
        message = finding.message if span else f"{self.phase}: {finding.message}"
        return Diagnostic(code, message, span, finding.expected, finding.help, finding.severity)


Check = Callable[[Case], Iterator[Finding]]


@dataclass(frozen=True)
class Rule:
    """One rule of legality.

    Attributes:
        code: Its diagnostic code.
        check: Finds violations.
        unless: Codes whose presence makes the rule meaningless, so that one fault is told once.
    """

    code: str
    check: Check
    unless: frozenset[str] = frozenset()


def near(
    value: int, legal: Callable[[int], bool], *, reach: int = 4096, count: int = 1, above: bool = True
) -> list[int]:
    """The ``count`` nearest legal positive integers below ``value`` and (``above``) as many above, within ``reach``."""
    lower = islice((v for v in range(value - 1, max(0, value - 1 - reach), -1) if legal(v)), count)
    upper = islice((v for v in range(value + 1, value + 1 + reach if above else 0) if legal(v)), count)
    return [*reversed(list(lower)), *upper]


def choices(name: str, values: Iterable[int]) -> str:
    """``near`` values as text to type in: "`tp 4` or `tp 8`"."""
    return " or ".join(f"`{name} {v}`" for v in values)


def count(number: int, noun: str) -> str:
    """``1 stage``, ``2 stages``, ``2 micro-batches``."""
    plural = noun + ("es" if noun.endswith(("ch", "sh", "s")) else "s")
    return f"{number:,} {noun if number == 1 else plural}"
