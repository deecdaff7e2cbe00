"""The title of a drawing: model, phase, strategy, GPUs, latency, memory, and how to read it."""

from __future__ import annotations

from ...passes.analysis import PhaseAnalysis
from ..ir.graph import Graph
from ._labels import duration, number_ranges, quantity


def title_lines(analysis: PhaseAnalysis) -> tuple[str, ...]:
    """Headline, performance and memory, what the drawing folds."""
    graph = analysis.graph
    model = str(graph.meta.get("model", graph.name))
    gpus = f"{graph.mesh.gpus} GPU{'s' if graph.mesh.gpus > 1 else ''}"
    return (
        f"{model} | {graph.phase} | {strategy_text(graph)} | {gpus} {analysis.hardware.name}",
        f"{_speed(analysis)} | {_memory(analysis)}",
        f"{_work(graph)} | {_layout(graph)}",
    )


def strategy_text(graph: Graph) -> str:
    """The chain of the strategy: ``pp 2 -> ep 8 -> tp 4``."""
    mesh = graph.mesh
    tp, ep = mesh.degree("tp"), mesh.degree("ep")
    terms = (
        ("dp", mesh.dp),
        ("pp", mesh.pp),
        ("sp", mesh.degree("sp")),
        ("sp tp", tp if graph.meta.get("megatron_sp") else 1),
        (f"ep {ep}{_ep_options(graph)}", ep),
        ("tp", tp),
    )
    chain = [name if " " in name else f"{name} {degree}" for name, degree in terms if degree > 1]
    return " -> ".join(chain) or "one GPU"


def _ep_options(graph: Graph) -> str:
    etp = graph.mesh.degree("etp")
    routes = [n.attrs for _, n in graph.nodes() if n.op == "route"]
    redundant = max((r["slots"] - r["experts"] for r in routes), default=0)
    options = ([f"etp {etp}"] if etp > 1 else []) + ([f"redundant {redundant}"] if redundant else [])
    return f" {{ {' '.join(options)} }}" if options else ""


def _speed(analysis: PhaseAnalysis) -> str:
    name = "TTFT" if analysis.graph.phase == "prefill" else "TPOT"
    return f"{name} {duration(analysis.latency)} | {analysis.tokens_per_s:,.0f} tokens/s"


def _memory(analysis: PhaseAnalysis) -> str:
    fullest = analysis.memory.fullest
    shares = (("weights", fullest.weights), ("KV", fullest.kv_cache), ("activations", fullest.activations),
              ("buffers", fullest.buffers))  # fmt: skip
    words = ", ".join(f"{name} {quantity(size, 'B')}" for name, size in shares)
    return f"memory per GPU {quantity(fullest.total, 'B')} of {quantity(analysis.memory.capacity, 'B')} ({words})"


def _work(graph: Graph) -> str:
    firsts = [i for i in graph.items if i.first]
    sequences = sorted({i.batch for i in firsts}, reverse=True)
    count = len(firsts)
    size = "-".join(str(s) for s in dict.fromkeys((sequences[-1], sequences[0])))
    words = [f"{count} micro-batch{'es' if count > 1 else ''} of {size} sequence{'s' if size != '1' else ''}"]
    chunks = max(i.chunk for i in graph.items) + 1
    if chunks > 1:
        words.append(f"{chunks} chunks")
    if graph.steps > 1:
        words.append(f"{graph.steps} decode steps")
    if count * chunks > 1:
        words.append("the largest is drawn, the others are alike")
    return ", ".join(words)


def _layout(graph: Graph) -> str:
    mesh = graph.mesh
    attention = " x ".join(f"{v} {mesh.degree(v)}" for v in ("adp", "sp", "tp") if mesh.degree(v) > 1)
    experts = " x ".join(f"{v} {mesh.degree(v)}" for v in ("edp", "ep", "etp") if mesh.degree(v) > 1)
    has_experts = any(n.op == "expert" for _, n in graph.nodes())
    words = [f"attention on each stage: {attention}"] if attention else []
    words += [f"experts: {experts}"] if experts and has_experts else []
    if mesh.dp > 1:
        first = mesh.first_rank
        words.append(
            f"replica 0 of {mesh.dp} is drawn, the others run on GPUs "
            f"{number_ranges(range(first + mesh.replica_ranks, first + mesh.gpus))}"
        )
    return ", ".join(words) or "every tensor whole"
