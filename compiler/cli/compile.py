"""``paradag compile``: the main job."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..diagnostics import Outcome
from ._common import (
    FormatOption,
    KnowledgeOption,
    OutputFormat,
    diagnostic_json,
    fix_json,
    fix_line,
    report,
    reporting,
    write_json,
    write_table,
)
from ._explanation import Explanation

if TYPE_CHECKING:
    from ...passes.analysis import PhaseAnalysis
    from ...passes.compiled import Compiled
    from ..outputs import Written


def compile_command(
    file: Annotated[Path, typer.Argument(help="A .strat file.", metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.", metavar="DIR")] = Path(),
    emit: Annotated[str, typer.Option(help="What to write: json, dot, svg, columns, ir.")] = "json,dot,svg",
    phase: Annotated[str, typer.Option(help="prefill, decode or all.")] = "all",
    steps: Annotated[int, typer.Option(help="Decode steps in the chain.", metavar="N")] = 1,
    passes: Annotated[
        list[str] | None,
        typer.Option(
            "--pass", help="A pass of yours: FILE.py:Class, module:Class or NAME, then @after=PASS.", metavar="SPEC"
        ),
    ] = None,
    print_ir_after: Annotated[
        list[str] | None,
        typer.Option(
            "--print-ir-after", help="Print the IR after build, pp, sp, ep, tp or a pass of yours.", metavar="NAME"
        ),
    ] = None,
    expand: Annotated[str, typer.Option(help="Unfold drawings: layers, shards, ranks.", metavar="WHAT")] = "",
    no_fix: Annotated[bool, typer.Option("--no-fix", help="Reject an illegal strategy, do not repair it.")] = False,
    fix_workload: Annotated[
        bool, typer.Option("--fix-workload", help="Reduce the batch where nothing else makes it fit.")
    ] = False,
    knowledge: KnowledgeOption = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Fitted figures of `paradag calibrate`, over the shipped ones.", metavar="FILE")
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            help="Say where the time goes: `top`, or a node by id or name (`layers.qkv`, `dispatch`, `*.all_reduce`).",
            metavar="NODE|top",
        ),
    ] = None,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Compile a strategy into explicit prefill and decode DAGs, check them and say what they cost."""
    options = {
        "phase": phase,
        "steps": steps,
        "passes": passes or [],
        "print_after": print_ir_after or [],
        "fix": not no_fix,
        "fix_workload": fix_workload,
        "calibration": calibration,
    }
    with reporting(output_format):
        _compile(file, knowledge, output, _words(emit), _words(expand), explain, options, output_format)


def _compile(
    file: Path,
    knowledge: Path | None,
    output: Path,
    emit: list[str],
    expand: list[str],
    explain: str | None,
    options: dict[str, Any],
    output_format: OutputFormat,
) -> None:
    from ..cost import load_calibration
    from ..driver import compile as compile_strategy
    from ..driver import load
    from ..outputs import write_outputs

    if options["calibration"] is not None:
        options = {**options, "calibration": load_calibration(options["calibration"])}
    if options["phase"] not in ("prefill", "decode", "all"):
        raise typer.BadParameter("give prefill, decode or all", param_hint="--phase")
    loaded = load(file, knowledge=knowledge)
    with reporting(output_format, loaded.texts):
        compiled = compile_strategy(loaded, expand_ranks="ranks" in expand, name=file.stem, **options)
        explanation = None if explain is None else Explanation(compiled, explain)
        written = write_outputs(compiled, output, emit, expand)
    if output_format is OutputFormat.JSON:
        write_json(_document(compiled, written) | ({"explain": explanation.document()} if explanation else {}))
    else:
        _print_text(compiled, written)
        if explanation:
            explanation.write()
    if compiled.status is Outcome.REJECTED:
        raise typer.Exit(1)


def _words(text: str) -> list[str]:
    return [w.strip() for w in text.split(",") if w.strip()]


def _print_text(compiled: Compiled, written: Written) -> None:
    report((*compiled.diagnostics, *written.diagnostics), OutputFormat.TEXT, compiled.texts)
    for (phase, name), text in compiled.dumps.items():
        typer.echo(f"# {phase} after {name}\n{text}")
    columns = (
        "phase",
        "status",
        "GPUs",
        "latency",
        "critical path",
        "tokens/s",
        "memory/GPU",
        "headroom",
        "communicated",
        "bound",
    )
    rows = [(p, str(compiled.status), *summary_row(a)) for p, a in compiled.phases.items()]
    if rows:
        write_table(columns, rows, right=columns[2:9])
    for line in filter(None, map(load_line, compiled.phases.values())):
        typer.echo(line)
    for phase, analysis in compiled.phases.items():
        typer.echo(f"{phase}: {utilization_line(analysis)}")
    for fix in compiled.fixes:
        typer.echo(fix_line(fix))
    for assumption in compiled.assumptions:
        typer.echo(f"assumed: {assumption.name} = {assumption.value} ({assumption.why})")
    typer.echo(f"{compiled.name}: {compiled.status}" + "".join(f"\n  {path}" for path in written.paths))


def latencies(analysis: PhaseAnalysis) -> dict[str, float | None]:
    """Seconds to the first token or per token, and what they are made of under the workload's load."""
    if analysis.graph.phase == "decode":
        return {"tpot_s": analysis.loaded_latency, "steady_tpot_s": analysis.steady}
    queue = analysis.queue if analysis.queue is not None and isfinite(analysis.queue) else None
    return {"ttft_s": analysis.loaded_latency, "prefill_s": analysis.latency, "queue_s": queue}


def load_line(analysis: PhaseAnalysis) -> str:
    """What arrivals or the prompts of others add to a phase's latency, for people; empty where nothing is known."""
    if analysis.queue is not None:
        if not isfinite(analysis.queue):
            return "prefill: more requests arrive than are served; the queue has no mean"
        total, queue, own = (1e3 * s for s in (analysis.loaded_latency, analysis.queue, analysis.latency))
        return f"prefill: TTFT {total:.2f} ms = queue {queue:.2f} ms + prefill {own:.2f} ms"
    if analysis.steady is not None:
        stall = (analysis.steady - analysis.latency) * 1e3
        return f"decode: steady TPOT {analysis.steady * 1e3:.2f} ms, {stall:.2f} ms of it for prompts of other requests"
    return ""


def utilization_line(analysis: PhaseAnalysis) -> str:
    """Shares of the machine that a phase uses, and what its ranks do meanwhile, for people."""
    u = analysis.utilization
    return (
        f"MFU {u.mfu:.1%}, MBU {u.mbu:.1%}, memory {u.memory:.0%}, "
        f"scale-up {u.scale_up:.1%}, scale-out {u.scale_out:.1%}; "
        f"ranks busy {u.busy:.1%}, bubble {u.bubble:.1%}; "
        f"busiest rank {u.rank_balance:.2f} and stage {u.stage_balance:.2f} times the mean"
    )


def summary_row(analysis: PhaseAnalysis) -> tuple[str, ...]:
    """GPUs, latency, critical path, throughput, memory, headroom, communication and bound of a phase, for people."""
    memory = analysis.memory
    kind = "TTFT" if analysis.graph.phase == "prefill" else "TPOT"
    return (
        str(analysis.graph.mesh.gpus),
        f"{kind} {analysis.loaded_latency * 1e3:.2f} ms",
        f"{analysis.critical.seconds * 1e3:.2f} ms",
        f"{analysis.tokens_per_s:,.0f}",
        f"{memory.fullest.total / 1e9:.1f} GB",
        f"{memory.headroom / 1e9:.1f} GB",
        f"{sum(t.bytes for t in analysis.traffic) / 1e9:.3f} GB",
        _bound(analysis),
    )


def _bound(analysis: PhaseAnalysis) -> str:
    """What most of the critical path waits for."""
    from ...passes.analysis import time_by_bound

    shares = time_by_bound(analysis)
    return max(shares, key=lambda b: shares[b]) if shares else "none"


def _document(compiled: Compiled, written: Written) -> dict[str, Any]:
    from ..emit.document import utilization_summary

    phases = {
        phase: {
            "gpus": a.graph.mesh.gpus,
            **latencies(a),
            "critical_path_s": a.critical.seconds,
            "tokens_per_s": a.tokens_per_s,
            "memory_per_gpu_bytes": a.memory.fullest.total,
            "headroom_bytes": a.memory.headroom,
            "communication_bytes": sum(t.bytes for t in a.traffic),
            "bound": _bound(a),
            "utilization": utilization_summary(a.utilization).model_dump(mode="json"),
        }
        for phase, a in compiled.phases.items()
    }
    return {
        "status": str(compiled.status),
        "diagnostics": [diagnostic_json(d) for d in (*compiled.diagnostics, *written.diagnostics)],
        "fixes": [fix_json(f) for f in compiled.fixes],
        "assumptions": [{"name": a.name, "value": a.value, "why": a.why} for a in compiled.assumptions],
        "phases": phases,
        "ir": {f"{phase}.{name}": text for (phase, name), text in compiled.dumps.items()},
        "outputs": [str(p) for p in written.paths],
    }
