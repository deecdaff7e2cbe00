"""Hugging Face configs: every supported model type, odd values, and paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.spec import ModelSpec
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
        ("deepseek_v3", {"q_lora_rank": None}, "q_lora_rank"),
        ("deepseek_v3", {"scoring_func": "tanh"}, "scoring_func"),
        ("deepseek_v3", {"routed_scaling_factor": float("nan")}, "routed_scaling_factor"),
        ("minimax_m2", {"attn_type_list": [0, 1]}, "attn_type_list"),
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
