"""What comes of a damaged graph that is executed although the verifier refuses it, and of one that was repaired."""

from __future__ import annotations

from typing import Literal, get_args

from paradag.compiler.ir.graph import Graph
from paradag.compiler.run.report import Verification
from paradag.compiler.verification import execute
from paradag.tests.mutation.damage import Seen
from paradag.tests.mutation.test_graphs import Case

Outcome = Literal["numbers", "fault", "bytes", "work", "nothing"]
"""What an execution shows.

``numbers``: logits that differ by more than 1e-10, other tokens, or none. ``fault``: it stops and says why. ``bytes``:
the right numbers, but what moves is not what is charged. ``work``: the right numbers, but other calls or bytes than
those of the legal graph. ``nothing``: no difference.
"""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_CAUGHT: frozenset[Outcome] = frozenset({"numbers", "fault", "bytes"})

ALLOWED: dict[Seen, frozenset[Outcome]] = {
    "always": _CAUGHT,
    "as work": _CAUGHT | {"work"},
    "sometimes": frozenset(OUTCOMES),
    "never": frozenset({"work", "nothing"}),
}
"""What may come of one damaged graph, by what is said of its kind."""


def run(case: Case, graph: Graph) -> Verification:
    """Both phases of a case, the damaged phase by the given graph; the verifier does not see it."""
    return execute(case.spec, steps=case.steps, change={case.phase: lambda _: graph})


def outcome(case: Case, legal: Verification | None = None) -> Outcome:
    """What the execution of the damaged graph shows, beside that of the legal one."""
    found = run(case, case.harmed)
    phases = found.phases.values()
    if any(p.fault for p in phases):
        return "fault"
    if not all(p.equal for p in phases):
        return "numbers"
    if not found.equal:
        return "bytes"
    return "nothing" if _work(found) == _work(legal or run(case, case.levels[-1])) else "work"


def is_like(found: Verification, legal: Verification) -> bool:
    """Whether a graph gives the model's numbers with the calls and bytes of the legal graph."""
    return found.equal and legal.equal and _work(found) == _work(legal)


def as_stated(seen: Seen, outcomes: list[Outcome]) -> bool:
    """Whether what came of many damaged graphs of a kind is what is said of the kind."""
    caught = [o for o in outcomes if o in _CAUGHT]
    return set(outcomes) <= ALLOWED[seen] and (seen != "sometimes" or bool(caught))


def _work(found: Verification) -> dict[str, object]:
    """Calls and bytes by phase."""
    return {name: (p.calls, p.ops, p.traffic) for name, p in found.phases.items()}
