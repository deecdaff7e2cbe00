"""A spec as canonical text: reading it back gives the same spec."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal

from ..compiler.spec import (
    AcceleratorSpec,
    AttentionSpec,
    ChainTerm,
    ClusterSpec,
    LayersSpec,
    LinkSpec,
    ModelSpec,
    MoeSpec,
    RotarySpec,
    Spec,
    StrategySpec,
    WorkloadSpec,
)
from ..compiler.spec.model import NORM_EPSILON
from ..compiler.spec.rotary import ROTARY_THETA
from ._format import format_text
from ._units import BANDWIDTH, COMPUTE, FACTOR, PARAMETERS, RATE, SHARE, SIZE, THROUGHPUT, TIME, Measure, show

__all__ = ["print_spec"]


def print_spec(spec: Spec) -> str:
    """The canonical strategy file of ``spec``: every field that differs from its default, in the language's order."""
    blocks = [_model(spec.model), _cluster(spec.cluster), _workload(spec.workload)]
    return format_text("\n".join([*blocks, *(_strategy(strategy) for strategy in spec.strategies)]))


def _block(head: str, statements: Iterable[str]) -> str:
    """A block; how it is laid out is the formatter's business."""
    return "\n".join([f"{head} {{", *statements, "}"])


def _inline(head: str, statements: Iterable[str]) -> str:
    """A block; no braces where it is empty."""
    parts = list(statements)
    return _block(head, parts) if parts else head


def _counts(spec: object, *keys: str) -> list[str]:
    """``key N`` for each field that is set."""
    return [f"{key} {value}" for key in keys if (value := getattr(spec, key)) is not None]


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=any("\ud800" <= c <= "\udfff" or c in _BREAKS for c in value))


_BREAKS = "\x7f\x85\u2028\u2029"


def _model(model: ModelSpec) -> str:
    statements = [_layers(model.layers), *_counts(model, "hidden", "vocab", "ffn"), _attention(model.attention)]
    if model.moe is not None:
        statements.append(_moe(model.moe))
    if model.rotary != RotarySpec():
        statements.append(_rotary(model.rotary))
    if model.norm_eps != NORM_EPSILON:
        statements.append(f"norm_eps {_scientific(model.norm_eps)}")
    if model.tied:
        statements.append("tied true")
    statements += _counts(model, "max_context")
    statements += [f"dtype {model.dtype}", f"kv_dtype {model.kv_dtype}"]
    if model.weights is not None:
        statements.append(f"weights {show(model.weights, PARAMETERS)}")
    return _block(f"model {_text(model.name)}", statements)


def _layers(layers: LayersSpec) -> str:
    statements = [f"dense {layers.dense}"] if layers.dense else []
    if layers.dense_at:
        statements.append(f"dense_at {' '.join(map(str, layers.dense_at))}")
    if layers.pattern:
        statements.append(f"pattern {' '.join(layers.pattern)}")
    return _inline(f"layers {layers.count}", [*statements, *_counts(layers, "window")])


def _attention(attention: AttentionSpec) -> str:
    """Without what follows from the kind: the KV heads of mha, mqa and mla, the head dimension of mla."""
    keys = {"gqa": ["heads", "kv_heads", "head_dim"], "mla": ["heads"]}.get(attention.kind, ["heads", "head_dim"])
    statements = _counts(attention, *keys, "window", "q_lora", "kv_lora", "nope_dim", "rope_dim", "v_dim")
    if attention.qk_norm != "none":
        statements.append(f"qk_norm {'true' if attention.qk_norm == 'head' else attention.qk_norm}")
    if attention.bias != "none":
        statements.append(f"bias {'true' if attention.bias == 'all' else attention.bias}")
    if attention.sinks:
        statements.append("sinks true")
    return _inline(f"attention {attention.kind}", [*statements, *_counts(attention, "dtype")])


def _moe(moe: MoeSpec) -> str:
    statements = _counts(moe, "experts", "top_k", "ffn")
    if moe.shared:
        statements.append(f"shared {moe.shared}")
    if moe.router != "softmax":
        statements.append(f"router {moe.router}")
    if moe.bias:
        statements.append("bias true")
    if not moe.renormalize:
        statements.append("renormalize false")
    if moe.scale != 1.0:
        statements.append(f"scale {show(moe.scale, FACTOR)}")
    statements += [f"{key} {n}" for key, n in (("groups", moe.groups), ("top_groups", moe.top_groups)) if n != 1]
    return _inline("moe", [*statements, *_counts(moe, "dtype")])


def _rotary(rotary: RotarySpec) -> str:
    statements = [f"theta {show(rotary.theta, FACTOR)}"] if rotary.theta != ROTARY_THETA else []
    if rotary.style != "half":
        statements.append(f"style {rotary.style}")
    statements += _counts(rotary, "dim")
    if rotary.scaling is not None:
        given = rotary.scaling.model_dump(exclude_defaults=True, exclude={"kind"})
        statements.append(_inline(f"scaling {rotary.scaling.kind}", [f"{k} {_value(v)}" for k, v in given.items()]))
    return _inline("rotary", statements)


def _scientific(value: float) -> str:
    """``1e-5``: the shortest text that reads back exactly."""
    return f"{Decimal(repr(value)).normalize():e}"


def _value(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else show(value, FACTOR)


def _cluster(cluster: ClusterSpec) -> str:
    nodes = "any" if cluster.nodes is None else str(cluster.nodes)
    statements = [_accelerator(cluster.accelerator), f"nodes {nodes} of {cluster.gpus_per_node}"]
    for name in ("scale_up", "scale_out", "host"):
        link: LinkSpec = getattr(cluster, name)
        parts = _measures(("bandwidth", link.bandwidth, BANDWIDTH), ("latency", link.latency, TIME))
        parts += _counts(link, "domain")
        if parts:
            statements.append(_inline(f"link {name}", parts))
    return _block("cluster", statements)


def _measures(*values: tuple[str, float | None, Measure]) -> list[str]:
    return [f"{key} {show(value, measure)}" for key, value, measure in values if value is not None]


def _accelerator(chip: AcceleratorSpec) -> str:
    share = "" if chip.compute_efficiency is None else f" at {show(chip.compute_efficiency, SHARE)}"
    statements = []
    for dtype, peak in chip.compute.items():
        statements.append(f"compute {show(peak, COMPUTE)}{'' if dtype == '*' else f' {dtype}'}{share}")
    if share and not statements:
        statements.append(f"compute{share}")
    statements += _measures(("memory", chip.memory, SIZE))
    rate = _measures(("bandwidth", chip.bandwidth, BANDWIDTH))
    if chip.bandwidth_efficiency is not None:
        rate = [f"{rate[0] if rate else 'bandwidth'} at {show(chip.bandwidth_efficiency, SHARE)}"]
    return _inline(f"accelerator {chip.catalog or _text(chip.name)}", [*statements, *rate])


def _workload(workload: WorkloadSpec) -> str:
    statements = _counts(workload, "batch")
    statements += [f"input {workload.input} tokens", f"output {workload.output} tokens"]
    if workload.sequence is not None:
        statements.append(f"sequence {workload.sequence[0]}..{workload.sequence[1]} tokens")
    statements += _measures(("rate", workload.rate, RATE))
    if workload.mode != "both":
        statements.append(f"mode {workload.mode}")
    require = workload.require
    statements += _measures(("require ttft <=", require.ttft, TIME), ("require tpot <=", require.tpot, TIME))
    statements += _measures(
        ("require throughput >=", require.throughput, THROUGHPUT),
        ("require throughput_per_gpu >=", require.throughput_per_gpu, THROUGHPUT),
    )
    return _block("workload", statements)


def _strategy(strategy: StrategySpec) -> str:
    statements = [" -> ".join(_term(term) for term in strategy.chain)] if strategy.chain else []
    statements += _counts(strategy, "ranks")
    if strategy.microbatches != 1:
        statements.append(f"microbatches {strategy.microbatches}")
    statements += _counts(strategy, "chunk")
    if strategy.placement:
        statements.append(f"placement {' '.join(strategy.placement)}")
    if strategy.pools != "shared":
        statements.append(f"pools {strategy.pools}")
    return _block(f"strategy {strategy.phase}", statements)


def _term(term: ChainTerm) -> str:
    if term.degree is None:
        return f"{term.name} {term.kind}"
    head = f"{term.name} {term.degree}" + (f" kind {term.kind}" if term.kind else "")
    statements = [f"layers {' '.join(map(str, term.layers))}"] if term.layers else []
    statements += _counts(term, "etp")
    if term.redundant:
        statements.append(f"redundant {term.redundant}")
    return _inline(head, statements)
