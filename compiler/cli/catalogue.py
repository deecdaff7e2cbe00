"""``paradag accelerators`` and ``paradag models``: what the catalogues hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._common import FormatOption, OutputFormat, write_json, write_table

if TYPE_CHECKING:
    from ..spec import ModelSpec
    from ..spec.catalog import CatalogEntry, CatalogLink


def accelerators_command(output: FormatOption = OutputFormat.TEXT) -> None:
    """List the accelerators that a cluster block can name.

    Peaks are dense, bandwidths per chip and direction. `GEMM` and `stream` are shares of the bf16 peak and of the
    memory bandwidth that bf16 products reach, `error` the median error of the fit, `fitted on` the chip and engine
    whose kernels were measured. JSON is in FLOP/s, bytes, bytes per second and seconds, with all fitted parameters,
    sources and notes.
    """
    from ..spec.catalog import accelerator, accelerator_names

    entries = [accelerator(name) for name in accelerator_names()]
    if output is OutputFormat.JSON:
        write_json([_accelerator_json(entry) for entry in entries])
        return
    left = ("name", "scale-up", "confidence", "fitted on")
    right = ("memory GB", "HBM GB/s", "bf16 TF", "fp8 TF", "fp4 TF", "int8 TOPS", "up GB/s", "domain", "out GB/s")
    shares = ("GEMM", "stream", "error")
    columns = (left[0], *right[:6], left[1], *right[6:], left[2], *shares, left[3])
    write_table(columns, (_accelerator_row(entry) for entry in entries), right=(*right, *shares))


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
        *_fitted_row(entry),
    )


def _fitted_row(entry: CatalogEntry) -> tuple[str, ...]:
    from ..spec.inheritance import calibrated, shipped

    calibration = calibrated(shipped(), entry.name, entry, None, [])
    gemm, fit = calibration.gemm("bf16"), calibration.fits["gemm", "bf16"]
    own = calibration.origins.get(("gemm", "bf16"))
    error = "-" if fit.residual is None or own else f"{fit.residual.median:.0%}"
    origin = own or f"{entry.name}, {calibration.engine}"
    return f"{gemm.compute_efficiency:.0%}", f"{gemm.bandwidth_efficiency:.0%}", error, origin


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
        "multiprocessors": entry.units,
        "network_efficiency": entry.network_efficiency,
        "fitted": _fitted_json(entry),
        "confidence": entry.confidence,
        "sources": entry.sources,
        "notes": entry.notes,
    }


def _fitted_json(entry: CatalogEntry) -> dict[str, Any]:
    """Default engine, the engines measured, and every parameter set with residual, source and origin."""
    from dataclasses import asdict

    from ..spec.inheritance import calibrated, shipped

    library = shipped()
    calibration = calibrated(library, entry.name, entry, None, [])
    classes: dict[str, dict[str, Any]] = {}
    for key, fit in calibration.fits.items():
        classes.setdefault(key[0], {})[key[1]] = {
            "parameters": asdict(fit.parameters),
            "residual": None if fit.residual is None else asdict(fit.residual),
            "source": fit.source,
            "inherited_from": calibration.origins.get(key),
        }
    return {"engine": calibration.engine, "engines": library.engines(entry.name), "classes": classes}


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
