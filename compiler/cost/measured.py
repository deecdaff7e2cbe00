"""What a row of measurements says in terms of the cost functions, and how each class is fitted.

A :class:`Law` takes columns of a table and gives the prediction for a parameter set; ``paradag calibrate`` and
``benchmarks/calibrate.py`` share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..spec.calibration import (
    CollectiveParameters,
    DecodeParameters,
    ExchangeParameters,
    ExpertParameters,
    GemmParameters,
    Parameters,
    PrefillParameters,
    StreamingParameters,
)
from ._terms import Terms
from .attention import decode_attention_time, prefill_attention_time
from .experts import Load, even_load, expert_bytes, experts_time, skewed_load, uniform_load
from .fit import fit
from .gemm import gemm_time
from .hardware import Link
from .network import exchange_terms, wire_bytes, wire_time
from .streaming import streaming_time

Floats = NDArray[np.float64]
Columns = Mapping[str, Floats]


@dataclass(frozen=True)
class Chip:
    """Datasheet figures that predictions need.

    Attributes:
        peak: Dense FLOP/s of the format that the class computes in.
        bandwidth: Memory bytes per second.
        units: Multiprocessors.
        link: Scale-up bytes per second and direction.
        network: Scale-out bytes per second and direction.
        domain: GPUs of a scale-up domain.
        cache: Bytes of the last-level cache; 0 leaves it out.
        rotation: Sets of weights that a benchmark of products runs through in turn.
    """

    peak: float
    bandwidth: float
    units: int
    link: float = 1.0
    network: float = 1.0
    domain: int = 8
    cache: float = 0.0
    rotation: int = 1


@dataclass(frozen=True)
class Law:
    """How one operator class is predicted and fitted.

    Attributes:
        kind: Operator class of the parameter set.
        columns: Columns of a row, all numbers; those in ``optional`` have a default.
        terms: Prediction of all rows.
        starts: Where fits begin.
        bounds: Fields that are fitted and where they may lie.
        grid: Fields that take one of a few values.
        rows: Fewest rows that a fit may rest on.
    """

    kind: str
    columns: tuple[str, ...]
    terms: Callable[[Any, Columns, Chip, str], Terms]
    starts: Sequence[Parameters]
    bounds: Mapping[str, tuple[float, float]]
    grid: Mapping[str, Sequence[float]] = field(default_factory=dict)
    optional: Mapping[str, float] = field(default_factory=dict)
    rows: int = 12

    def predict(self, parameters: Parameters, columns: Columns, chip: Chip, variant: str) -> Floats:
        """Seconds of every row."""
        shape = next(iter(columns.values())).shape
        return np.broadcast_to(np.asarray(self.terms(parameters, columns, chip, variant).time, dtype=float), shape)

    def fit(self, columns: Columns, seconds: Floats, chip: Chip, variant: str) -> Parameters:
        """The parameters that suit the rows.

        Where the host issued the kernels one by one, its time hides what an empty kernel takes on the device: then
        that is not fitted but taken as two launches, of the kernel and of the one that prepares its input.
        """

        def best(starts: Sequence[Parameters], bounds: Mapping[str, tuple[float, float]]) -> Parameters:
            return fit(lambda p: self.predict(p, columns, chip, variant), seconds, starts, bounds, self.grid or None)

        found = best(self.starts, self.bounds)
        if getattr(found, "issue_s", 0.0) <= HOST_BOUND_S:
            return found
        starts = [replace(start, latency_s=HIDDEN_S) for start in self.starts]  # type: ignore[call-arg]
        return best(starts, {name: limits for name, limits in self.bounds.items() if name != "latency_s"})


HOST_BOUND_S = 2e-5
"""Seconds that the host takes to issue a kernel, from which on an empty kernel's own time is not seen."""
HIDDEN_S = 8e-6
"""What is taken for it: about twice an empty product that was replayed from a captured graph."""


WEIGHT_BYTES: Mapping[str, float] = {
    "bf16": 2, "fp8": 1, "fp8_block": 1, "int8": 1, "int4": 4.125 / 8, "nvfp4": 4.5 / 8, "mxfp4": 4.25 / 8,
}  # fmt: skip
"""Bytes of a weight in each variant."""


def _gemm(p: GemmParameters, c: Columns, chip: Chip, variant: str) -> Terms:
    m, n, k = c["m"], c["n"], c["k"]
    weights, others = n * k * WEIGHT_BYTES[variant], 2 * m * (n + k)
    moved = weights + others
    resident = _resident(chip.rotation * weights + others, chip, p.cache_share)
    return gemm_time(
        m,
        n,
        k,
        moved,
        peak=chip.peak,
        bandwidth=chip.bandwidth,
        units=chip.units,
        parameters=p,
        resident=resident,
        eager=True,
    )


def _resident(reused: Any, chip: Chip, share: float) -> Any:
    """Share of the bytes that a repeated kernel finds in the last-level cache, of operands of ``reused`` bytes."""
    return 1 / (1 + (reused / (chip.cache * share)) ** 4) if chip.cache else 0.0


def _prefill(p: PrefillParameters, c: Columns, chip: Chip, variant: str) -> Terms:
    window = np.where(c["window"] > 0, c["window"], np.inf)
    seen = np.minimum(c["past"] + c["new"], c["new"] + window - 1)
    v_dim = np.where(c["v_dim"] > 0, c["v_dim"], c["head_dim"])
    cached = c["kv_heads"] * (c["head_dim"] + v_dim) * (1 if variant == "fp8" else 2)
    cache = c["batch"] * seen * cached
    moved = c["batch"] * c["new"] * c["heads"] * (c["head_dim"] + v_dim) * 2 + cache
    return prefill_attention_time(
        c["batch"], c["new"], c["past"], c["heads"], c["head_dim"], v_dim, moved, cache,
        window=window, peak=chip.peak, bandwidth=chip.bandwidth, units=chip.units, parameters=p,
        kv_heads=c["kv_heads"], resident=_resident(moved, chip, p.cache_share),
    )  # fmt: skip


def _decode(p: DecodeParameters, c: Columns, chip: Chip, variant: str) -> Terms:
    window = np.where(c["window"] > 0, c["window"], np.inf)
    seen = np.minimum(c["context"], window)
    cached = c["kv_heads"] * 2 * c["head_dim"]
    return _decode_terms(p, c, chip, variant, seen, c["kv_heads"], c["head_dim"], c["head_dim"], cached)


def _mla_decode(p: DecodeParameters, c: Columns, chip: Chip, variant: str) -> Terms:
    latent = c["kv_lora"] + c["rope_dim"]
    return _decode_terms(p, c, chip, variant, c["context"], np.ones(()), latent, c["kv_lora"], latent)


def _decode_terms(
    p: DecodeParameters, c: Columns, chip: Chip, variant: str, seen: Any, kv: Any, qk: Any, v: Any, cached: Any
) -> Terms:
    moved = c["batch"] * (seen * cached * (1 if variant == "fp8" else 2) + c["heads"] * (qk + v) * 2)
    resident = _resident(moved, chip, p.cache_share)
    return decode_attention_time(
        c["batch"], seen, c["heads"], kv, qk, v, moved, resident=resident,
        peak=chip.peak, bandwidth=chip.bandwidth, units=chip.units, parameters=p,
    )  # fmt: skip


def _experts(p: ExpertParameters, c: Columns, chip: Chip, variant: str) -> Terms:
    load, inter, width = _load(c), c["inter"] / c["moe_tp"], WEIGHT_BYTES[variant]
    resident = _resident(expert_bytes(load, c["hidden"], inter, width), chip, p.cache_share)
    return experts_time(
        load, c["hidden"], inter, width, handed=c["tokens"] * c["top_k"], resident=resident,
        peak=chip.peak, bandwidth=chip.bandwidth, units=chip.units, parameters=p,
    )  # fmt: skip


def _load(c: Columns) -> Load:
    """``skew`` of a row: 0 uniform, below 0 even, else the exponent of a power law."""
    given = (c["tokens"], c["top_k"], c["experts"], c["experts"] / c["moe_ep"])
    skewed = skewed_load(*given, np.maximum(c["skew"], 1e-3))
    width = skewed.rows.shape[-1]
    result = skewed
    for wanted, other in ((c["skew"] == 0, uniform_load(*given)), (c["skew"] < 0, even_load(*given))):
        chosen = wanted[..., None]
        padded = (np.concatenate([x, np.zeros((*x.shape[:-1], width - 1))], axis=-1) for x in other)
        result = Load(*(np.where(chosen, a, b) for a, b in zip(padded, result, strict=True)))
    return result


def _streaming(p: StreamingParameters, c: Columns, chip: Chip, variant: str) -> Terms:
    return streaming_time(c["bytes"], bandwidth=chip.bandwidth, parameters=p)


def _collective(op: str) -> Callable[[Any, Columns, Chip, str], Terms]:
    def terms(p: CollectiveParameters, c: Columns, chip: Chip, variant: str) -> Terms:
        link = Link(chip.link, 0.0, chip.link)
        wire = wire_bytes(op, c["bytes"], c["ranks"])
        return wire_time(op, wire, c["ranks"], link, p, message=c["bytes"])

    return terms


def _exchange(p: ExchangeParameters, c: Columns, chip: Chip, variant: str) -> Terms:
    inside = np.minimum(c["ranks"], chip.domain)
    links = (Link(chip.link, 0.0, chip.link), Link(chip.network, 0.0, chip.network))
    return exchange_terms(c["bytes"], c["ranks"], inside, links, p, c["top_k"], variant)


_SHARE = (0.05, 1.05)
_OVERLAP = (1.0, 16.0)
_START = (1e-6, 2e-4)
_CACHED = (0.1, 5.0)
_TILED = {"fill": 64.0, "lost": 0.8, "sustained": 0.9}

_ATTENTION = {
    "latency_s": _START, "compute_efficiency": (0.02, 1.05), "bandwidth_efficiency": _SHARE, "softmax": (1.0, 3000.0),
    "overlap": _OVERLAP,
}  # fmt: skip
_PREFILL = {
    **_ATTENTION,
    "tail": (0.01, 4.0),
    "prepare": (0.001, 20.0),
    "prepare_cache": (0.001, 40.0),
    "window_pad": (1.0, 1024.0),
    "fill": (0.1, 2000.0),
    "cache_gain": (1.0, 10.0),
    "cache_share": _CACHED,
}
_PREFILL_GRID = {"query_tile": (16.0, 64.0, 128.0, 256.0), "packed": (0.0, 1.0), "head_tile": (1.0, 128.0)}
_PREFILL_STARTS = (
    PrefillParameters(1e-5, 0.6, 0.6, fill=16.0),
    PrefillParameters(1e-5, 0.3, 0.3, softmax=300.0, prepare=0.1, fill=16.0),
)
_DECODE = {
    **_ATTENTION, "unit_gain": (0.2, 20.0), "sequence_s": (1e-11, 1e-6), "lost": (0.01, 1.0),
    "cache_gain": (1.0, 10.0), "cache_share": _CACHED,
}  # fmt: skip
_DECODE_GRID = {
    "chunk": (128.0, 256.0, 512.0, 1024.0),
    "row_tile": (1.0, 8.0, 16.0, 64.0),
    "token_tile": (1.0, 16.0, 128.0),
    "occupancy": (2.0, 8.0),
}
_DECODE_STARTS = (
    DecodeParameters(8e-6, 0.8, 0.4),
    DecodeParameters(8e-6, 0.7, 0.1, unit_gain=1.0),
    DecodeParameters(8e-6, 0.7, 0.1, unit_gain=1.0, occupancy=4.0, lost=0.5),
)
_RING = {
    "latency_s": _START,
    "hop_s": (1e-8, 2e-5),
    "efficiency": (0.05, 1.5),
    "pipeline_s": (1e-8, 1e-3),
    "contention": (1e-3, 3.0),
}
_RING_STARTS = (CollectiveParameters(5e-6, 2e-6, 0.8), CollectiveParameters(5e-6, 2e-6, 0.8, contention=1.0))
_DIRECT = {
    "direct_latency_s": (1e-6, 1e-4), "direct_hop_s": (1e-8, 1e-5), "direct_efficiency": (0.02, 1.2),
    "second_s": (1e-7, 1e-4),
}  # fmt: skip

LAWS: Mapping[str, Law] = {
    law.kind: law
    for law in (
        Law(
            "gemm", ("m", "n", "k"), _gemm,
            (
                GemmParameters(3e-6, 0.8, 0.8, issue_s=1e-6, **_TILED),
                GemmParameters(5e-6, 0.7, 0.8, 0.2, 2e-10, 1e-5, prepare=1.0, issue_s=1e-6, **_TILED),
                GemmParameters(8e-6, 0.6, 0.7, 0.1, 2e-9, 3e-5, prepare=2.0, row_s=1e-9, issue_s=5e-5, **_TILED),
            ),
            {
                "latency_s": _START, "compute_efficiency": (0.1, 1.05), "bandwidth_efficiency": _SHARE,
                "tile_penalty": (0.001, 2.0), "step_s": (1e-12, 2e-8), "split_s": (1e-7, 1e-4),
                "overlap": _OVERLAP, "prepare": (0.001, 20.0), "row_s": (1e-13, 1e-7),
                "cache_gain": (1.0, 10.0), "cache_share": _CACHED, "issue_s": (1e-7, 1e-3),
                "fill": (1.0, 2000.0), "lost": (0.01, 1.0), "sustained": (0.4, 1.0),
            },
            {"small_rows": (64.0, 128.0, 256.0), "splits": (1.0, 32.0)},
        ),
        Law(
            "prefill", ("batch", "new", "past", "heads", "kv_heads", "head_dim", "v_dim", "window"), _prefill,
            _PREFILL_STARTS, _PREFILL, _PREFILL_GRID, optional={"past": 0, "v_dim": 0, "window": 0},
        ),
        Law(
            "mla_prefill", ("batch", "new", "past", "heads", "kv_heads", "head_dim", "v_dim", "window"), _prefill,
            _PREFILL_STARTS, _PREFILL, _PREFILL_GRID, optional={"past": 0, "v_dim": 0, "window": 0},
        ),
        *(Law(
            kind, ("batch", "context", "heads", "kv_heads", "head_dim", "window"), _decode,
            _DECODE_STARTS, _DECODE, _DECODE_GRID, optional={"window": 0},
        ) for kind in ("decode", "decode_mha")),
        Law(
            "mla_decode", ("batch", "context", "heads", "kv_lora", "rope_dim"), _mla_decode,
            _DECODE_STARTS, _DECODE, _DECODE_GRID,
        ),
        Law(
            "experts", ("tokens", "hidden", "inter", "top_k", "experts", "moe_tp", "moe_ep", "skew"), _experts,
            (ExpertParameters(2e-5, 0.6, 0.8, prepare_all=0.5, others=0.1),
             ExpertParameters(4e-5, 0.4, 0.7, prepare=4.0, prepare_all=1.0, expert_s=1e-7, others=0.1)),
            {
                "latency_s": _START, "compute_efficiency": (0.02, 1.05), "bandwidth_efficiency": _SHARE,
                "row_tile": (8.0, 256.0), "prepare": (0.01, 50.0), "prepare_all": (0.001, 20.0),
                "expert_s": (1e-10, 2e-6), "tail": (0.01, 20.0), "overlap": _OVERLAP, "others": (0.001, 2.0),
                "cache_gain": (1.0, 10.0), "cache_share": _CACHED,
            },
            optional={"moe_tp": 1, "moe_ep": 1, "skew": 0},
        ),
        Law(
            "streaming", ("bytes",), _streaming, (StreamingParameters(2e-6, 0.8),),
            {"latency_s": _START, "bandwidth_efficiency": _SHARE}, rows=4,
        ),
        Law(
            "all_reduce", ("bytes", "ranks"), _collective("all_reduce"),
            (CollectiveParameters(1e-5, 3e-6, 0.8, direct_latency_s=3e-6, direct_hop_s=5e-7, direct_efficiency=0.5),
             CollectiveParameters(2e-5, 3e-6, 0.9, direct_latency_s=4e-6, direct_hop_s=2e-7, direct_efficiency=0.3),
             CollectiveParameters(1e-5, 3e-6, 0.8, contention=1.0, direct_latency_s=5e-6, direct_efficiency=0.3)),
            {**_RING, **_DIRECT},
        ),
        *(
            Law(op, ("bytes", "ranks"), _collective(op), _RING_STARTS, _RING)
            for op in ("all_gather", "reduce_scatter", "all_to_all")
        ),
        Law(
            "p2p", ("bytes", "ranks"), _collective("p2p"), _RING_STARTS[:1],
            {k: v for k, v in _RING.items() if k not in ("hop_s", "contention")}, optional={"ranks": 2},
        ),
        *(
            Law(
                op, ("bytes", "ranks", "top_k"), _exchange,
                (ExchangeParameters(2e-5, 0.5, network_latency_s=5e-5, network_efficiency=0.7),),
                {
                    "latency_s": (1e-6, 1e-3), "efficiency": (0.02, 1.2), "network_latency_s": (1e-6, 5e-4),
                    "network_efficiency": (0.02, 2.0), "overlap": _OVERLAP,
                },
                optional={"top_k": 1},
            )
            for op in ("dispatch", "combine")
        ),
    )
}  # fmt: skip
"""Laws by operator class. Launch overheads have none: they are read off the smallest kernels."""
