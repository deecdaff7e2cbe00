"""``paradag accelerators`` and ``paradag models``: what the catalogues hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._common import FormatOption, OutputFormat, write_json, write_table

if TYPE_CHECKING:
    from ..spec import ModelSpec
    from ..spec.catalog import CatalogEntry, CatalogLink


def accelerators_command(output: FormatOption = OutputFormat.TEXT) -> None:
    """List the accelerators that a cluster block can name.

    Peaks are dense, bandwidths per chip and direction. JSON is in FLOP/s, bytes, bytes per second and seconds, with
    sources and notes.
    """
    from ..spec.catalog import accelerator, accelerator_names

    entries = [accelerator(name) for name in accelerator_names()]
    if output is OutputFormat.JSON:
        write_json([_accelerator_json(entry) for entry in entries])
        return
    left = ("name", "scale-up", "confidence")
    right = ("memory GB", "HBM GB/s", "bf16 TF", "fp8 TF", "fp4 TF", "int8 TOPS", "up GB/s", "domain", "out GB/s")
    columns = (left[0], *right[:6], left[1], *right[6:], left[2])
    write_table(columns, (_accelerator_row(entry) for entry in entries), right=right)


def models_command(output: FormatOption = OutputFormat.TEXT) -> None:
    """List the models of the catalogue with their exact sizes.

    Parameters count embedding and LM head; active ones are those that one token meets; KV bytes are those that one
    token adds over all layers. JSON holds every dimension, in the field names of a model block.
    """
    from ..spec.catalog import model, model_names

    models = {name: model(name) for name in model_names()}
    if output is OutputFormat.JSON:
        write_json([_model_json(name, spec) for name, spec in models.items()])
        return
    columns = ("name", "layers", "hidden", "attention", "experts", "parameters", "active", "KV B/token", "dtype")
    right = ("layers", "hidden", "parameters", "active", "KV B/token")
    write_table(columns, (_model_row(name, spec) for name, spec in models.items()), right=right)


def _accelerator_row(entry: CatalogEntry) -> tuple[str, ...]:
    def peak(dtype: str) -> str:
        return _scaled(entry.peaks.get(dtype), 1e12)

    return (
        entry.name,
        _scaled(entry.memory, 1e9),
        _scaled(entry.bandwidth, 1e9),
        peak("bf16"),
        peak("fp8"),
        peak("nvfp4"),
        peak("int8"),
        entry.scale_up.name,
        _scaled(entry.scale_up.bandwidth, 1e9),
        str(entry.scale_up.domain or "-"),
        _scaled(entry.scale_out.bandwidth, 1e9),
        entry.confidence,
    )


def _scaled(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.10g}"


def _accelerator_json(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "vendor": entry.vendor,
        "architecture": entry.architecture,
        "compute_capability": entry.compute_capability,
        "peak_flops": dict(entry.peaks),
        "memory_bytes": entry.memory,
        "bandwidth_bytes_per_s": entry.bandwidth,
        "gpus_per_node": entry.gpus_per_node,
        "scale_up": _link_json(entry.scale_up),
        "scale_out": _link_json(entry.scale_out),
        "host": _link_json(entry.host),
        "compute_efficiency": entry.compute_efficiency,
        "bandwidth_efficiency": entry.bandwidth_efficiency,
        "network_efficiency": entry.network_efficiency,
        "launch_overhead_s": entry.launch_overhead_s,
        "confidence": entry.confidence,
        "sources": entry.sources,
        "notes": entry.notes,
    }


def _link_json(link: CatalogLink) -> dict[str, Any]:
    return {
        "name": link.name,
        "bandwidth_bytes_per_s": link.bandwidth,
        "latency_s": link.latency,
        "domain": link.domain,
    }


def _model_row(name: str, spec: ModelSpec) -> tuple[str, ...]:
    from ..spec.counts import active_parameters, kv_bytes_per_token, parameters

    attention, moe = spec.attention, spec.moe
    heads = f"{attention.heads}" if attention.kind == "mla" else f"{attention.heads}/{attention.kv_heads}"
    formats = dict.fromkeys((spec.dtype, spec.projection_dtype, spec.expert_dtype))
    return (
        name,
        str(spec.layers.count),
        str(spec.hidden),
        f"{attention.kind} {heads}",
        "-" if moe is None else f"{moe.top_k} of {moe.experts}" + (f" + {moe.shared}" if moe.shared else ""),
        f"{parameters(spec):,}",
        f"{active_parameters(spec):,}",
        f"{kv_bytes_per_token(spec):,}",
        ", ".join(formats),
    )


def _model_json(name: str, spec: ModelSpec) -> dict[str, Any]:
    from ..spec.counts import active_parameters, kv_bytes_per_token, parameters

    return {
        "name": name,
        "parameters": parameters(spec),
        "active_parameters": active_parameters(spec),
        "kv_bytes_per_token": kv_bytes_per_token(spec),
        "model": spec.model_dump(mode="json"),
    }
