"""The ``workload`` block: sequences, lengths, rate and requirements."""

from __future__ import annotations

from typing import Any

from ..compiler.spec import WorkloadSpec
from ._context import Block, Context
from ._syntax import Statement
from ._units import RATE, THROUGHPUT, TIME, TOKENS

__all__ = ["build_workload"]

_MOST, _LEAST = "AT_MOST", "AT_LEAST"
_REQUIREMENTS = {
    "ttft": (TIME, _MOST, "<="),
    "tpot": (TIME, _MOST, "<="),
    "throughput": (THROUGHPUT, _LEAST, ">="),
    "throughput_per_gpu": (THROUGHPUT, _LEAST, ">="),
}


def build_workload(context: Context, head: Statement) -> WorkloadSpec | None:
    """The workload of the file, or None where errors (all reported) leave none."""
    block = Block(context, head, "workload")
    before = len(context.diagnostics)
    fields: dict[str, Any] = {}
    block.require("input")
    block.read_counts(fields, "batch")
    block.read_counts(fields, "input", "output", measure=TOKENS)
    block.read_measure(fields, "rate", RATE)
    block.read_choices(fields, "mode")
    _sequence(block, fields)
    _requirements(block, fields)
    if not block.all("output"):
        context.assume("workload.output", "1 token", "the file names no output length")
    workload = context.validate(WorkloadSpec, fields, "workload")
    return None if any(d.is_error for d in context.diagnostics[before:]) else workload


def _sequence(block: Block, fields: dict[str, Any]) -> None:
    statement = block.get("sequence")
    if statement is None:
        return
    block.place("sequence", statement)
    shortest = block.whole(statement, statement.tokens("NUMBER")[0])
    longest = block.integer(statement, TOKENS)
    if shortest is None or longest is None:
        return
    if not 1 <= shortest <= longest:
        block.context.report(
            "PD015",
            f"`sequence` runs from {shortest:,} to {longest:,}",
            block.span(statement),
            "a range from at least 1 upwards",
            "write for example `sequence 128..10240 tokens`",
        )
    fields["sequence"] = (shortest, longest)


def _requirements(block: Block, fields: dict[str, Any]) -> None:
    required: dict[str, float] = {}
    for statement in block.all("require"):
        name = block.choice(statement)
        if name is None:
            continue
        measure, direction, sign = _REQUIREMENTS[name]
        block.place(f"require.{name}", statement)
        if not statement.tokens(direction):
            block.context.report(
                "PD010",
                f"`require {name}` with the wrong comparison",
                block.span(statement),
                f"`{sign}`",
                f"write `require {name} {sign} ...`",
            )
        value = block.number(statement, statement.quantities()[0], measure)
        if value is not None:
            required[name] = value
    if required:
        fields["require"] = required
