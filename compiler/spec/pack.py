"""A knowledge pack, typed: what stands in for the knowledge base's own law, values, severities and accelerators.

Formulas are given values by name, numbers or arrays alike, so that one law judges a strategy and the planner's columns.
:func:`paradag.compiler.knowledge.load_pack` reads a pack from its files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..diagnostics import Diagnostic, Severity, Span
from .catalog import DEFAULTS, CatalogEntry, Defaults

__all__ = ["CONSTRAINT", "DEGREES", "FACTS", "LAYOUT", "Constraint", "Formula", "Law", "Pack", "graded"]

LAYOUT = ("sp", "tp", "ep", "etp", "adp", "edp", "ranks")
"""Names of what is known of one stage alone."""

DEGREES = ("dp", "pp", *LAYOUT, "gpus", "microbatches", "chunk", "batch")
"""All names that a strategy gives: degrees, GPUs, micro-batches, tokens per chunk (0 for none), sequences in flight."""

FACTS = (
    *("prefill", "decode", "moe"),
    *("layers", "heads", "kv_heads", "experts", "top_k", "redundant"),
    *("gpus_per_node", "domain"),
)
"""Names that model, cluster and phase give. The first three are 1 or 0, ``domain`` counts GPUs of the fast link."""

CONSTRAINT = "PD045"
"""Code of what a constraint finds."""


class Formula(Protocol):
    """An expression over named numbers."""

    @property
    def text(self) -> str:
        """As written."""

    @property
    def names(self) -> frozenset[str]:
        """Names that it reads."""

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Its value: a number or truth, or an array of them where a name it reads has one.

        Raises:
            DiagnosticError: PD043, a division by zero.
        """


@dataclass(frozen=True, eq=False)
class Constraint:
    """A condition that every strategy has to meet.

    Attributes:
        name: Its key in the pack.
        formula: The condition.
        message: What is said where it is not met.
        span: Its place in the pack.
        severity: How bad that is.
        help: What to do about it.
    """

    name: str
    formula: Formula
    message: str
    span: Span
    severity: Severity = Severity.ERROR
    help: str | None = None

    @property
    def cite(self) -> str:
        """``pack.toml:7``."""
        return f"{self.span.file}:{self.span.line}"


@dataclass(frozen=True, eq=False)
class Law:
    """The GPU-count law; what is None is as in :mod:`.stage_law`.

    Attributes:
        ranks: Ranks of a stage from ``sp tp ep etp`` and facts.
        gpus: GPUs of a phase from all degrees. Those beyond ``dp * pp * ranks`` are taken and idle.
        etp: TP inside an expert, where the strategy names EP and leaves it open, from ``sp tp ep`` and facts.
        spans: Places of the three in the pack.
    """

    ranks: Formula | None = None
    gpus: Formula | None = None
    etp: Formula | None = None
    spans: Mapping[str, Span] = field(default_factory=dict)

    def stage_ranks(self, values: Mapping[str, Any]) -> Any:
        """Ranks of a stage from ``sp``, ``tp``, ``ep``, ``etp`` and facts, as numbers or arrays.

        Where the law says only what the GPUs are, and not in terms of ranks, they are those of one stage of one
        replica. None where the pack leaves it to the built-in law.
        """
        if self.ranks is not None:
            return self.ranks(values)
        if self.gpus is not None and not self.gpus.names & {"ranks", "adp", "edp"}:
            return self.gpus({**values, "dp": 1, "pp": 1})
        return None

    def phase_gpus(self, values: Mapping[str, Any]) -> Any:
        """GPUs that a phase takes, from ``dp``, ``pp``, those of a layout and facts, as numbers or arrays."""
        if self.gpus is not None:
            return self.gpus(values)
        return values["dp"] * values["pp"] * values["ranks"]

    def formulas(self) -> list[tuple[str, Formula]]:
        """What the law replaces, by key."""
        return [(k, f) for k, f in (("ranks", self.ranks), ("gpus", self.gpus), ("etp", self.etp)) if f is not None]

    @property
    def sets_ranks(self) -> bool:
        """Whether a strategy's ``ranks`` are not free."""
        return self.ranks is not None or (self.gpus is not None and not self.gpus.names & {"ranks", "adp", "edp"})

    def span(self, *keys: str) -> Span | None:
        """The place of the first of the keys that the pack has."""
        return next((self.spans[k] for k in keys if k in self.spans), None)


@dataclass(frozen=True, eq=False)
class Pack:
    """A knowledge pack.

    Attributes:
        path: Where it was read from.
        law: The GPU-count law.
        constraints: What strategies have to meet besides the rules.
        severities: Of rules, by code; None switches a rule off.
        values: Thresholds and shares, by name; what they mean stands in ``docs/packs.md``.
        defaults: What stands in for figures that neither file nor datasheet give.
        accelerators: The whole catalogue as the pack leaves it.
        spans: Places of all keys, dotted.
        texts: Its files, for carets.
    """

    path: str
    law: Law = field(default_factory=Law)
    constraints: tuple[Constraint, ...] = ()
    severities: Mapping[str, Severity | None] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    defaults: Defaults = DEFAULTS
    accelerators: Mapping[str, CatalogEntry] = field(default_factory=dict)
    spans: Mapping[str, Span] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def cite(self, key: str) -> str | None:
        """``pack.toml:7``, where the pack has the dotted key."""
        span = self.spans.get(key)
        return f"{span.file}:{span.line}" if span else None

    def value(self, name: str, default: float) -> float:
        """The pack's value of that name, or the default."""
        return self.values.get(name, default)


def graded(diagnostics: Iterable[Diagnostic], pack: Pack | None) -> list[Diagnostic]:
    """The diagnostics with the pack's severities, without those that it switches off."""
    if pack is None:
        return list(diagnostics)
    kept = [d for d in diagnostics if pack.severities.get(d.code, d.severity) is not None]
    return [replace(d, severity=pack.severities.get(d.code, d.severity)) for d in kept]
