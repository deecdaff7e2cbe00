"""What a verification says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOLERANCE = 1e-10
"""Largest absolute difference between logits in float64 that counts as rounding."""


@dataclass(frozen=True)
class Change:
    """A size that was made smaller: its name, before and after."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Traffic:
    """Communication of one kind in one phase, all ranks and steps.

    Attributes:
        op: Public operator name.
        count: Collectives or messages, one per group of calls.
        sent: Bytes that reached another rank, counted on the arrays.
        charged: Bytes that the cost model charges.
        uneven: Calls with ranks that have less than the fullest one, for which all are charged.
        routed: Rows of routed tokens: the charge is the expectation under uniform routing; compared is the payload.
        agrees: Whether even calls sent exactly what is charged, uneven ones at most that, and routed ones carried the
            charged number of rows.
    """

    op: str
    count: int
    sent: float
    charged: float
    uneven: int
    routed: bool
    agrees: bool


@dataclass(frozen=True)
class PhaseReport:
    """One phase, executed and compared.

    Attributes:
        phase: prefill or decode.
        ranks: Virtual ranks.
        steps: Decode steps (1 for prefill).
        max_error: Largest absolute difference of a logit from the undistributed reference, any rank, item and step;
            infinite where a rank sampled from something that is no number.
        tokens_equal: Whether every rank chose the reference's tokens.
        kernel_error: The same difference for the logical graph, run on one rank through the operators' kernels.
        tolerance: Largest difference that is rounding.
        calls: Calls of the DAG executed.
        ops: Executions of a node on a rank.
        traffic: Communication by kind.
        fault: Why the execution stopped, empty where it did not.
        notes: What a reader must know to read the figures.
    """

    phase: str
    ranks: int
    steps: int
    max_error: float
    tokens_equal: bool
    kernel_error: float
    tolerance: float
    calls: int
    ops: int
    traffic: tuple[Traffic, ...]
    fault: str = ""
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether the DAG computes what the model computes."""
        close = max(self.max_error, self.kernel_error) <= self.tolerance
        return close and self.tokens_equal and not self.fault

    @property
    def bytes_agree(self) -> bool:
        """Whether the bytes moved are those that the cost model charges."""
        return all(t.agrees for t in self.traffic)


@dataclass(frozen=True)
class Verification:
    """A strategy, lowered, executed on virtual ranks and compared with the undistributed model.

    Attributes:
        name: Name of the input.
        phases: Reports by phase.
        shrunk: Sizes that were made smaller.
        seed: Seed of weights and prompts.
        top_margin: Smallest distance between the best and the second best logit of the reference.
        router_margin: Smallest distance between a chosen and a refused expert's score; infinite without experts.
        seconds: Wall-clock time.
        engine: What ran the ranks: numpy in one process, or torch in one process per rank.
        backend: What carried data from process to process, empty for numpy.
        processes: Processes that the ranks were spread over.
    """

    name: str
    phases: Mapping[str, PhaseReport]
    shrunk: tuple[Change, ...]
    seed: int
    top_margin: float
    router_margin: float
    seconds: float
    engine: str = "numpy"
    backend: str = ""
    processes: int = 1

    @property
    def equal(self) -> bool:
        """Whether every phase is equal to the reference and moved the bytes that were charged."""
        return all(p.equal and p.bytes_agree for p in self.phases.values())

    def to_json(self) -> dict[str, Any]:
        """The document of ``verify --format json``; a difference that is no number is null."""
        return {
            "name": self.name,
            "equal": self.equal,
            "tolerance": max((p.tolerance for p in self.phases.values()), default=TOLERANCE),
            "engine": self.engine,
            "backend": self.backend or None,
            "processes": self.processes,
            "seed": self.seed,
            "phases": {name: _phase_json(p) for name, p in self.phases.items()},
            "shrunk": [{"name": c.name, "before": c.before, "after": c.after} for c in self.shrunk],
            "seconds": round(self.seconds, 3),
        }


def _phase_json(report: PhaseReport) -> dict[str, Any]:
    return {
        "equal": report.equal,
        "max_error": _finite(report.max_error),
        "kernel_error": _finite(report.kernel_error),
        "tokens_equal": report.tokens_equal,
        "ranks": report.ranks,
        "steps": report.steps,
        "calls": report.calls,
        "ops": report.ops,
        "bytes": {t.op: t.sent for t in report.traffic},
        "bytes_agree": report.bytes_agree,
        "communication": [
            {
                "op": t.op,
                "count": t.count,
                "sent": t.sent,
                "charged": t.charged,
                "uneven": t.uneven,
                "routed": t.routed,
                "agrees": t.agrees,
            }
            for t in report.traffic
        ],
        "fault": report.fault or None,
        "notes": list(report.notes),
    }


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
