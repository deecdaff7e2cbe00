"""A handful of measured points, typed here, and how close the shipped fits come.

Microseconds from the AIConfigurator 0.12 database (Apache-2.0), tables of the systems and versions named. Each bound is
about the class's mean error: the fits know none of these rows in particular.
"""

from __future__ import annotations

import numpy as np
import pytest

from paradag.compiler.cost.measured import LAWS, Chip
from paradag.compiler.spec.catalog import accelerator
from paradag.compiler.spec.inheritance import shipped

Point = tuple[dict[str, float], float]

GEMM_BF16: list[Point] = [  # h100_sxm, vllm-0.24.0
    ({"m": 1, "n": 10240, "k": 10240}, 74.31),
    ({"m": 48, "n": 12288, "k": 4096}, 38.91),
    ({"m": 3329, "n": 8192, "k": 4096}, 287.25),
    ({"m": 8192, "n": 10240, "k": 8192}, 1842.89),
]
GEMM_FP8: list[Point] = [  # h100_sxm, trtllm-1.3.0rc20
    ({"m": 1, "n": 5120, "k": 7168}, 25.64),
    ({"m": 192, "n": 7168, "k": 8192}, 40.65),
    ({"m": 3584, "n": 8192, "k": 4096}, 209.84),
]
GEMM_NVFP4: list[Point] = [  # b200_sxm, trtllm-1.3.0rc20
    ({"m": 1, "n": 4096, "k": 6144}, 17.38),
    ({"m": 49, "n": 10240, "k": 7168}, 20.54),
    ({"m": 32768, "n": 12288, "k": 6144}, 1320.36),
]
HEADS = {"heads": 32.0, "kv_heads": 8.0, "head_dim": 128.0}
PREFILL: list[Point] = [  # h100_sxm, vllm-0.24.0
    ({"batch": 1, "new": 12288, **HEADS}, 1957.67),
    ({"batch": 4, "new": 6144, **HEADS}, 2067.44),
    ({"batch": 32, "new": 3072, **HEADS}, 4909.07),
]
DECODE: list[Point] = [  # h100_sxm, vllm-0.24.0
    ({"batch": 1, "context": 256, **HEADS}, 12.34),
    ({"batch": 4, "context": 4096, **HEADS}, 40.19),
    ({"batch": 32, "context": 4096, **HEADS}, 185.94),
    ({"batch": 256, "context": 32, **HEADS}, 72.29),
]
LATENT = {"heads": 16.0, "kv_lora": 512.0, "rope_dim": 64.0}
MLA: list[Point] = [  # h100_sxm, sglang-0.5.14
    ({"batch": 8, "context": 4096, **LATENT}, 27.12),
    ({"batch": 16, "context": 32768, **LATENT}, 219.15),
    ({"batch": 128, "context": 131072, **LATENT}, 6311.79),
]
QWEN = {"hidden": 4096.0, "inter": 1536.0, "top_k": 8.0, "experts": 128.0, "skew": -1.0}
EXPERTS: list[Point] = [  # h100_sxm, trtllm-1.3.0rc20, rows dealt out evenly
    ({"tokens": 1, "moe_ep": 4, **QWEN}, 52.39),
    ({"tokens": 64, "moe_ep": 4, **QWEN}, 428.74),
    ({"tokens": 96, "moe_ep": 1, **QWEN}, 1586.80),
    ({"tokens": 160, "moe_ep": 32, **QWEN}, 78.75),
]
ALL_REDUCE: list[Point] = [  # h100_sxm, vllm-0.24.0, replayed graph
    ({"bytes": 16384, "ranks": 8}, 5.31),
    ({"bytes": 131072, "ranks": 8}, 7.86),
    ({"bytes": 1048576, "ranks": 8}, 14.97),
    ({"bytes": 67108864, "ranks": 8}, 343.96),
]
DISPATCH: list[Point] = [  # h100_sxm, sglang-0.5.12, DeepEP low latency, fp8 rows
    ({"bytes": 786432, "ranks": 8, "top_k": 8}, 15.15),
    ({"bytes": 16777216, "ranks": 8, "top_k": 8}, 72.32),
    ({"bytes": 58720256, "ranks": 8, "top_k": 8}, 224.06),
]

TABLES = [
    ("h100_sxm", "vllm", "gemm", "bf16", GEMM_BF16, 0.12),
    ("h100_sxm", "trtllm", "gemm", "fp8", GEMM_FP8, 0.08),
    ("b200_sxm", "trtllm", "gemm", "nvfp4", GEMM_NVFP4, 0.15),
    ("h100_sxm", "vllm", "prefill", "bf16", PREFILL, 0.12),
    ("h100_sxm", "vllm", "decode", "bf16", DECODE, 0.20),
    ("h100_sxm", "sglang", "mla_decode", "bf16", MLA, 0.12),
    ("h100_sxm", "trtllm", "experts", "bf16", EXPERTS, 0.20),
    ("h100_sxm", "vllm", "all_reduce", "any", ALL_REDUCE, 0.12),
    ("h100_sxm", "sglang", "dispatch", "low_latency", DISPATCH, 0.12),
]


@pytest.mark.parametrize(("chip", "engine", "kind", "variant", "points", "bound"), TABLES)
def test_fits_meet_what_was_measured(
    chip: str, engine: str, kind: str, variant: str, points: list[Point], bound: float
) -> None:
    entry, law = accelerator(chip), LAWS[kind]
    dtype = variant if kind in ("gemm", "experts") else "bf16"
    figures = Chip(
        peak=entry.peak_flops(dtype).flops,
        bandwidth=entry.bandwidth,
        units=entry.units or 0,
        link=entry.scale_up.bandwidth or 0,
    )
    columns = {c: np.array([p.get(c, law.optional.get(c, 0.0)) for p, _ in points], dtype=float) for c in law.columns}
    parameters = shipped().fits[chip][engine][kind, variant].parameters
    predicted = law.predict(parameters, columns, figures, variant) * 1e6
    assert predicted.tolist() == pytest.approx([us for _, us in points], rel=bound)


def test_the_shipped_fits_say_how_good_they_are() -> None:
    for engines in shipped().fits.values():
        for sets in engines.values():
            for (kind, _), fit in sets.items():
                assert fit.source
                assert kind in ("streaming", "launch") or (fit.residual is not None and fit.residual.rows >= 10)
