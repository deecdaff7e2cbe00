"""Rotary embedding, norms and scores of real models: in the graph, in the kernels, and in the reference."""

from __future__ import annotations

import numpy as np
import pytest

from paradag.compiler.build import build_graph
from paradag.compiler.ir.graph import Node, Phase
from paradag.compiler.ir.ops._rotary import frequencies
from paradag.compiler.run._reference_rotary import turn
from paradag.compiler.spec import ModelSpec, RotarySpec
from paradag.compiler.spec.catalog import model, model_names
from paradag.compiler.spec.counts import active_parameters, kv_bytes_per_token, parameters
from paradag.tests.run.builds import DENSE, LATENT, MOE, run, spec_of

# `transformers` 5.23, ROPE_INIT_FUNCTIONS on the published configs (Kimi-K2: that of its first release): every eighth
# of the pairs, in radians per token, and the factor on cosine and sine.
STRETCHED = {
    "deepseek-v3": ([1.0, 0.3162278, 0.1, 0.02687936, 0.0055, 0.0007905694, 2.5e-05, 3.333804e-06], 1.0),
    "kimi-k2": ([1.0, 0.2586001, 0.06687403, 0.01729363, 0.004472136, 3.614047e-05, 9.34593e-06, 8.764413e-07], 1.0),
    "llama-3.1-8b": (
        [1.0, 0.1939228, 0.03760603, 0.007292665, 0.000524846, 3.428102e-05, 6.64787e-06, 3.068926e-07], 1.0,
    ),
    "gpt-oss-120b": (
        [1.0, 0.225418, 0.05081327, 0.006794959, 0.0004564839, 1.818834e-05, 4.099978e-06, 3.023511e-07],
        1.3465735902799727,
    ),
}  # fmt: skip

EVERYTHING = """norm_eps 1e-3  rotary {
        theta 500  style interleaved  dim 4
        scaling yarn { factor 8  original 64  beta_fast 4  truncate false }
    }"""
CASES = {
    "partial, interleaved, YaRN": DENSE.replace("head_dim 4 }", "head_dim 8 }") + EVERYTHING,
    "norm over all heads": DENSE.replace("head_dim 4 }", "head_dim 4  qk_norm full }") + " norm_eps 1e-2",
    "latent, YaRN": LATENT + " norm_eps 1e-2 rotary { style interleaved scaling yarn"
    " { factor 40  original 64  mscale 0.7  mscale_all_dim 1 } }",
    "latent, no query latent": LATENT.replace("q_lora 9", "") + " rotary { scaling linear { factor 3 } }",
    "Llama 3.1": MOE + " rotary { theta 500  scaling llama3 { factor 8  original 64 } }",
}


def nodes_of(spec_model: ModelSpec, *ops: str) -> dict[str, Node]:
    """Nodes of these operators in a model's decode graph; of equal names the last."""
    spec = spec_of(DENSE, "strategy { }")
    graph = build_graph(spec.model_copy(update={"model": spec_model}), "decode", "numerics")
    return {n.name: n for _, n in graph.nodes() if n.op in ops}


def pairs_shown(count: int) -> list[int]:
    return [*range(0, count - count // 8, count // 8), count - 1]


@pytest.mark.parametrize("name", STRETCHED)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    published, amplitude = STRETCHED[name]
    node = nodes_of(model(name), "rotary")["rotary"]
    got = frequencies(node.attrs)
    np.testing.assert_allclose(got[pairs_shown(len(got))], published, rtol=1e-6)
    assert node.attrs.get("amplitude", 1.0) == pytest.approx(amplitude, rel=1e-12)


@pytest.mark.parametrize("name", STRETCHED)
def test_the_reference_turns_as_fast(name: str) -> None:
    published, amplitude = STRETCHED[name]
    rotary, width = model(name).rotary, model(name).rotary_width
    x = np.zeros((1, 1, width))
    first = slice(0, width // 2) if rotary.style == "half" else slice(0, width, 2)
    second = slice(width // 2, width) if rotary.style == "half" else slice(1, width, 2)
    x[..., first] = 1.0
    turned = turn(x, np.array([1]), rotary)[0, 0]
    angle = np.arctan2(turned[second], turned[first])
    np.testing.assert_allclose(angle[pairs_shown(width // 2)], published, rtol=1e-6)
    np.testing.assert_allclose(np.hypot(turned[first], turned[second]), amplitude)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("case", CASES)
def test_lowered_graphs_compute_them(case: str, phase: Phase) -> None:
    assert run(spec_of(CASES[case], "strategy { tp 2 }"), phase).equal


def test_defaults_leave_no_attribute() -> None:
    nodes = nodes_of(spec_of(DENSE, "strategy { }").model, "norm", "rotary", "attention")
    assert nodes["rotary"].attrs == {"rotary": 4}
    assert all(n.attrs == {} for n in nodes.values() if n.op == "norm")
    assert nodes["attention"].attrs == {"scale": 0.5, "v_dim": 4}


def test_what_differs_is_an_attribute() -> None:
    nodes = nodes_of(spec_of(CASES["partial, interleaved, YaRN"], "strategy { }").model, "norm", "rotary", "attention")
    assert nodes["rotary"].attrs == {
        "rotary": 4, "leading": True, "theta": 500.0, "style": "interleaved", "scaling": "yarn", "factor": 8.0,
        "original": 64, "beta_fast": 4.0, "truncate": False, "amplitude": pytest.approx(1 + 0.1 * np.log(8)),
    }  # fmt: skip
    norms = {n.name: n.attrs["eps"] for n in nodes.values() if n.op == "norm"}
    assert norms == dict.fromkeys(("attn_norm", "ffn_norm", "final_norm"), 1e-3)


def test_latents_have_an_epsilon_of_their_own() -> None:
    """As in DeepSeek-V3's code, which gives their norms none of the config's."""
    nodes = nodes_of(spec_of(CASES["latent, YaRN"], "strategy { }").model, "norm", "attention")
    assert nodes["q_a_norm"].attrs == nodes["kv_a_norm"].attrs == {}
    assert nodes["attn_norm"].attrs == {"eps": 1e-2}
    assert nodes["attention"].attrs["scale"] == pytest.approx(10**-0.5 * (1 + 0.1 * np.log(40)) ** 2)


@pytest.mark.parametrize("name", model_names())
def test_costs_do_not_depend_on_them(name: str) -> None:
    """What a model holds and caches stays the same without them."""
    real = model(name)
    plain = real.model_copy(update={"rotary": RotarySpec(), "norm_eps": 1e-6})
    for count in (parameters, active_parameters, kv_bytes_per_token):
        assert count(real) == count(plain)
