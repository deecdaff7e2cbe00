"""Sections 1 and 2: what there is to run on, what is to be run, what binds it, and how the phases differ."""

from __future__ import annotations

from math import ceil

from ...cost import Link
from ...spec.counts import active_parameters, kv_bytes_per_token, parameters
from ...spec.strategy import Phase
from ._facts import Facts, PhaseFacts, model_bytes
from ._format import amount, counted, percent, rate, seconds, size, strategy_text, table


def environment(facts: Facts) -> list[str]:
    """Resources, model, workload and bottlenecks."""
    parts = (_resources, _model, _work, _reading, _bottlenecks)
    return ["## 1. Environment", "", *(line for part in parts for line in part(facts))]


def _resources(facts: Facts) -> list[str]:
    cluster, hardware = facts.loaded.spec.cluster, facts.hardware
    nodes = "as many nodes as wanted" if cluster.nodes is None else f"{cluster.nodes} nodes"
    whole = "" if cluster.gpus is None else f" = {cluster.gpus} GPUs"
    model = facts.loaded.spec.model
    rows = [
        ("accelerator", hardware.name),
        ("GPUs", f"{nodes} of {cluster.gpus_per_node}{whole}"),
        ("memory per GPU", size(hardware.memory)),
        ("HBM bandwidth per GPU", f"{size(hardware.bandwidth)}/s"),
    ]
    for dtype in dict.fromkeys((model.projection_dtype, model.expert_dtype, "bf16")):
        rows.append((f"dense peak, {dtype}", f"{amount(hardware.peaks[dtype])}FLOP/s"))
    rows += [
        ("scale-up link", f"{_link(hardware.scale_up)}, domains of {hardware.domain} GPUs"),
        ("scale-out link", _link(hardware.scale_out)),
    ]
    return ["Resources:", "", *table(("resource", "figure"), rows)]


def _link(link: Link) -> str:
    return f"{size(link.bandwidth)}/s per GPU and direction reached, {seconds(link.latency)} per hop"


def _model(facts: Facts) -> list[str]:
    model, hardware = facts.loaded.spec.model, facts.hardware
    weights = model_bytes(facts.loaded.spec)
    attention = model.attention
    heads = f"{attention.kind}, {attention.heads} heads"
    heads += "" if attention.kind == "mla" else f", {attention.kv_heads} KV heads of {attention.head_dim}"
    rows = [
        ("model", model.name),
        ("layers x hidden", f"{model.layers.count} x {model.hidden}"),
        ("attention", heads),
    ]
    if model.moe is not None:
        shared = f", {model.moe.shared} shared" if model.moe.shared else ""
        rows.append(("experts", f"{model.moe.experts}, {model.moe.top_k} per token{shared}, width {model.moe.ffn}"))
    rows += [
        ("parameters", f"{amount(parameters(model))}, {amount(active_parameters(model))} active per token"),
        (
            "weights",
            f"{size(weights)} in one copy: at least {counted(ceil(weights / hardware.memory), 'GPU')} by memory alone",
        ),
        ("KV cache", f"{size(kv_bytes_per_token(model))} per token ({model.kv_dtype})"),
    ]
    return ["Model:", "", *table(("property", "figure"), rows)]


def _work(facts: Facts) -> list[str]:
    work, model = facts.loaded.spec.workload, facts.loaded.spec.model
    tokens = work.input + work.output
    require = work.require
    each = kv_bytes_per_token(model) * tokens
    rows = [
        ("sequences in flight", str(work.batch) if work.batch else "searched"),
        ("prompt, output", f"{work.input}, {work.output} tokens"),
        ("KV cache of a sequence at its end", size(each)),
    ]
    if work.sequence is not None:
        shortest, longest = work.sequence
        rows.append(("lengths", f"{shortest} to {longest} tokens; the longest sequence has to fit alone"))
    if work.batch:
        rows.append(("KV cache of all sequences", size(each * work.batch)))
    rows += [
        ("required", text)
        for text in (
            f"TTFT at most {seconds(require.ttft)}" if require.ttft is not None else "",
            f"TPOT at most {seconds(require.tpot)}" if require.tpot is not None else "",
            f"at least {rate(require.throughput)} tokens/s" if require.throughput is not None else "",
            f"at least {rate(require.throughput_per_gpu)} tokens/s per GPU" if require.throughput_per_gpu else "",
            f"{work.rate:,.4g} requests/s served" if work.rate is not None else "",
        )
        if text
    ]
    if not any(row[0] == "required" for row in rows):
        rows.append(("required", "nothing"))
    return ["Workload:", "", *table(("property", "figure"), rows)]


_OF_THE_FILE = ("PD102", "PD106", "PD107", "PD108")
"""Codes of what rules find on model, accelerator and workload, whatever the strategy."""


def _reading(facts: Facts) -> list[str]:
    """Lines that went unused, contradict something or were remarked on; nothing where all were taken as they stand."""
    loaded = facts.loaded
    texts = {u.line: u.text for u in loaded.lines}
    texts = texts or dict(enumerate("\n".join(loaded.texts.values()).splitlines(), 1))
    said: dict[int, list[str]] = {}
    for finding in loaded.diagnostics:
        if finding.span is not None and finding.code != "PD103":
            told = f"{finding.code}: {finding.message}" + (f"; {finding.help}" if finding.help else "")
            said.setdefault(finding.span.line, []).append(told)
    for used in loaded.lines:
        if used.use == "unused":
            said.setdefault(used.line, [f"unused: {used.detail}"])
    rows = [(str(line), texts.get(line, "-").strip(), ", ".join(said[line])) for line in sorted(said)]
    rows += [("-", "-", f"{d.code}: {d.message}") for d in facts.findings if d.code in _OF_THE_FILE]
    if not rows:
        return []
    return ["Lines of the file that ask for a second look:", "", *table(("line", "text", "what became of it"), rows)]


def _bottlenecks(facts: Facts) -> list[str]:
    if not facts.phases:
        return ["Bottleneck: memory. No legal strategy fits into it.", ""]
    name = "the choice" if facts.plan.feasible else "the closest strategies"
    lines = [f"Bottlenecks, as shares of the busy time of all stages under {name}:", ""]
    bounds = ("compute", "memory", "network", "latency")
    rows = []
    for phase in facts.phases.values():
        by, modules = phase.seconds_by("bound"), phase.seconds_by("module")
        total = sum(by.values())
        largest = next(iter(modules))
        shares = [percent(by.get(b, 0.0) / total) for b in bounds]
        rows.append((phase.phase, *shares, f"{largest} ({percent(modules[largest] / total)})"))
    return [*lines, *table(("phase", *bounds, "largest module"), rows, right=bounds)]


# --- phases -------------------------------------------------------------------------------------------------------


def phases(facts: Facts) -> list[str]:
    """What each phase does and which resource it leans on."""
    work = facts.spec.workload
    lines = ["## 2. Phases", ""]
    about: dict[Phase, str] = {
        "prefill": f"all {work.input} prompt tokens of a sequence at once; every token meets the weights together",
        "decode": f"one token per sequence and step, {work.output} steps; every step reads all weights that it meets, "
        "and the KV cache",
    }
    planned = {p: s for p, s in about.items() if p in facts.plan.counts}
    lines += [f"- **{phase}**: {text}." for phase, text in planned.items()]
    if len(planned) < 2:
        lines.append(f"- The workload's mode is `{work.mode}`: the other phase is not planned.")
    lines.append("")
    if len(planned) == 2:
        lines += ["Nothing crosses between the two but the KV cache.", ""]
    rows = [_intensity(facts, phase) for phase in facts.phases.values()]
    if rows:
        columns = ("phase", "strategy", "FLOPs", "HBM bytes", "FLOPs per byte", "balance of the GPU", "leans on")
        told = "Work of one GPU of each stage, summed over the stages, for the whole batch (one decode step):"
        lines += [told, "", *table(columns, rows, right=columns[2:6])]
        lines += [
            "Above the GPU's balance (peak FLOP/s over HBM bytes/s) arithmetic takes longer than memory traffic; below "
            "it memory does. `leans on` is what most of the busy time goes to, communication included.",
            "",
        ]
    return lines


def _intensity(facts: Facts, phase: PhaseFacts) -> tuple[str, ...]:
    flops, moved = phase.work()
    hardware = facts.hardware
    balance = hardware.peaks[facts.spec.model.dtype] / hardware.bandwidth
    most = next(iter(phase.seconds_by("bound")))
    return (
        phase.phase,
        f"`{strategy_text(phase.strategy)}`",
        amount(flops),
        size(moved),
        f"{flops / moved:.3g}" if moved else "-",
        f"{balance:.3g}",
        most,
    )
