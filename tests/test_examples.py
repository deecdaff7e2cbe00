"""Every shipped example compiles, and its printed IR beside it is what the compiler gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paradag import compile as compile_strategy
from paradag.compiler.ir.text import print_graph
from paradag.compiler.spec.counts import active_parameters, kv_bytes_per_token, parameters
from paradag.grammar import load_file

EXAMPLES = Path(__file__).resolve().parents[1] / "ir_examples"
FILES = sorted(EXAMPLES.glob("*.strat"))
UPDATE = bool(os.environ.get("PARADAG_UPDATE_GOLDENS"))

# GPUs of (prefill, decode); None where the example has no such strategy.
GPUS = {
    "llama-3.1-8b-1gpu": (1, 1),
    "llama-3.1-70b-tp8": (8, 8),
    "llama-3.1-70b-pp2-tp4": (8, 8),
    "llama-3.1-405b-fp8-tp8": (8, 8),
    "llama-3.1-405b-bf16-pp2-tp8": (16, 16),
    "llama-3.1-405b-ring-sp8-tp8": (64, None),
    "mixtral-8x7b-ep8": (8, 8),
    "mixtral-8x7b-ep4-tp2": (4, 4),
    "mixtral-8x7b-tp8": (8, 8),
    "qwen3-32b-tp4": (4, 4),
    "qwen3-32b-ulysses-sp4-tp2": (8, 8),
    "qwen3-235b-a22b-ep32": (32, 32),
    "qwen3-235b-a22b-pp4-ep32-tp16": (128, 128),
    "gpt-oss-120b-ep4-tp4": (4, 4),
    "deepseek-v3-prefill-ep32": (32, None),
    "deepseek-v3-decode-ep144": (None, 144),
    "deepseek-v3-decode-ep320": (None, 320),
    "deepseek-v3-disaggregated": (32, 144),
}

# Parameters, active parameters per token, KV bytes per token in bf16: transformers' own counts on the meta device.
COUNTS = {
    "Llama-3.1-8B": (8_030_261_248, 8_030_261_248, 131_072),
    "Llama-3.1-70B": (70_553_706_496, 70_553_706_496, 327_680),
    "Llama-3.1-405B": (405_853_388_800, 405_853_388_800, 516_096),
    "Qwen3-32B": (32_762_123_264, 32_762_123_264, 262_144),
    "Qwen3-235B-A22B": (235_093_634_560, 22_190_763_520, 192_512),
    "Mixtral-8x7B": (46_702_792_704, 12_879_925_248, 131_072),
    "DeepSeek-V3": (671_026_404_352, 37_552_282_624, 70_272),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912, 73_728),
}


def test_every_example_is_listed() -> None:
    assert {f.stem for f in FILES} == set(GPUS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_example_compiles_as_printed(path: Path) -> None:
    compiled = compile_strategy(path)
    assert str(compiled.status) == "VALID", compiled.diagnostics
    gpus = tuple(compiled.phases[p].graph.mesh.gpus if p in compiled.phases else None for p in ("prefill", "decode"))
    assert gpus == GPUS[path.stem]
    for phase, analysis in compiled.phases.items():
        printed = EXAMPLES / "printed" / f"{path.stem}.{phase}.ir"
        if UPDATE:
            printed.parent.mkdir(exist_ok=True)
            printed.write_text(print_graph(analysis.graph), encoding="utf-8")
        assert printed.read_text(encoding="utf-8") == print_graph(analysis.graph)
        assert analysis.latency > 0 and analysis.memory.headroom > 0


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_examples_model_has_the_exact_counts(path: Path) -> None:
    model = load_file(path).spec.model
    assert (parameters(model), active_parameters(model), kv_bytes_per_token(model)) == COUNTS[model.name]


def test_disaggregated_pools_number_their_gpus_one_after_the_other() -> None:
    compiled = compile_strategy(EXAMPLES / "deepseek-v3-disaggregated.strat")
    decode = compiled.phases["decode"]
    assert decode.flat.node(0).devices[0] == 32
    sends = [n for _, n in compiled.phases["prefill"].graph.nodes() if n.op == "kv_send"]
    receives = [n for _, n in decode.graph.nodes() if n.op == "kv_recv"]
    assert len(sends) == len(receives) == 2, "one per kind of layer, paired by transfer id"
    assert {n.attrs["transfer"] for n in sends} == {n.attrs["transfer"] for n in receives}
