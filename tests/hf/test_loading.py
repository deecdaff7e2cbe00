"""Models of ``transformers`` as they enter: their weights under our names, and `paradag verify --against`."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

import paradag
from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.run.weights import Weights
from paradag.compiler.verification import execute
from paradag.tests.cli.invoke import invoke
from paradag.tests.hf.cases import COMBINATIONS, MODELS, oracle, spec_of

STRATEGY = """
model "described" { layers 1  hidden 8  vocab 8  ffn 8  attention mha { heads 1  head_dim 8 } }
cluster { accelerator h100_sxm  nodes any of 8 }
workload { batch 4  input 9 tokens  output 4 tokens }
strategy prefill { pp 2 -> sp 2 -> tp 2 }
strategy decode { pp 2 -> tp 4 }
"""


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_views_of_the_models_own(model: str) -> None:
    judge = oracle(model, "float32")
    own = {name: tensor.numpy() for name, tensor in judge.model.state_dict().items()}
    for key, mine in judge.weights.tensors.items():
        assert any(np.shares_memory(mine, tensor) for tensor in own.values()), key


def test_layouts() -> None:
    judge = oracle("DeepseekV3", "float32")
    state, layer = judge.model.state_dict(), "model.layers.1"
    up = state[f"{layer}.self_attn.kv_b_proj.weight"].numpy()  # per head, rows of keys (12), then of values (10)
    assert np.array_equal(judge.weights[1, "uk"][3], up[3 * 22 : 3 * 22 + 12])
    assert np.array_equal(judge.weights[1, "uv"][3], up[3 * 22 + 12 : 4 * 22])
    packed = state[f"{layer}.mlp.experts.gate_up_proj"].numpy()  # gate, then up
    assert np.array_equal(judge.weights[1, "expert.up"][5], packed[5, 16:].T)
    judge = oracle("GptOss", "float32")
    packed = judge.model.state_dict()["model.layers.0.mlp.experts.gate_up_proj"].numpy()  # gate and up in turn
    assert np.array_equal(judge.weights[0, "expert.gate"][5], packed[5, :, ::2])


def test_float64_is_exact() -> None:
    """The same weights, and no step of the model's own in float32."""
    double, single = oracle("Qwen3Moe", "float64"), oracle("Qwen3Moe", "float32")
    assert all(np.array_equal(w, single.weights[key]) for key, w in double.weights.tensors.items())
    prompts = np.arange(12).reshape(2, 6)
    logits = double.greedy(prompts, 1)
    assert logits.dtype == np.float64 and 1e-9 < np.abs(logits - single.greedy(prompts, 1)).max() < 1e-5


@pytest.mark.parametrize(
    "model, one, other",
    [
        ("Llama", "wk", "wv"),
        ("Qwen3", "q_norm", "k_norm"),
        ("Mixtral", "expert.gate", "expert.up"),
        ("GptOss", "expert.gate_bias", "expert.up_bias"),
        ("DeepseekV3", "shared.w_gate", "shared.w_up"),
    ],
)
def test_weights_under_each_others_names_show(model: str, one: str, other: str) -> None:
    judge = copy.copy(oracle(model, "float64"))
    whole = dict(judge.weights.tensors)
    layer = judge.spec.layers.count - 1
    whole[layer, one], whole[layer, other] = whole[layer, other], whole[layer, one]
    judge.weights = Weights(judge.spec, whole)
    spec, _ = spec_of(COMBINATIONS[1], judge.spec)
    assert all(p.max_error > 1e-3 for p in execute(spec, steps=1, oracle=judge).phases.values())


def test_a_model_with_other_weights_is_refused() -> None:
    import torch

    from paradag.compiler.run.huggingface import HuggingFace
    from paradag.tests.hf.models import tiny

    model = tiny("Llama", seed=1)
    model.model.layers[2].self_attn.gate = torch.nn.Linear(2, 2)

    class Gated(type(model)):
        def __init__(self, config: object) -> None:
            super().__init__(config)
            self.model.layers[2].self_attn.gate = torch.nn.Linear(2, 2)

    model.__class__ = Gated
    with pytest.raises(DiagnosticError) as refused:
        HuggingFace(model)
    assert refused.value.diagnostics[0].code == "PD020" and "self_attn.gate" in refused.value.diagnostics[0].message


@pytest.fixture
def strategy(tmp_path: Path) -> Path:
    path = tmp_path / "small.strat"
    path.write_text(STRATEGY)
    return path


def test_python(strategy: Path) -> None:
    found = paradag.verify(strategy, oracle=oracle("Qwen3", "float64"), steps=2)
    assert found.equal and found.phases["prefill"].ranks == 8
    assert {c.name for c in found.shrunk} == {"model", "workload.output"}


def test_command_line(strategy: Path, tmp_path: Path) -> None:
    from paradag.tests.hf.models import tiny

    tiny("Llama").save_pretrained(tmp_path / "saved")
    code, out, _ = invoke("verify", str(strategy), "--against", str(tmp_path / "saved"), "--format", "json")
    document = json.loads(out)
    assert code == 0 and document["equal"] and document["shrunk"][0]["after"] == "LlamaForCausalLM"
    assert document["phases"]["decode"]["max_error"] < 1e-13


@pytest.mark.parametrize("content", [None, "{}", '{"model_type": "llama"}', "[]"])
def test_folder_without_a_model(strategy: Path, tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content)
    code, _, err = invoke("verify", str(strategy), "--against", str(folder))
    assert code == 2 and "PD001" in err
