"""``paradag verify``: run the lowered DAG on virtual ranks and compare it with the undistributed model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..diagnostics import Diagnostic, DiagnosticError
from ._common import FormatOption, KnowledgeOption, OutputFormat, reporting, write_json, write_table

if TYPE_CHECKING:
    from ..run.huggingface import HuggingFace
    from ..run.report import Verification


class Engine(StrEnum):
    """What runs the ranks."""

    NUMPY = "numpy"
    TORCH = "torch"


def verify_command(
    file: Annotated[Path, typer.Argument(help="A .strat file.", metavar="FILE")],
    engine: Annotated[
        Engine, typer.Option(help="What runs the ranks: numpy in one process, or torch.distributed in one per rank.")
    ] = Engine.NUMPY,
    steps: Annotated[int, typer.Option(help="Decode steps to run.", metavar="N", min=1)] = 4,
    max_ranks: Annotated[
        int | None,
        typer.Option(
            help="Ranks of a phase above which degrees shrink too (numpy: 512), or processes of all phases (torch: 8).",
            metavar="N",
            min=1,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="First seed to try for weights and prompts.", min=0)] = 0,
    knowledge: KnowledgeOption = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a Hugging Face model, whose weights are loaded and whose logits must come out (needs the "
            "extra paradag[verify]); it stands for the file's model and is not shrunk.",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Prove by execution that a strategy computes what its model computes.

    The model is shrunk (the report says how), lowered exactly as by compile, and every node of the DAGs is run on
    ranks that hold only their own shards: virtual ones (numpy), or processes that exchange data by real collectives
    (torch). Exit code 1 where logits, tokens or bytes differ.
    """
    from ..driver import load
    from ..verification import verify

    with reporting(output_format):
        loaded = load(file, knowledge=knowledge)
        oracle = _model_in(against) if against else None
        with reporting(output_format, loaded.texts):
            found = verify(
                loaded,
                steps=steps,
                max_ranks=max_ranks,
                seed=seed,
                name=file.stem,
                engine=engine.value,
                oracle=oracle,
            )
    if output_format is OutputFormat.JSON:
        write_json(found.to_json())
    else:
        _print_text(found)
    if not found.equal:
        raise typer.Exit(1)


def _model_in(folder: Path) -> HuggingFace:
    try:
        from ..run.huggingface import HuggingFace
    except ImportError as error:
        message = f"no models of Hugging Face here: {str(error)[:200]}"
        raise DiagnosticError([Diagnostic("PD504", message, help='pip install "paradag[verify]"')]) from None
    return HuggingFace.load(folder)


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
    how = f", {found.processes} processes on {found.backend}" if found.backend else ""
    typer.echo(f"{found.name}: {verdict} to the undistributed model ({found.seconds:.1f} s, seed {found.seed}{how})")
