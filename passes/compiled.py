"""What a compilation produces, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..compiler.diagnostics import Diagnostic, Fix, Outcome
from ..compiler.ir.graph import Phase
from ..compiler.spec import Assumption, Spec
from .analysis import PhaseAnalysis, TransferPlan

__all__ = ["Compiled", "Fix", "PassRecord"]


@dataclass(frozen=True)
class PassRecord:
    """A pass that ran: phase, name and seconds."""

    phase: Phase
    name: str
    seconds: float


@dataclass(frozen=True)
class Compiled:
    """A compiled file.

    Attributes:
        name: Stem of the input file; outputs are called after it.
        spec: What was compiled.
        status: VALID, FIXED or REJECTED; a rejected one has no phases.
        diagnostics: Findings, worst first as they were made.
        fixes: Repairs made.
        assumptions: Every value taken for the user.
        phases: Analyses by phase.
        texts: Source texts by file name, for carets.
        dumps: Printed IR by (phase, pass name), for the passes asked for.
        passes: Passes in the order in which they ran.
        transfer: How the KV cache moves between the phases, where it does.
    """

    name: str
    spec: Spec
    status: Outcome
    diagnostics: tuple[Diagnostic, ...] = ()
    fixes: tuple[Fix, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    phases: Mapping[Phase, PhaseAnalysis] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    dumps: Mapping[tuple[Phase, str], str] = field(default_factory=dict)
    passes: tuple[PassRecord, ...] = ()
    transfer: TransferPlan | None = None
