"""``paradag verify``: run the lowered DAG on virtual ranks and compare it with the undistributed model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._common import FormatOption, KnowledgeOption, OutputFormat, reporting, write_json, write_table

if TYPE_CHECKING:
    from ..run.report import Verification


class Engine(StrEnum):
    """What the virtual ranks run on."""

    NUMPY = "numpy"


def verify_command(
    file: Annotated[Path, typer.Argument(help="A .strat file.", metavar="FILE")],
    engine: Annotated[Engine, typer.Option(help="What runs the virtual ranks: numpy, in float64.")] = Engine.NUMPY,
    steps: Annotated[int, typer.Option(help="Decode steps to run.", metavar="N", min=1)] = 4,
    max_ranks: Annotated[
        int, typer.Option(help="Ranks of a phase above which degrees shrink too.", metavar="N", min=1)
    ] = 512,
    seed: Annotated[int, typer.Option(help="First seed to try for weights and prompts.", min=0)] = 0,
    knowledge: KnowledgeOption = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Prove by execution that a strategy computes what its model computes.

    The model is shrunk (the report says how), lowered exactly as by compile, and every node of the DAGs is run on
    virtual ranks that hold only their own shards. Exit code 1 where logits, tokens or bytes differ.
    """
    from ..driver import load
    from ..verification import verify

    with reporting(output_format):
        loaded = load(file, knowledge=knowledge)
        with reporting(output_format, loaded.texts):
            found = verify(loaded, steps=steps, max_ranks=max_ranks, seed=seed, name=file.stem)
    if output_format is OutputFormat.JSON:
        write_json(found.to_json())
    else:
        _print_text(found)
    if not found.equal:
        raise typer.Exit(1)


def _print_text(found: Verification) -> None:
    for change in found.shrunk:
        typer.echo(f"shrunk: {change.name} {change.before} -> {change.after}")
    columns = ("phase", "ranks", "steps", "max error", "kernels", "tokens", "calls", "ops", "equal")
    rows = [
        (
            name,
            str(p.ranks),
            str(p.steps),
            f"{p.max_error:.1e}",
            f"{p.kernel_error:.1e}",
            "equal" if p.tokens_equal else "differ",
            f"{p.calls:,}",
            f"{p.ops:,}",
            "yes" if p.equal else "NO",
        )
        for name, p in found.phases.items()
    ]
    write_table(columns, rows, right=columns[1:8])
    headings = ("phase", "communication", "count", "bytes sent", "bytes charged", "agree", "how")
    traffic = [
        (
            name,
            t.op,
            f"{t.count:,}",
            f"{t.sent:,.0f}",
            f"{t.charged:,.0f}",
            "yes" if t.agrees else "NO",
            "expected, rows equal" if t.routed else f"{t.uneven} uneven, at most" if t.uneven else "exactly",
        )
        for name, p in found.phases.items()
        for t in p.traffic
    ]
    if traffic:
        write_table(headings, traffic, right=headings[2:5])
    for name, p in found.phases.items():
        for note in (*p.notes, *((f"stopped: {p.fault}",) if p.fault else ())):
            typer.echo(f"{name}: {note}")
    verdict = "EQUAL" if found.equal else "NOT EQUAL"
    typer.echo(f"{found.name}: {verdict} to the undistributed model ({found.seconds:.1f} s, seed {found.seed})")
