"""Tiny models of ``transformers`` with random weights, from a config alone. Nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from math import sqrt
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import PreTrainedModel

torch.set_num_threads(1)

_SIZES = {"vocab_size": 80, "hidden_size": 32, "num_attention_heads": 8, "max_position_embeddings": 512}
_HEADS = _SIZES | {"head_dim": 8, "num_key_value_heads": 4, "num_hidden_layers": 4}

CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    # Llama 3.1's stretched wavelengths, with a border inside the few positions that are run
    "Llama": ("Llama", _HEADS | {
        "intermediate_size": 48, "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    }),
    "Qwen3": ("Qwen3", _HEADS | {
        "intermediate_size": 48, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    }),
    "Mixtral": ("Mixtral", _HEADS | {"intermediate_size": 24, "num_local_experts": 8}),
    "Qwen3Moe": ("Qwen3Moe", _HEADS | {
        "intermediate_size": 48, "moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3,
        "mlp_only_layers": [1], "norm_topk_prob": True,
    }),
    # YaRN, pairs of neighbours, groups of experts, a shared expert, a dense layer first
    "DeepseekV3": ("DeepseekV3", _SIZES | {
        "num_hidden_layers": 4, "num_key_value_heads": 8, "intermediate_size": 48, "moe_intermediate_size": 16,
        "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
        "n_shared_experts": 1, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 64,
        },
    }),
    # YaRN, sinks, sliding layers, biases everywhere
    "GptOss": ("GptOss", _HEADS | {
        "intermediate_size": 24, "num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 5,
    }),
    "Mistral": ("Mistral", _HEADS | {"intermediate_size": 48, "sliding_window": 4}),
    "Qwen2": ("Qwen2", _HEADS | {"intermediate_size": 48}),
    "Glm4Moe": ("Glm4Moe", _HEADS | {
        "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "use_qk_norm": True,
        "attention_bias": True,
    }),
    "MiniMaxM2": ("MiniMaxM2", _HEADS | {
        "intermediate_size": 16, "num_local_experts": 8, "num_experts_per_tok": 3,
    }),
}  # fmt: skip
"""Architecture and config of each model, by name."""


@cache
def tiny(name: str, seed: int = 0, **changed: Any) -> PreTrainedModel:
    """A model in float32 with random weights: projections scaled by fan-in; norms, biases and sinks random too.

    With the library's own initialisation (standard deviation 0.02, norms of one, biases of zero) most errors would
    stay below any tolerance.
    """
    architecture, settings = CONFIGS[name]
    config = getattr(transformers, f"{architecture}Config")(**settings | changed)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in model.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if key.endswith("norm.weight"):
            tensor.copy_(1 + 0.3 * drawn)
        elif key.endswith("gate_up_proj_bias"):
            tensor.copy_(4 * drawn)  # gpt-oss clamps at 7: some values must lie beyond
        elif tensor.ndim == 1 or key.endswith("bias"):
            tensor.copy_(0.5 * drawn)
        elif "embed_tokens" in key:
            tensor.copy_(drawn if not config.tie_word_embeddings else drawn / sqrt(config.hidden_size))
        else:
            # [out, in], but [experts, in, out] in gpt-oss
            fan_in = tensor.shape[1] if architecture == "GptOss" and tensor.ndim == 3 else tensor.shape[-1]
            tensor.copy_(drawn / sqrt(fan_in))
    if config.tie_word_embeddings:
        model.tie_weights()
    return model
