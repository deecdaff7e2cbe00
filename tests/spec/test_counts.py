"""Exact sizes: published totals, and the formulas module by module."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.spec import DTYPES, AttentionSpec, LayersSpec, ModelSpec, MoeSpec
from paradag.compiler.spec.catalog import model, model_names
from paradag.compiler.spec.counts import (
    active_parameters,
    attention_parameters,
    embedding_parameters,
    expert_parameters,
    head_parameters,
    kv_bytes_per_token,
    layer_parameters,
    moe_layers,
    parameters,
    router_parameters,
    shared_expert_parameters,
)

# Counted with the reference implementations on the meta device; KV in bf16.
EXACT = {
    "llama-3.1-8b": (8_030_261_248, 8_030_261_248, 131_072),
    "llama-3.1-70b": (70_553_706_496, 70_553_706_496, 327_680),
    "llama-3.1-405b": (405_853_388_800, 405_853_388_800, 516_096),
    "llama-2-7b": (6_738_415_616, 6_738_415_616, 524_288),
    "qwen3-8b": (8_190_735_360, 8_190_735_360, 147_456),
    "qwen3-32b": (32_762_123_264, 32_762_123_264, 262_144),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704, 98_304),
    "qwen3-235b-a22b": (235_093_634_560, 22_190_763_520, 192_512),
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248, 131_072),
    "mixtral-8x22b": (140_620_634_112, 39_152_031_744, 229_376),
    "deepseek-v3": (671_026_404_352, 37_552_282_624, 70_272),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912, 73_728),
    "gpt-oss-20b": (20_914_757_184, 4_187_440_704, 49_152),
}

# Stored weights of the published checkpoints, less choice-only router biases (one per expert and MoE layer).
FROM_CHECKPOINTS = {
    "qwen3-0.6b": 596_049_920,
    "deepseek-r1": 671_026_419_200 - 58 * 256,
    "kimi-k2": 1_026_408_232_448 - 60 * 384,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "qwen3-4b": 4_022_468_096,
    "qwen3-14b": 14_768_307_200,
    "qwen3-coder-480b-a35b": 480_154_875_392,
}


@pytest.mark.parametrize("name", EXACT)
def test_totals_are_exact(name: str) -> None:
    spec = model(name)
    assert (parameters(spec), active_parameters(spec), kv_bytes_per_token(spec)) == EXACT[name]


@pytest.mark.parametrize("name", FROM_CHECKPOINTS)
def test_totals_match_checkpoints(name: str) -> None:
    assert parameters(model(name)) == FROM_CHECKPOINTS[name]


@pytest.mark.parametrize("name", ["glm-4.5", "minimax-m2.5"])
def test_published_sizes_of_other_models(name: str) -> None:
    """Published to the billion, with multi-token-prediction layers that are not counted here."""
    total, active = {"glm-4.5": (355e9, 32e9), "minimax-m2.5": (230e9, 10e9)}[name]
    assert parameters(model(name)) == pytest.approx(total, rel=0.02)
    assert active_parameters(model(name)) == pytest.approx(active, rel=0.12)


@pytest.mark.parametrize("name", model_names())
def test_total_is_the_sum_of_its_parts(name: str) -> None:
    spec = model(name)
    for active, total in ((False, parameters(spec)), (True, active_parameters(spec))):
        layers = sum(layer_parameters(spec, i, active=active) for i in range(spec.layers.count))
        assert total == embedding_parameters(spec) + head_parameters(spec) + spec.hidden + layers


def test_biases_sinks_and_norms_of_attention() -> None:
    plain = AttentionSpec(kind="gqa", heads=8, kv_heads=2, head_dim=16)

    def extra(**changes: object) -> int:
        spec = tiny(attention=plain.model_copy(update=changes))
        return attention_parameters(spec) - attention_parameters(tiny(attention=plain))

    assert extra(bias="qkv") == 8 * 16 + 2 * (2 * 16)
    assert extra(bias="all") == 8 * 16 + 2 * (2 * 16) + 64
    assert extra(qk_norm="head") == 2 * 16
    assert extra(qk_norm="full") == 8 * 16 + 2 * 16
    assert extra(sinks=True) == 8


def test_mla_without_query_compression_projects_the_query_directly() -> None:
    mla = AttentionSpec(kind="mla", heads=4, kv_heads=1, head_dim=24, kv_lora=32, nope_dim=16, rope_dim=8, v_dim=16)
    keys_values = 64 * (32 + 8) + 32 + 32 * 4 * (16 + 16)
    assert attention_parameters(tiny(attention=mla)) == 64 * 4 * 24 + keys_values + 4 * 16 * 64


def test_expert_and_router_biases() -> None:
    moe = MoeSpec(experts=4, top_k=2, ffn=32, shared=2)
    without, with_bias = tiny(moe=moe), tiny(moe=moe.model_copy(update={"bias": True}))
    assert router_parameters(with_bias) - router_parameters(without) == 4
    assert expert_parameters(with_bias) - expert_parameters(without) == 2 * 32 + 64
    assert shared_expert_parameters(without) == 2 * 3 * 64 * 32


def test_dense_layers_of_an_moe_model() -> None:
    spec = tiny(layers=LayersSpec(count=6, dense=1, dense_at=(3,)), moe=MoeSpec(experts=4, top_k=2, ffn=32))
    assert moe_layers(spec) == 4
    assert layer_parameters(spec, 0) == layer_parameters(spec, 3) == layer_parameters(spec, 3, active=True)
    assert layer_parameters(spec, 1) - layer_parameters(spec, 1, active=True) == 2 * expert_parameters(spec)


def test_a_tied_head_counts_once() -> None:
    assert parameters(tiny()) - parameters(tiny(tied=True)) == 1000 * 64


@given(kv_dtype=st.sampled_from(sorted(DTYPES)), layers=st.integers(1, 7), head_dim=st.integers(1, 300))
def test_kv_bytes_are_whole_and_cover_every_bit(kv_dtype: str, layers: int, head_dim: int) -> None:
    attention = AttentionSpec(kind="gqa", heads=8, kv_heads=2, head_dim=head_dim)
    spec = tiny(kv_dtype=kv_dtype, layers=LayersSpec(count=layers), attention=attention)
    bits = layers * 2 * 2 * head_dim * DTYPES[kv_dtype].bits
    assert 0 <= 8 * kv_bytes_per_token(spec) - bits < 8


def test_missing_dimensions_are_named() -> None:
    with pytest.raises(DiagnosticError, match=r"PD101.*`ffn`"):
        parameters(tiny(ffn=None))
    with pytest.raises(DiagnosticError, match=r"PD101.*no mixture of experts"):
        expert_parameters(tiny())


def tiny(**changes: object) -> ModelSpec:
    base = ModelSpec(
        name="tiny",
        layers=LayersSpec(count=2),
        hidden=64,
        vocab=1000,
        ffn=128,
        attention=AttentionSpec(kind="gqa", heads=8, kv_heads=2, head_dim=16),
    )
    return base.model_copy(update=changes)
