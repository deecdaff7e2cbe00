"""Hugging Face configs: every supported model type, odd values, and paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.spec import Llama3Spec, ModelSpec, RotarySpec, YarnSpec
from paradag.compiler.spec.counts import active_parameters, kv_bytes_per_token, parameters
from paradag.grammar import SUPPORTED_MODEL_TYPES, load_text, read_hf_config

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "hf"
CLUSTER = "cluster { accelerator h200_sxm nodes 1 of 8 } workload { input 4 }"


def config(model_type: str, layers: int, hidden: int, vocab: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "vocab_size": vocab,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "torch_dtype": "bfloat16",
        **more,
    }


DEEPSEEK_MOE = {
    "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3, "intermediate_size": 18432, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "n_group": 8, "topk_group": 4,
}  # fmt: skip
MLA = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
QWEN_MOE = {
    "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
    "norm_topk_prob": True, "intermediate_size": 12288,
}  # fmt: skip
GPT_OSS = {
    "head_dim": 64,
    "intermediate_size": 2880,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
}
MINIMAX = {
    "head_dim": 128, "intermediate_size": 1536, "num_local_experts": 256, "num_experts_per_tok": 8,
    "scoring_func": "sigmoid", "use_qk_norm": True, "qk_norm_type": "per_layer", "shared_intermediate_size": 0,
}  # fmt: skip
GLM = {
    "head_dim": 128, "intermediate_size": 12288, "n_routed_experts": 160, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "first_k_dense_replace": 3, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1, "use_qk_norm": True, "attention_bias": True,
}  # fmt: skip
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": config("llama", 80, 8192, 128256, 64, 8, intermediate_size=28672),
    "mistral": config("mistral", 32, 4096, 32000, 32, 8, intermediate_size=14336, sliding_window=4096),
    "qwen2": config("qwen2", 28, 3584, 152064, 28, 4, intermediate_size=18944),
    "qwen3": config("qwen3", 64, 5120, 151936, 64, 8, intermediate_size=25600, head_dim=128),
    "qwen3_moe": config("qwen3_moe", 94, 4096, 151936, 64, 4, **QWEN_MOE),
    "mixtral": config("mixtral", 32, 4096, 32000, 32, 8, intermediate_size=14336, num_local_experts=8,
                      num_experts_per_tok=2, sliding_window=None),
    "gpt_oss": config("gpt_oss", 36, 2880, 201088, 64, 8, **GPT_OSS),
    "deepseek_v3": config("deepseek_v3", 61, 7168, 129280, 128, 128, **MLA, **DEEPSEEK_MOE),
    "kimi_k2": config("kimi_k2", 61, 7168, 163840, 64, 64, **MLA, **{
        **DEEPSEEK_MOE, "n_routed_experts": 384, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    }),
    "minimax_m2": config("minimax_m2", 62, 3072, 200064, 48, 8, **MINIMAX),
    "glm4_moe": config("glm4_moe", 92, 5120, 151552, 96, 8, **GLM),
}  # fmt: skip


def read(model_type: str, **changes: Any) -> ModelSpec:
    return ModelSpec.model_validate(read_hf_config(CONFIGS[model_type] | changes))


def refused(data: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(DiagnosticError) as caught:
        read_hf_config(data)
    (diagnostic,) = caught.value.diagnostics
    return diagnostic.code, diagnostic.message


def test_every_supported_type_has_a_case() -> None:
    assert set(CONFIGS) == set(SUPPORTED_MODEL_TYPES)


def test_the_number_of_experts_has_two_names() -> None:
    """transformers 5 writes ``num_experts`` of Qwen3-MoE as ``num_local_experts``."""
    moe = read("qwen3_moe", num_experts=None, num_local_experts=64).moe
    assert moe is not None and moe.experts == 64


@pytest.mark.parametrize(
    ("model_type", "total", "active", "kv_bytes"),
    [
        ("llama", 70_553_706_496, 70_553_706_496, 327_680),
        ("mistral", 7_241_732_096, 7_241_732_096, 131_072),
        ("qwen2", 7_615_616_512, 7_615_616_512, 57_344),
        ("qwen3", 32_762_123_264, 32_762_123_264, 262_144),
        ("qwen3_moe", 235_093_634_560, 22_190_763_520, 192_512),
        ("mixtral", 46_702_792_704, 12_879_925_248, 131_072),
        ("gpt_oss", 116_829_156_672, 5_711_982_912, 73_728),
        ("deepseek_v3", 671_026_404_352, 37_552_282_624, 70_272),
    ],
)
def test_exact_parameters(model_type: str, total: int, active: int, kv_bytes: int) -> None:
    model = read(model_type)
    assert (parameters(model), active_parameters(model), kv_bytes_per_token(model)) == (total, active, kv_bytes)


def test_mistral_windows() -> None:
    assert read("mistral").attention.window == 4096
    assert read("mistral", sliding_window=None).attention.window is None


def test_qwen2_biases_and_windows() -> None:
    assert read("qwen2").attention.bias == "qkv"
    sliding = read("qwen2", use_sliding_window=True, sliding_window=64, max_window_layers=21)
    assert [sliding.window_of(n) for n in (0, 20, 21, 27)] == [None, None, 64, 64]
    assert read("qwen2", use_sliding_window=False, sliding_window=64).attention.window is None


def test_qwen3_moe_dense_layers() -> None:
    model = read("qwen3_moe", num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[1])
    assert [model.is_moe_layer(n) for n in range(6)] == [False, False, False, True, False, True]
    assert model.ffn == 12288
    assert read("qwen3_moe").ffn is None


def test_gpt_oss_attention_and_formats() -> None:
    model = read("gpt_oss", quantization_config=MXFP4)
    assert [model.window_of(n) for n in range(4)] == [128, None, 128, None]
    assert (model.attention.sinks, model.attention.bias, model.attention.dtype) == (True, "all", "bf16")
    assert model.moe is not None
    assert (model.moe.router, model.moe.bias, model.moe.dtype) == ("topk_softmax", True, "mxfp4")
    kinds = ["full_attention", "sliding_attention", "sliding_attention"] * 12
    assert read("gpt_oss", layer_types=kinds).layers.pattern == ("full", "sliding", "sliding")


def test_deepseek_and_kimi() -> None:
    model = read("deepseek_v3", quantization_config={"quant_method": "fp8"})
    assert (model.attention.kind, model.attention.kv_heads, model.attention.head_dim) == ("mla", 1, 192)
    assert (model.layers.dense, model.ffn, model.dtype, model.kv_dtype) == (3, 18432, "fp8", "bf16")
    assert model.moe is not None
    assert (model.moe.router, model.moe.shared, model.moe.scale) == ("sigmoid", 1, 2.5)
    assert (model.moe.groups, model.moe.top_groups) == (8, 4)
    kimi = read("kimi_k2")
    assert kimi.moe is not None
    assert (kimi.moe.experts, kimi.layers.dense, kimi.attention.heads) == (384, 1, 64)


def test_minimax_and_glm() -> None:
    minimax = read("minimax_m2", quantization_config={"quant_method": "fp8"})
    assert minimax.moe is not None
    assert (minimax.attention.qk_norm, minimax.moe.ffn, minimax.moe.router, minimax.ffn) == (
        "full",
        1536,
        "sigmoid",
        None,
    )
    glm = read("glm4_moe")
    assert (glm.attention.qk_norm, glm.attention.bias, glm.layers.dense) == ("head", "qkv", 3)


def test_latent_attention_with_and_without_a_query_latent() -> None:
    assert read("deepseek_v3", q_lora_rank=None).attention.q_lora is None
    silent = {k: v for k, v in CONFIGS["deepseek_v3"].items() if k != "q_lora_rank"}
    assert read_hf_config(silent)["attention"]["q_lora"] == 1536


def test_class_defaults_of_grouped_experts() -> None:
    keys = ("n_group", "topk_group", "routed_scaling_factor", "first_k_dense_replace", "n_shared_experts")
    for model_type, expected in {"deepseek_v3": (8, 4, 2.5, 3, 1), "glm4_moe": (1, 1, 1.0, 1, 1)}.items():
        silent = {k: v for k, v in CONFIGS[model_type].items() if k not in keys}
        model = ModelSpec.model_validate(read_hf_config(silent))
        moe = model.moe
        assert moe is not None
        assert (moe.groups, moe.top_groups, moe.scale, model.layers.dense, moe.shared) == expected


# --- rotary embedding and norms

GPT_OSS_YARN = YarnSpec(factor=32, original=4096, truncate=False)
YARN = {"factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("model_type", "rotary", "eps"),
    [
        ("llama", RotarySpec(), 1e-6),
        ("mistral", RotarySpec(), 1e-6),
        ("qwen2", RotarySpec(), 1e-6),
        ("qwen3", RotarySpec(), 1e-6),
        ("qwen3_moe", RotarySpec(), 1e-6),
        ("mixtral", RotarySpec(theta=1e6), 1e-5),
        ("gpt_oss", RotarySpec(theta=150_000, scaling=GPT_OSS_YARN), 1e-5),
        ("deepseek_v3", RotarySpec(style="interleaved"), 1e-6),
        ("kimi_k2", RotarySpec(style="interleaved"), 1e-6),
        ("minimax_m2", RotarySpec(theta=5e6), 1e-6),
        ("glm4_moe", RotarySpec(dim=64), 1e-5),
    ],
)
def test_class_defaults_of_rotary_embedding_and_norms(model_type: str, rotary: RotarySpec, eps: float) -> None:
    model = read(model_type)
    assert (model.rotary, model.norm_eps) == (rotary, eps)


@pytest.mark.parametrize(
    ("flat", "nested"),
    [
        ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
         {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, {"rope_type": "linear", "factor": 4}),
        ({"rope_theta": 100.0, "rope_scaling": {"type": "yarn", **YARN}},
         {"rope_theta": 100.0, "rope_type": "yarn", **YARN}),
    ],
)  # fmt: skip
def test_flat_and_nested_rotary_parameters_mean_the_same(flat: dict[str, Any], nested: dict[str, Any]) -> None:
    assert read("llama", **flat).rotary == read("llama", rope_parameters=nested).rotary != RotarySpec()


def test_rotary_scaling() -> None:
    llama = read("llama", rope_theta=5e5, rms_norm_eps=1e-5, rope_scaling={"rope_type": "llama3", **LLAMA3})
    assert llama.rotary == RotarySpec(theta=5e5, scaling=Llama3Spec(factor=8, original=8192))
    assert llama.norm_eps == 1e-5
    deepseek = read("deepseek_v3", rope_scaling={"type": "yarn", "beta_fast": 32, "beta_slow": 1, **YARN})
    assert deepseek.rotary.scaling == YarnSpec(factor=40, original=4096, mscale=1, mscale_all_dim=1)
    assert read("deepseek_v3", rope_interleave=False).rotary.style == "half"
    # zero counts as absent, the longest context stands for what is not said
    odd = {"rope_type": "yarn", "mscale_all_dim": 0.0, "attention_factor": 1.5, "original_max_position_embeddings": 64}
    yarn = read("qwen3", max_position_embeddings=256, rope_parameters=odd).rotary.scaling
    assert yarn == YarnSpec(factor=4, original=64, attention_factor=1.5)
    long = read("qwen3", max_position_embeddings=256, rope_scaling={"type": "yarn", "factor": 4}).rotary.scaling
    assert long == YarnSpec(factor=4, original=256)


def test_a_part_of_each_head_turns() -> None:
    assert read("minimax_m2", rotary_dim=64).rotary.dim == 64
    assert read("minimax_m2", rotary_dim=64, rope_parameters={"partial_rotary_factor": 0.25}).rotary.dim == 32
    assert read("glm4_moe", partial_rotary_factor=1.0).rotary.dim is None
    assert read("llama", partial_rotary_factor=1.0).rotary.dim is None


def test_dynamic_scaling_is_a_stated_assumption(tmp_path: Path) -> None:
    content = CONFIGS["llama"] | {"rope_scaling": {"type": "dynamic", "factor": 2}, "max_position_embeddings": 4096}
    (tmp_path / "llama.json").write_text(json.dumps(content), encoding="utf-8")
    loaded = load_text(f'model hf "llama.json" {CLUSTER}', "m.strat", tmp_path)
    assert loaded.spec.model.rotary == RotarySpec()
    (why,) = (a.why for a in loaded.assumptions if a.name == "model.rotary.scaling")
    assert "4096 tokens" in why


def test_the_block_overrides_the_config(tmp_path: Path) -> None:
    content = json.dumps(CONFIGS["llama"] | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}})
    model = load(tmp_path, '"llama.json" { norm_eps 1e-3  rotary { scaling llama3 { factor 16 } } }', content)
    assert model.rotary == RotarySpec(theta=5e5, scaling=Llama3Spec(factor=16, original=8192))
    assert model.norm_eps == 1e-3
    assert load(tmp_path, '"llama.json" { rotary { scaling none } }', content).rotary == RotarySpec(theta=5e5)


def test_windows_of_qwen() -> None:
    """Qwen3-MoE's class knows no ``max_window_layers``; a key that is absent means the class's window."""
    moe = read("qwen3_moe", use_sliding_window=True, sliding_window=64, max_window_layers=21)
    assert (moe.attention.window, moe.layers.pattern) == (64, ())
    assert read("qwen2", use_sliding_window=True, max_window_layers=0).attention.window == 4096
    assert read("qwen2", use_sliding_window=True, sliding_window=None).attention.window is None


def test_tied_embeddings_and_context() -> None:
    model = read("qwen3", tie_word_embeddings=True, max_position_embeddings=40960)
    assert (model.tied, model.max_context) == (True, 40960)


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8}}},
            },
            "fp8",
        ),
    ],
)
def test_quantization(quantization: dict[str, Any], dtype: str) -> None:
    assert read("llama", quantization_config=quantization).dtype == dtype


@pytest.mark.parametrize(
    ("model_type", "changes", "key"),
    [
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("llama", {"hidden_size": "8192"}, "hidden_size"),
        ("llama", {"hidden_size": True}, "hidden_size"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("llama", {"num_hidden_layers": {"text": 3}}, "num_hidden_layers"),
        ("llama", {"vocab_size": 10**30}, "vocab_size"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"torch_dtype": "complex64"}, "torch_dtype"),
        ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ("llama", {"quantization_config": []}, "quantization_config"),
        ("llama", {"quantization_config": {"quant_method": "new"}}, "quantization_config.quant_method"),
        ("llama", {"num_attention_heads": 63}, "head_dim"),
        ("gpt_oss", {"layer_types": ["linear_attention"] * 36}, "layer_types"),
        ("gpt_oss", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen3_moe", {"mlp_only_layers": [True]}, "mlp_only_layers"),
        ("deepseek_v3", {"scoring_func": "tanh"}, "scoring_func"),
        ("deepseek_v3", {"routed_scaling_factor": float("nan")}, "routed_scaling_factor"),
        ("minimax_m2", {"attn_type_list": [0, 1]}, "attn_type_list"),
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps"),
        ("llama", {"rope_theta": "big"}, "rope_theta"),
        ("llama", {"rope_scaling": {"type": "longrope", "factor": 4}}, "rope_scaling.type"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "max_position_embeddings"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
            "rope_parameters.high_freq_factor",
        ),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("minimax_m2", {"rotary_dim": 0}, "rotary_dim"),
        ("minimax_m2", {"shared_intermediate_size": 5}, "shared_intermediate_size"),
    ],
)
def test_odd_values_are_named(model_type: str, changes: dict[str, Any], key: str) -> None:
    code, message = refused(CONFIGS[model_type] | changes)
    assert code == "PD021"
    assert f"`{key}`" in message


@pytest.mark.parametrize("model_type", ["nemotron_h", "t5", 3, None, ["llama"]])
def test_other_types_are_refused_by_name(model_type: object) -> None:
    code, message = refused({"model_type": model_type})
    assert code == "PD020"
    assert model_type is None or str(model_type) in message


# --- in a strategy file


def load(tmp_path: Path, head: str, content: str | None = None) -> ModelSpec:
    text = json.dumps(CONFIGS["llama"]) if content is None else content
    (tmp_path / "llama.json").write_text(text, encoding="utf-8")
    return load_text(f"model hf {head} {CLUSTER}", "m.strat", tmp_path).spec.model


def codes(tmp_path: Path, head: str, content: str | None = None) -> list[str]:
    with pytest.raises(DiagnosticError) as caught:
        load(tmp_path, head, content)
    assert all(d.span and d.span.file == "m.strat" for d in caught.value.diagnostics)
    return [d.code for d in caught.value.diagnostics]


def test_config_beside_the_file(tmp_path: Path) -> None:
    model = load(tmp_path, '"llama.json"')
    assert (model.name, parameters(model)) == ("llama", 70_553_706_496)
    folder = tmp_path / "Llama-3.1-70B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"]), encoding="utf-8")
    assert load(tmp_path, '"Llama-3.1-70B/config.json" { }').name == "Llama-3.1-70B"


def test_fields_of_the_block_win(tmp_path: Path) -> None:
    model = load(tmp_path, '"llama.json" { layers 4  dtype fp8  attention gqa { kv_heads 16 } }')
    assert (model.layers.count, model.dtype, model.attention.kv_heads) == (4, "fp8", 16)
    assert (model.hidden, model.attention.heads, model.attention.head_dim) == (8192, 64, 128)
    assert load(tmp_path, '"llama.json" { attention mha { heads 64 } }').attention.kv_heads == 64


def test_spans_of_config_fields_point_at_the_path(tmp_path: Path) -> None:
    (tmp_path / "llama.json").write_text(json.dumps(CONFIGS["llama"]), encoding="utf-8")
    loaded = load_text(f'model hf "llama.json" {{ vocab 99 }} {CLUSTER}', "m.strat", tmp_path)
    assert loaded.sources["model.hidden"].column == 10
    assert loaded.sources["model.attention.heads"].column == 10
    assert loaded.sources["model.vocab"].column == 25


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("not json", "PD021"),
        ("[1]", "PD021"),
        ("[" * 100_000, "PD021"),
        ('{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}", "PD021"),
        ('{"model_type": "llama"}', "PD021"),
        ("\0", "PD003"),
        (" " * (5 * 2**20), "PD002"),
    ],
    ids=["text", "list", "deep", "digits", "empty", "binary", "large"],
)
def test_broken_configs(tmp_path: Path, content: str, code: str) -> None:
    assert codes(tmp_path, '"llama.json"', content) == [code]


def test_paths_stay_inside_the_folder(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(CONFIGS["llama"]), encoding="utf-8")
    (inner / "link.json").symlink_to(secret)
    for path in ("../secret.json", str(secret), "link.json", "a/../../secret.json"):
        assert codes(inner, json.dumps(path)) == ["PD022"], path
    assert codes(inner, '"nul\\u0000.json"') == ["PD001"]
    assert codes(inner, '"none.json"') == ["PD001"]


def test_other_errors_are_reported_along_with_a_missing_config(tmp_path: Path) -> None:
    assert codes(tmp_path, '"none.json" { dtype fp9  hidden 64 GB }') == ["PD001", "PD016", "PD014"]


@pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"{REFERENCE} is absent")
def test_configs_of_real_models() -> None:
    read_names = []
    for path in sorted(REFERENCE.glob("*.json")):
        if json.loads(path.read_text(encoding="utf-8"))["model_type"] in SUPPORTED_MODEL_TYPES:
            model = ModelSpec.model_validate(read_hf_config(path))
            assert parameters(model) > 10**8
            read_names.append(model.name)
    assert len(read_names) >= 10
