"""The strategy report."""

from __future__ import annotations

from ._candidates import candidates, performance
from ._facts import Facts
from ._mapping import mapping
from ._outlook import assumptions, communication, expected
from ._selection import feasibility, selection
from ._understanding import environment, phases


def report_markdown(facts: Facts) -> str:
    """The report of a plan as Markdown: the same text for the same question.

    Args:
        facts: See :func:`._facts.gather`.
    """
    spec = facts.loaded.spec
    status = "a choice was found" if facts.plan.feasible else "nothing meets the requirements"
    lines = [
        f"# Parallel strategy: {spec.model.name} on {spec.cluster.accelerator.name}",
        "",
        f"Objective: {facts.plan.objective}. Result: {status}. Every figure is an estimate of the cost model, on the "
        "assumptions of section 10.",
        "",
        *environment(facts),
        *phases(facts),
        *candidates(facts),
        *performance(facts),
        *selection(facts),
        *feasibility(facts),
        *mapping(facts),
        *communication(facts),
        *expected(facts),
        *assumptions(facts),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"
