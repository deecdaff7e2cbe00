"""Which function costs which node, what binds it, and what a file's own efficiencies do."""

from __future__ import annotations

import numpy as np
import pytest

from paradag.compiler.cost import BOUNDS, Hardware, NodeCost, gemm_time, node_costs, resolve_hardware
from paradag.compiler.cost.experts import skewed_load, uniform_load
from paradag.compiler.driver import compile as compile_strategy

DENSE = """model "dense" { layers 2  hidden 4096  vocab 32000  ffn 14336  dtype bf16  kv_dtype bf16
    attention gqa { heads 32  kv_heads 8  head_dim 128 } }
"""
MOE = """model "moe" { layers 2  hidden 4096  vocab 32000  dtype bf16  kv_dtype bf16
    attention gqa { heads 32  kv_heads 4  head_dim 128 }  moe { experts 64  top_k 4  ffn 1536 } }
"""
CHIP = 'accelerator "npu" { compute 400 TFLOPS bf16 at 60%  memory 64 GB  bandwidth 2 TB/s at 80% }'


def costs(
    model: str, chip: str = "accelerator h100_sxm", strategy: str = "tp 2", phase: str = "prefill"
) -> tuple[dict[str, NodeCost], Hardware]:
    links = "link scale_up { bandwidth 400 GB/s  latency 3 us }"
    text = f"""{model} cluster {{ {chip}  nodes 1 of 8  {links} }}
    workload {{ batch 16  input 2048 tokens  output 256 tokens }}
    strategy {phase} {{ {strategy} }}"""
    analysis = compile_strategy(text, phase=phase).phases[phase]  # type: ignore[arg-type, index]
    return {name: cost for (_, name), cost in analysis.costs.items()}, analysis.hardware


def number(value: object) -> float:
    return float(np.ravel(np.asarray(value))[0])


def bound(cost: NodeCost) -> str:
    return BOUNDS[int(number(cost.bound))]


def test_a_fused_projection_is_one_product() -> None:
    found, hardware = costs(DENSE)
    tokens, columns = 16 * 2048, (32 + 8 + 8) * 128 // 2
    moved = 2 * (tokens * 4096 + 4096 * columns + tokens * columns)
    expected = gemm_time(
        tokens, columns, 4096, moved,
        peak=989e12, bandwidth=3350e9, units=132, parameters=hardware.calibration.gemm("bf16"),
    )  # fmt: skip
    assert number(found["qkv"].time) == pytest.approx(float(expected.time), rel=1e-12)
    assert bound(found["qkv"]) == "compute"
    assert number(found["qkv"].efficiency) == pytest.approx(2 * tokens * columns * 4096 / 989e12 / float(expected.time))


def test_a_files_own_shares_are_the_only_ones() -> None:
    found, hardware = costs(DENSE, CHIP)
    gate_up, norm = found["gate_up"], found["attn_norm"]
    latency = hardware.calibration.gemm("bf16").latency_s
    assert number(gate_up.time) == pytest.approx(latency + number(gate_up.flops) / (400e12 * 0.6), rel=1e-12)
    assert number(norm.time) == pytest.approx(hardware.launch + number(norm.hbm_bytes) / (2e12 * 0.8), rel=1e-12)
    assert number(gate_up.efficiency) == pytest.approx(0.6, rel=0.01)
    assert (bound(gate_up), bound(norm)) == ("compute", "memory")


def test_bounds_and_efficiencies_of_a_decode_step() -> None:
    found, _ = costs(DENSE, phase="decode")
    assert bound(found["gate_up"]) == "memory" and 0.5 < number(found["gate_up"].efficiency) < 1
    assert bound(found["attn_norm"]) == "latency" and number(found["attn_norm"].efficiency) < 0.2
    for name, cost in found.items():
        assert (np.asarray(cost.efficiency) >= 0).all() and (np.asarray(cost.efficiency) <= 1.5).all(), name
        assert ((np.asarray(cost.time) > 0) == (np.asarray(cost.bound) > 0)).all(), name


def test_a_stated_link_latency_counts_per_hop() -> None:
    found, hardware = costs(DENSE, phase="decode")
    reduce = next(c for n, c in found.items() if n.endswith("all_reduce"))
    assert bound(reduce) == "latency"
    assert number(reduce.time) == pytest.approx(2 * 3e-6 + hardware.launch, rel=0.2)


def test_experts_and_their_exchanges() -> None:
    found, _ = costs(MOE, strategy="ep 8")
    assert bound(found["experts"]) == "compute"
    assert {bound(found[n]) for n in found if n.endswith(("dispatch", "combine"))} == {"network"}
    small, _ = costs(MOE, strategy="ep 8", phase="decode")
    assert bound(small["experts"]) == "memory"


@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_loads_deal_out_the_rows_there_are(tokens: int) -> None:
    assert float(uniform_load(tokens, 8, 128, 128).total) == pytest.approx(tokens * 8)
    alone = skewed_load(tokens, 8, 128, 1, 1.2)
    whole = skewed_load(tokens, 8, 128, 16, 1.2)
    assert float(whole.total) >= 0.9 * tokens * 8 / 8
    assert float(alone.total) >= 0.99 * tokens * 8 / 128
    assert float(alone.rows.max()) <= tokens + 1e-9


def test_a_skewed_load_is_never_cheaper() -> None:
    text = (
        MOE
        + """cluster { accelerator h100_sxm  nodes 1 of 8 }
    workload { batch 64  input 2048 tokens  output 256 tokens }
    strategy prefill { ep 8 }"""
    )
    phase = compile_strategy(text, phase="prefill").phases["prefill"]
    spec = compile_strategy(text, phase="prefill").spec
    times = []
    for skew in (0.0, 1.01, 1.2):
        hardware, _ = resolve_hardware(spec.cluster, skew=skew)
        found = node_costs(phase.graph, hardware)
        times.append(next(number(c.time) for (_, n), c in found.items() if n == "experts"))
    assert times == sorted(times) and times[0] < times[-1]
