"""Condition files: what each line sets, what is assumed, and what their strategies can mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.spec import LoadedSpec
from paradag.grammar import load_file
from paradag.grammar.condition import ConditionError, load_condition_text

HERE = Path(__file__).parent
CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "conditions"

REAL = sorted(CORPUS.glob("*.md"))
"""Empty, and the test skipped, where the corpus is not there."""

CHIP = """
* **Single-card computing power**: 400TFlops.
* **VRAM Bandwidth**: 1.8TBps.
* **Single-card video memory capacity**: 64GB.
"""
MODEL = """
* **Layers**: 16-layer, GQA + MoE, each layer has 64 experts
* **Token Dimension**: 1024
* **Dimension of Attention**: 16 heads, the dimension of each head is 64
* **GQA kv heads**: 8
* **Hidden size of MOE**: 2048
* **Batch size**: 128
* **Sequence In**: 2048
"""


def load(text: str) -> LoadedSpec:
    return load_condition_text(text, "case.md")


def account(loaded: LoadedSpec) -> str:
    return "".join(f"{u.line:3} {u.use:13} {u.detail}\n" for u in loaded.lines if u.use != "layout")


def test_every_line_is_accounted_for() -> None:
    loaded = load_file(HERE / "conditions" / "moe.md")
    assert [u.line for u in loaded.lines] == list(range(1, len(loaded.texts.popitem()[1].splitlines()) + 1))
    assert account(loaded) == (
        "  3 field         cluster.nodes = any\n"
        "  4 field         cluster.accelerator.compute.* = 4e+14\n"
        "  5 field         cluster.accelerator.compute_efficiency = 0.6\n"
        "  6 field         cluster.accelerator.bandwidth = 1.8e+12\n"
        "  7 field         cluster.accelerator.bandwidth_efficiency = 0.8\n"
        "  8 field         cluster.accelerator.memory = 6.4e+10\n"
        "  9 unused        no field of the spec\n"
        " 15 field         model.weights = 2.35e+11\n"
        " 16 field         model.layers.count = 94, model.attention.kind = gqa, model.moe.experts = 128\n"
        " 17 field         model.dtype = fp8\n"
        " 18 field         model.hidden = 4096\n"
        " 19 field         model.attention.heads = 64, model.attention.head_dim = 128\n"
        " 20 field         model.moe.ffn = 1536\n"
        " 21 field         model.moe.top_k = 8\n"
        " 22 field         model.attention.kv_heads = 4\n"
        " 23 contradiction line 16: model.moe.experts = 128\n"
        " 27 field         workload.batch = 128\n"
        " 28 field         workload.sequence = (128, 10240)\n"
        " 29 field         workload.input = 2048\n"
        " 33 field         workload.require.ttft = 30\n"
        " 34 unused        no value given\n"
        " 35 field         workload.require.throughput_per_gpu = 100000\n"
    )
    assert [(d.code, d.span and d.span.line) for d in loaded.diagnostics] == [("PD019", 23)]


def test_what_is_left_out_is_assumed_and_told() -> None:
    loaded = load(CHIP + MODEL)
    assert [(a.name, a.value) for a in loaded.assumptions] == [
        ("model.name", "case"),
        ("model.moe.top_k", "2"),
        ("model.vocab", "32000"),
        ("model.dtype", "bf16"),
        ("model.kv_dtype", "bf16"),
        ("cluster.accelerator.name", "unnamed"),
        ("cluster.gpus_per_node", "8"),
        ("cluster.nodes", "any"),
        ("cluster.scale_up.bandwidth", "196 GB/s"),
        ("cluster.scale_out.bandwidth", "25 GB/s"),
        ("workload.output", "128"),
    ]
    assert "ascend_910b" in next(a.why for a in loaded.assumptions if a.name == "cluster.scale_up.bandwidth")


def test_fields_of_a_known_model_come_from_the_catalogue() -> None:
    text = CHIP + MODEL.replace("16-layer", "94-layer").replace("64 experts", "128 experts")
    loaded = load(text.replace("1024", "4096").replace("16 heads", "64 heads") + "* **name**: Qwen3-235B\n")
    assert loaded.spec.model.moe is not None
    assert (loaded.spec.model.moe.top_k, loaded.spec.model.vocab) == (8, 151936)
    notes = [(d.code, d.severity, d.message) for d in loaded.diagnostics]
    assert ("PD019", "note", "`model.attention.head_dim` is 64; the catalogue's qwen3-235b-a22b has 128") in notes


def test_what_cannot_be_assumed_is_one_error_that_lists_it() -> None:
    with pytest.raises(ConditionError) as caught:
        load("* **Layers**: 16-layer MoE, 64 experts\n* **Precision**: FP8\n")
    (found,) = caught.value.diagnostics
    assert found.code == "PD013"
    for what in ("hidden", "attention heads", "prompt length", "hidden size of an expert", "memory bandwidth"):
        assert what in found.message
    assert [u.use for u in caught.value.lines] == ["field", "field"]


STRATEGY = """
## Parallelism Strategy
* **Tensor parallelism**: 16
* **Pipeline parallelism**: 4
* **Data parallelism**: 4
* **Expert parallelism**: 32
"""


@pytest.mark.parametrize(
    ("total", "chain", "ranks"),
    [
        (128, "pp 4 ep 32 tp 16", None),
        (256, "pp 4 ep 32 tp 16", 64),
        (512, "dp 4 pp 4 ep 32 tp 16", None),
    ],
)
def test_a_stated_total_picks_the_reading_of_dp(total: int, chain: str, ranks: int | None) -> None:
    loaded = load(CHIP + MODEL + STRATEGY + f"* **GPUs **: {total}\n")
    for strategy in loaded.spec.strategies:
        assert " ".join(f"{t.name} {t.degree}" for t in strategy.chain) == chain
        assert strategy.ranks == ranks
    told = next(d for d in loaded.diagnostics if d.code == "PD023")
    assert "128 without DP, 256 DP as attention DP, 512 DP as replicas" in told.message


def test_a_total_that_is_the_product_of_all_degrees_is_told_apart() -> None:
    section = """
## **Strategy Composition**
- **Expert Parallelism (EP)**: 64-way - Each expert assigned to separate GPU
- **Tensor Parallelism (TP)**: 8-way - Intra-layer parallelism
- **Pipeline Parallelism (PP)**: 2-way - Layer distribution
- **Data Parallelism (DP)**: 2-way - Batch processing
- **Total GPUs** = EP × TP × PP × DP = 64 × 8 × 2 × 2 = 2048
"""  # noqa: RUF001
    loaded = load(CHIP + MODEL + section)
    (told,) = [d for d in loaded.diagnostics if d.code == "PD752"]
    assert "2048 GPUs is the product" in told.message
    assert "128 without DP" in str(told.expected) and "256 DP as replicas" in str(told.expected)


def test_degrees_beyond_any_cluster_are_read() -> None:
    loaded = load(CHIP + MODEL + "## Strategy\n- **Tensor**: 65536\n- **Data**: 65536\n")
    assert any("none DP as attention DP" in d.message for d in loaded.diagnostics)


def test_one_expert_per_gpu_is_checked() -> None:
    section = "## Strategy\n- **Expert Parallelism (EP)**: 2-way - Each expert assigned to separate GPU\n"
    loaded = load(CHIP + MODEL + section)
    assert any("32 of the 64 experts on each GPU" in d.message for d in loaded.diagnostics)


def test_a_figure_that_is_none_is_a_warning() -> None:
    loaded = load(CHIP + MODEL + "* **Vocabulary size**: large\n")
    assert [(d.code, d.expected) for d in loaded.diagnostics] == [("PD018", "a whole number")]


YAML = """
model:
  name: tiny
  layers: 4
  hidden: 64
  vocab: 128
  ffn: 256
  attention: {kind: gqa, heads: 8, kv_heads: 2, head_dim: 8}
cluster:
  accelerator: {name: h100_sxm, catalog: h100_sxm}
  nodes: 1
  gpus_per_node: 8
  scale_up: {bandwidth: 200 GB/s}
workload:
  batch: 8
  input: 128
  output: 16
  require: {ttft: 30 ms}
strategies:
  - phase: decode
    chain:
      - {name: tp, degree: 2}
"""


def test_yaml_has_the_field_names_of_the_spec() -> None:
    loaded = load_condition_text(YAML, "case.yaml")
    assert loaded.spec.cluster.scale_up.bandwidth == 200e9
    assert loaded.spec.workload.require.ttft == 0.03
    assert loaded.spec.strategies[0].degree("tp") == 2
    assert next(u.detail for u in loaded.lines if u.text.startswith("attention")) == (
        "model.attention.kind = gqa, model.attention.heads = 8, model.attention.kv_heads = 2, "
        "model.attention.head_dim = 8"
    )


def test_json_says_the_same_as_yaml() -> None:
    import yaml

    text = json.dumps(yaml.safe_load(YAML), indent="\t")
    assert load_condition_text(text, "case.json").spec == load_condition_text(YAML, "case.yaml").spec


@pytest.mark.parametrize(
    ("text", "file", "code", "line"),
    [
        ("", "a.md", "PD004", 1),
        ("model: [1, 2", "a.yaml", "PD010", 1),
        ("just words", "a.yaml", "PD010", 1),
        ("a: &x [1]\nb: *x\n", "a.yaml", "PD010", 2),
        ("a: " + "[" * 100 + "]" * 100, "a.yaml", "PD002", 1),
        ('{"model": {,}}', "a.json", "PD010", 1),
        (YAML + "colour: black\n", "a.yaml", "PD011", 23),
        (YAML.replace("200 GB/s", "200 GBps"), "a.yaml", "PD014", 13),
        (YAML.replace("hidden: 64", "hidden: -64"), "a.yaml", "PD015", 5),
        (YAML.replace("heads: 8, kv_heads: 2", "heads: many"), "a.yaml", "PD015", 8),
        (YAML.replace("batch: 8", "sequence: [9, 2]"), "a.yaml", "PD015", 15),
        (YAML.replace("catalog: h100_sxm", "catalog: [1]"), "a.yaml", "PD015", 10),
    ],
)
def test_malformed_conditions_get_a_diagnostic_with_its_place(text: str, file: str, code: str, line: int) -> None:
    with pytest.raises(DiagnosticError) as caught:
        load_condition_text(text, file)
    found = caught.value.diagnostics[0]
    assert (found.code, found.span and found.span.line) == (code, line), found


@pytest.mark.parametrize("path", REAL, ids=[p.stem for p in REAL])
def test_real_conditions_load_or_say_what_is_missing(path: Path) -> None:
    try:
        loaded = load_file(path)
    except ConditionError as error:
        assert "the condition does not give" in error.diagnostics[0].message
        return
    assert all(u.use != "unused" or "no value" in u.detail for u in loaded.lines if u.text.startswith(("*", "-")))
