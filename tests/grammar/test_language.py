"""What each construct of the language means, in small cases."""

from __future__ import annotations

import math
from typing import Any

import pytest

from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.spec import (
    LinearSpec,
    Llama3Spec,
    LoadedSpec,
    ModelSpec,
    RotarySpec,
    Spec,
    StrategySpec,
    YarnSpec,
)
from paradag.grammar import load_text

MODEL = 'model "m" { layers 4  hidden 64  vocab 100  ffn 128  attention mha { heads 4 } }'
CLUSTER = "cluster { accelerator h200_sxm  nodes 1 of 8 }"
WORKLOAD = "workload { batch 4  input 16 tokens  output 8 tokens }"


def load(model: str = MODEL, cluster: str = CLUSTER, workload: str = WORKLOAD, strategy: str = "") -> LoadedSpec:
    return load_text("\n".join([model, cluster, workload, strategy]))


def model(items: str, layers: str = "layers 4", attention: str = "attention mha { heads 4 }") -> ModelSpec:
    return load(f'model "m" {{ {layers} hidden 64 vocab 100 {attention} {items} }}').spec.model


def strategies(text: str) -> tuple[StrategySpec, ...]:
    return load(strategy=text).spec.strategies


def codes(**parts: str) -> list[str]:
    with pytest.raises(DiagnosticError) as caught:
        load(**parts)
    return [d.code for d in caught.value.diagnostics if d.is_error]


def test_blocks_come_in_any_order_and_newlines_mean_nothing() -> None:
    forward = load().spec
    assert load_text(" ".join([WORKLOAD, "strategy{}", CLUSTER, MODEL])).spec.model == forward.model
    words = "\n".join(" ".join([MODEL, CLUSTER, WORKLOAD]).split(" "))
    assert load_text(words).spec == forward


def test_comments_and_escapes() -> None:
    text = MODEL.replace('"m"', r'"a \"b\" # é"').replace("{ layers", "{ # a } comment\n layers")
    assert load(text).spec.model.name == 'a "b" # é'


def test_keywords_are_contextual() -> None:
    """Words that are keys somewhere serve as names elsewhere."""
    (prefill, _) = strategies("strategy { hf 2 -> cluster 3 -> heads batch }")
    assert [(t.name, t.degree, t.kind) for t in prefill.chain] == [
        ("hf", 2, None),
        ("cluster", 3, None),
        ("heads", None, "batch"),
    ]


def test_layers() -> None:
    m = model("moe { experts 8 top_k 2 ffn 32 } ffn 128", "layers 6 { dense 2  dense_at 4 3 }")
    assert [m.is_moe_layer(n) for n in range(6)] == [False, False, True, False, False, True]
    m = model("ffn 128", "layers 4 { pattern sliding full  window 16 }")
    assert [m.window_of(n) for n in range(4)] == [16, None, 16, None]


@pytest.mark.parametrize(
    ("written", "kind", "kv_heads", "head_dim"),
    [
        ("mha { heads 4 }", "mha", 4, 16),
        ("mqa { heads 4 }", "mqa", 1, 16),
        ("gqa { heads 4 kv_heads 2 head_dim 32 }", "gqa", 2, 32),
        ("mla { heads 4 kv_lora 16 nope_dim 8 rope_dim 4 v_dim 8 }", "mla", 1, 12),
        ("mla { heads 4 q_lora 24 kv_lora 16 nope_dim 8 rope_dim 4 v_dim 8 }", "mla", 1, 12),
    ],
)
def test_attention_kinds(written: str, kind: str, kv_heads: int, head_dim: int) -> None:
    attention = model("ffn 128", attention=f"attention {written}").attention
    assert (attention.kind, attention.kv_heads, attention.head_dim) == (kind, kv_heads, head_dim)


def test_attention_options() -> None:
    written = "attention gqa { heads 4 kv_heads 2 head_dim 16 qk_norm full bias qkv sinks true window 8 dtype fp8 }"
    attention = model("ffn 128", attention=written).attention
    assert (attention.qk_norm, attention.bias, attention.sinks) == ("full", "qkv", True)
    assert (attention.window, attention.dtype) == (8, "fp8")
    short = model("ffn 128", attention="attention mha { heads 4 qk_norm true bias true }").attention
    assert (short.qk_norm, short.bias) == ("head", "all")


def test_moe_options() -> None:
    moe = model(
        "moe { experts 8 top_k 2 ffn 32 shared 1 router sigmoid bias true renormalize false scale 2.5"
        " groups 4 top_groups 2 dtype mxfp4 }"
    ).moe
    assert moe is not None
    assert moe.model_dump() == {
        "experts": 8, "top_k": 2, "ffn": 32, "shared": 1, "router": "sigmoid", "bias": True, "renormalize": False,
        "scale": 2.5, "groups": 4, "top_groups": 2, "dtype": "mxfp4",
    }  # fmt: skip


def test_rotary_and_norms() -> None:
    plain = model("ffn 128")
    assert (plain.rotary, plain.norm_eps, plain.rotary_width) == (RotarySpec(), 1e-6, 16)
    m = model("ffn 128 norm_eps 1e-5 rotary { theta 5e5 style interleaved dim 8 scaling linear { factor 4 } }")
    assert m.norm_eps == 1e-5
    assert m.rotary == RotarySpec(theta=5e5, style="interleaved", dim=8, scaling=LinearSpec(factor=4))
    assert m.rotary_width == 8
    yarn = (
        "factor 40 original 4096 tokens beta_fast 16 beta_slow 2 mscale 1 mscale_all_dim 0.5"
        " attention_factor 1.25 truncate false"
    )
    assert model(f"ffn 128 rotary {{ scaling yarn {{ {yarn} }} }}").rotary.scaling == YarnSpec(
        factor=40, original=4096, beta_fast=16, beta_slow=2, mscale=1, mscale_all_dim=0.5, attention_factor=1.25,
        truncate=False,
    )  # fmt: skip
    llama3 = model("ffn 128 rotary { scaling llama3 { factor 8 original 8192 low_freq 2 } }").rotary.scaling
    assert llama3 == Llama3Spec(factor=8, original=8192, low_freq=2, high_freq=4)


@pytest.mark.parametrize(
    ("rotary", "code"),
    [
        ("scaling yarn", "PD013 PD013"),
        ("scaling linear { factor 4 original 4096 }", "PD011"),
        ("scaling llama3 { factor 4 original 4096 beta_fast 1 }", "PD011"),
        ("scaling llama3 { factor 4 original 4096 low_freq 4 }", "PD101"),
        ("scaling longrope { factor 4 }", "PD016"),
        ("scaling yarn { factor 0.5 original 4096 }", "PD015"),
        ("theta 1", "PD015"),
        ("dim 3", "PD101"),
        ("dim 32", "PD101"),
        ("style neox", "PD016"),
    ],
)
def test_odd_rotary_embeddings(rotary: str, code: str) -> None:
    text = f'model "m" {{ layers 4 hidden 64 vocab 100 ffn 8 attention mha {{ heads 4 }} rotary {{ {rotary} }} }}'
    assert codes(model=text) == code.split()


@pytest.mark.parametrize(
    "attention", ["mha { heads 4 head_dim 5 }", "mla { heads 4 kv_lora 8 nope_dim 4 rope_dim 3 v_dim 4 }"]
)
def test_what_turns_comes_in_pairs(attention: str) -> None:
    assert codes(model=f'model "m" {{ layers 4 hidden 64 vocab 100 ffn 8 attention {attention} }}') == ["PD101"]


def test_latent_attention_turns_its_rope_dim() -> None:
    mla = "attention mla { heads 4 kv_lora 16 nope_dim 12 rope_dim 4 v_dim 8 }"
    text = f'model "m" {{ layers 4 hidden 64 vocab 100 ffn 8 {mla} rotary {{ dim 2 }} }}'
    assert codes(model=text) == ["PD101"]
    scaled = "rotary { scaling yarn { factor 40 original 4096 mscale 1 mscale_all_dim 1 } }"
    m = model(f"ffn 128 {scaled}", attention=mla)
    assert m.rotary_width == 4
    assert m.score_scale == pytest.approx((1 + 0.1 * math.log(40)) ** 2 / 4)  # as DeepSeek-V3 does
    assert isinstance(m.rotary.scaling, YarnSpec)
    assert m.rotary.scaling.amplitude == 1


def test_other_model_keys() -> None:
    m = model("ffn 128 tied true max_context 4096 tokens dtype fp8 kv_dtype int8 weights 235 B")
    assert (m.tied, m.max_context, m.dtype, m.kv_dtype, m.weights) == (True, 4096, "fp8", "int8", 235e9)
    assert model("ffn 128 weights 7_000_000").weights == 7e6


def test_what_is_left_out_is_a_stated_assumption() -> None:
    loaded = load(workload="workload { input 16 }")
    stated = {a.name: a.value for a in loaded.assumptions}
    assert stated == {
        "model.attention.head_dim": "16",
        "model.dtype": "bf16",
        "model.kv_dtype": "bf16",
        "workload.output": "1 token",
    }
    assert all(a.why for a in loaded.assumptions)


def test_own_accelerator_and_links() -> None:
    spec = load(
        cluster="""cluster {
            accelerator "npu" { compute 400 TFLOPS fp8 at 60%  compute 0.2 PFLOPS bf16 at 60%
                                memory 64 GiB  bandwidth 1.8 TB/s at 80% }
            nodes any of 8
            link scale_up { bandwidth 400 Gb/s  latency 3 us  domain 16 }
            link host { bandwidth 64 GB/s }
        }"""
    ).spec.cluster
    chip = spec.accelerator
    assert (chip.name, chip.catalog, chip.compute) == ("npu", None, {"fp8": 4e14, "bf16": 2e14})
    assert (chip.compute_efficiency, chip.bandwidth_efficiency) == (0.6, 0.8)
    assert (chip.memory, chip.bandwidth) == (64 * 2**30, 1.8e12)
    assert (spec.nodes, spec.gpus_per_node, spec.gpus) == (None, 8, None)
    assert (spec.scale_up.bandwidth, spec.scale_up.latency, spec.scale_up.domain) == (50e9, 3e-6, 16)
    assert (spec.host.bandwidth, spec.scale_out.bandwidth) == (64e9, None)


def test_catalogue_accelerator_with_overrides() -> None:
    chip = load(cluster="cluster { accelerator h200_sxm { compute at 55%  bandwidth at 90% } nodes 2 of 8 }").spec
    assert chip.cluster.accelerator.model_dump(exclude_defaults=True) == {
        "name": "h200_sxm", "catalog": "h200_sxm", "compute_efficiency": 0.55, "bandwidth_efficiency": 0.9,
    }  # fmt: skip


def test_compute_without_a_format_is_an_assumption() -> None:
    text = 'cluster { accelerator "x" { compute 1 PFLOPS memory 1 GB bandwidth 1 TB/s } nodes 1 of 1 }'
    loaded = load(cluster=text)
    assert loaded.spec.cluster.accelerator.compute == {"*": 1e15}
    assert "cluster.accelerator.compute" in {a.name for a in loaded.assumptions}


def test_workload() -> None:
    w = load(
        workload="workload { batch 8 input 2048 tokens output 64 sequence 128..10240 tokens rate 20 req/s mode mixed"
        " require ttft <= 30 s require tpot <= 50 ms require throughput >= 1000 tokens/s }"
    ).spec.workload
    assert (w.batch, w.input, w.output, w.sequence, w.rate, w.mode) == (8, 2048, 64, (128, 10240), 20.0, "mixed")
    assert w.require.model_dump() == {"ttft": 30.0, "tpot": 0.05, "throughput": 1000.0, "throughput_per_gpu": None}


def test_chain_terms_and_options() -> None:
    (prefill,) = strategies(
        "strategy prefill { dp 2 -> pp 2 { layers 3 1 } -> sp 2 kind ring -> ep 8 { etp 2 redundant 32 } -> tp 4"
        " ranks 32 microbatches 8 chunk 2048 placement tp sp adp pp pools separate }"
    )
    terms = [t.model_dump(exclude_defaults=True) for t in prefill.chain]
    assert terms == [
        {"name": "dp", "degree": 2},
        {"name": "pp", "degree": 2, "layers": (3, 1)},
        {"name": "sp", "degree": 2, "kind": "ring"},
        {"name": "ep", "degree": 8, "etp": 2, "redundant": 32},
        {"name": "tp", "degree": 4},
    ]
    assert (prefill.ranks, prefill.microbatches, prefill.chunk) == (32, 8, 2048)
    assert (prefill.placement, prefill.pools) == (("tp", "sp", "adp", "pp"), "separate")


def test_options_may_come_before_the_chain() -> None:
    (decode,) = strategies("strategy decode { placement tp sp adp pp microbatches 2 ep 8 -> tp 4 chunk 16 }")
    assert [t.name for t in decode.chain] == ["ep", "tp"]
    (decode,) = strategies("strategy decode { placement tp pp  pp 2 -> tp 4 }")
    assert (decode.placement, [t.name for t in decode.chain]) == (("tp", "pp"), ["pp", "tp"])


def test_megatron_sp_has_no_degree() -> None:
    (prefill,) = strategies("strategy prefill { sp tp -> tp 4 }")
    assert prefill.chain[0].model_dump(exclude_defaults=True) == {"name": "sp", "kind": "tp"}


def test_any_order_and_any_name_parse() -> None:
    (decode,) = strategies("strategy decode { tp 4 -> cp 2 -> pp 2 -> tp 2 }")
    assert [t.name for t in decode.chain] == ["tp", "cp", "pp", "tp"]


def test_empty_strategy_serves_both_phases() -> None:
    assert [(s.phase, s.chain) for s in strategies("strategy { }")] == [("prefill", ()), ("decode", ())]


def test_sp_of_a_common_strategy_is_left_out_of_decode() -> None:
    loaded = load(strategy="strategy { sp 2 -> tp 4 microbatches 2 }")
    prefill, decode = loaded.spec.strategies
    assert [t.name for t in prefill.chain] == ["sp", "tp"]
    assert [t.name for t in decode.chain] == ["tp"]
    assert decode.microbatches == 2
    assert [d.code for d in loaded.diagnostics] == ["PD204"]


def test_strategies_stand_prefill_first() -> None:
    assert [s.phase for s in strategies("strategy decode { tp 2 } strategy prefill { tp 4 }")] == ["prefill", "decode"]


def test_spans() -> None:
    loaded = load(strategy="strategy decode { ep 8 { etp 2 } -> tp 4  microbatches 2 }")
    lines = loaded.texts["<text>"].splitlines()

    def text(path: str) -> str:
        span = loaded.sources[path]
        return lines[span.line - 1][span.column - 1 : span.end_column - 1]

    expected = {
        "model": 'model "m"',
        "model.layers": "layers 4",
        "model.attention": "attention mha",
        "model.attention.heads": "heads 4",
        "cluster.accelerator": "accelerator h200_sxm",
        "cluster.nodes": "nodes 1 of 8",
        "workload.input": "input 16 tokens",
        "strategy.decode": "strategy decode",
        "strategy.decode.tp": "tp 4",
        "strategy.decode.ep.etp": "etp 2",
        "strategy.decode.chain.0": "ep 8",
        "strategy.decode.microbatches": "microbatches 2",
    }
    assert {path: text(path) for path in expected} == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"model": ""}, ["PD013"]),
        ({"workload": "workload { batch 4 }"}, ["PD013"]),
        ({"workload": "workload { input 16 } workload { input 16 }"}, ["PD012"]),
        ({"workload": "workload { input 16 input 17 }"}, ["PD012"]),
        ({"strategy": "strategy { } strategy decode { }"}, ["PD012"]),
        ({"strategy": "strategy decode { pools both }"}, ["PD016"]),
        ({"strategy": "strategy { ranks 0 }"}, ["PD015"]),
        ({"strategy": "strategy decode { tp 4 -> }"}, ["PD010"]),
        ({"strategy": "strategy decode { tp }"}, ["PD010"]),
        ({"strategy": "strategy decode { pp 2 tp 4 }"}, ["PD010"]),
        ({"strategy": "strategy decode { microbatch 4 }"}, ["PD011"]),
        ({"cluster": "cluster { accelerator h200_sxm nodes 0 of 8 }"}, ["PD015"]),
        ({"workload": "workload { input 2.5 }"}, ["PD015"]),
        ({"workload": "workload { input 16 sequence 9..3 tokens }"}, ["PD015"]),
        ({"workload": "workload { input 16 GB }"}, ["PD014"]),
        ({"workload": "workload { input 16 require ttft <= 3 }"}, ["PD014"]),
        ({"workload": "workload { input 16 require ttft >= 3 s }"}, ["PD010"]),
        ({"workload": "workload { input 16 } }"}, ["PD010"]),
        ({"workload": "workload { input 16 rate 1e999 req/s }"}, ["PD015"]),
    ],
)
def test_errors_by_code(parts: dict[str, Any], expected: list[str]) -> None:
    assert codes(**parts) == expected


@pytest.mark.parametrize(
    "items",
    [
        "ffn 128 | layers 4 { dense 5 } | moe { experts 4 top_k 2 ffn 8 }",
        "ffn 128 | layers 4 { dense_at 4 } | moe { experts 4 top_k 2 ffn 8 }",
        "ffn 128 | layers 4 { dense 1 } |",
        "ffn 128 | layers 4 { pattern sliding full } |",
        "ffn 128 | layers 4 { window 8 } |",
        "| layers 4 |",
        "| layers 4 { dense 1 } | moe { experts 4 top_k 2 ffn 8 }",
        "| layers 4 | moe { experts 4 top_k 5 ffn 8 }",
        "| layers 4 | moe { experts 4 top_k 1 ffn 8 groups 3 }",
        "| layers 4 | moe { experts 4 top_k 1 ffn 8 groups 2 top_groups 3 }",
        "| layers 4 | moe { experts 4 top_k 3 ffn 8 groups 2 top_groups 1 }",
    ],
)
def test_contradictory_dimensions(items: str) -> None:
    ffn, layers, moe = items.split("|")
    assert codes(model=f'model "m" {{ {ffn} {layers} {moe} hidden 64 vocab 100 attention mha {{ heads 4 }} }}') == [
        "PD101"
    ]


@pytest.mark.parametrize("kv", [3, 5])
def test_kv_heads_divide_heads(kv: int) -> None:
    attention = f"attention gqa {{ heads 4 kv_heads {kv} head_dim 16 }}"
    assert codes(model=f'model "m" {{ layers 4 hidden 64 vocab 100 ffn 8 {attention} }}') == ["PD101"]


def test_mla_keys_are_required_and_only_there() -> None:
    def with_attention(attention: str) -> str:
        return f'model "m" {{ layers 4 hidden 64 vocab 100 ffn 8 attention {attention} }}'

    assert codes(model=with_attention("mla { heads 4 }")) == ["PD013"] * 4
    assert codes(model=with_attention("mha { heads 4 v_dim 8 }")) == ["PD011"]


def test_spec_type() -> None:
    assert isinstance(load().spec, Spec)
