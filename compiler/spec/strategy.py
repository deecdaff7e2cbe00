"""The strategy as written: a chain of dimensions and options, for one phase."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ._base import SpecModel

Phase = Literal["prefill", "decode"]


class ChainTerm(SpecModel):
    """One term of the chain, ``pp 4 { layers 24 24 23 23 }``. Names and order are checked later, not here."""

    name: str
    degree: int | None = Field(default=None, ge=1, le=1_000_000)
    """None for ``sp tp``, which has no ranks of its own."""
    kind: str | None = None
    """``sp``: allgather, ring, ulysses, or ``tp`` for the Megatron kind."""
    layers: tuple[int, ...] = ()
    """``pp``: layers of each stage."""
    etp: int | None = Field(default=None, ge=1, le=1_000_000)
    """``ep``: tensor parallelism inside one expert."""
    redundant: int = Field(default=0, ge=0, le=100_000)
    """``ep``: redundant expert slots."""


class StrategySpec(SpecModel):
    """Strategy of one phase. An empty chain is one GPU."""

    phase: Phase
    chain: tuple[ChainTerm, ...] = ()
    ranks: int | None = Field(default=None, ge=1, le=1_000_000)
    """Ranks of one stage, where given."""
    microbatches: int = Field(default=1, ge=1, le=1_000_000)
    chunk: int | None = Field(default=None, ge=1)
    """At most so many new tokens per step."""
    placement: tuple[str, ...] = ()
    """Attention axes from outermost to innermost; empty means pp adp sp tp."""
    pools: Literal["shared", "separate"] = "shared"

    def term(self, name: str) -> ChainTerm | None:
        """First term of that name."""
        for term in self.chain:
            if term.name == name:
                return term
        return None

    def degree(self, name: str) -> int:
        """Degree of the dimension, 1 where it is absent or has no ranks of its own."""
        term = self.term(name)
        return term.degree if term is not None and term.degree is not None else 1

    @property
    def sp_kind(self) -> str:
        """Kind of the SP with ranks of its own: allgather (the default), ring or ulysses; empty where there is none."""
        term = self.term("sp")
        return (term.kind or "allgather") if term is not None and (term.degree or 1) > 1 else ""
