"""Each repair by an example: the text before and after, and what else the file holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from paradag import compile as compile_strategy
from paradag.compiler.diagnostics import DiagnosticError, Fix, Outcome
from paradag.compiler.spec import LoadedSpec
from paradag.grammar import load_file, load_text
from paradag.passes.validation import check_spec
from paradag.passes.validation.fixes import REPAIRS, Fixed, fix_spec, memory_reports, over_memory
from paradag.passes.validation.fixes._faults import as_compiled, as_written
from paradag.passes.validation.fixes._search import CHAIN_REPAIRS
from paradag.tests.passes.validation.cases import DENSE, MOE, load
from paradag.tests.passes.validation.test_strategy import BOTH, FP8, MOE_FP8

EXAMPLES = Path(__file__).resolve().parents[3] / "ir_examples"
WIDE = DENSE.replace("heads 16", "heads 24", 1)

# code, strategy, text before and after, other parts of the file
CASES = [
    ("PD011", "tp 2 { layers 4 4 }", "tp 2 { layers 4 4 }", "tp 2", {}),
    ("PD011", "pp 2 -> tp 2 { layers 5 3 }", "pp 2 -> tp 2 { layers 5 3 }", "pp 2 { layers 5 3 } -> tp 2", {}),
    ("PD201", "tpp 2", "tpp 2", "tp 2", {}),
    ("PD201", "PP 2 -> tp 2", "PP 2", "pp 2", {}),
    ("PD201", "pt 2", "pt 2", "tp 2", {}),
    ("PD202", "tp 2 -> pp 2", "tp 2 -> pp 2", "pp 2 -> tp 2", {}),
    ("PD203", "tp 2 -> tp 2", "tp 2 -> tp 2", "tp 2", {}),
    ("PD203", "ep 8 -> ep 8 { etp 2 }", "ep 8 -> ep 8 { etp 2 }", "ep 8 { etp 2 }", {"model": MOE}),
    ("PD204", "strategy decode { sp 2 -> tp 2 }", "sp 2 -> tp 2", "tp 2", {}),
    ("PD205", "ep 6 -> tp 4", "ep 6", "ep 4", {"model": MOE}),
    ("PD205", "tp 4 ranks 6", "ranks 6", "ranks 4", {}),
    ("PD205", "tp 4 ranks 2", "tp 4", "tp 2", {}),
    ("PD206", "sp 3 -> ep 4 -> tp 2 ranks 36", "ranks 36", "ranks 24", {"model": MOE}),
    ("PD207", "dp 3 -> tp 4", "dp 3", "dp 2", {"nodes": "1 of 8"}),
    ("PD207", "pp 2 -> tp 8", "pp 2", "pp 1", {"nodes": "1 of 8"}),
    ("PD207", "dp 2 -> tp 16", "dp 2 -> tp 16", "dp 1 -> tp 8", {"nodes": "1 of 8"}),
    ("PD207", BOTH.format("tp 8 pools separate", "tp 8"), "pools separate", "pools shared", {"nodes": "1 of 8"}),
    ("PD209", "ep 4 -> tp 2", "ep 4 -> tp 2", "tp 2", {}),
    ("PD209", "sp tp", "sp tp", "", {}),
    ("PD211", "tp 3", "tp 3", "tp 2", {}),
    ("PD212", "tp 6", "tp 6", "tp 4", {"model": WIDE}),
    ("PD213", "tp 16", "tp 16", "tp 8", {"model": DENSE.replace("ffn 2048", "ffn 1000")}),
    ("PD213", "ep 4 { etp 3 }", "ep 4 { etp 3 }", "ep 4 { etp 2 }", {"model": MOE}),
    ("PD214", "tp 16", "tp 16", "tp 8", {"model": FP8.replace("ffn 2048", "ffn 1024")}),
    ("PD214", "ep 2 { etp 8 }", "ep 2 { etp 8 }", "ep 2 { etp 4 }", {"model": MOE_FP8}),
    ("PD215", "ep 48", "ep 48", "ep 48 { redundant 32 }", {"model": MOE}),
    ("PD215", "ep 16 { redundant 8 }", "ep 16 { redundant 8 }", "ep 16 { redundant 16 }", {"model": MOE}),
    ("PD216", "pp 9", "pp 9", "pp 8", {}),
    ("PD216", "pp 2 { layers 4 3 }", "pp 2 { layers 4 3 }", "pp 2 { layers 4 4 }", {}),
    ("PD217", "sp 8", "sp 8", "sp 4", {"workload": "batch 1 input 4 tokens"}),
    ("PD217", "sp 8 chunk 64 tokens", "chunk 64 tokens", "chunk 512 tokens", {}),
    ("PD218", "dp 4 microbatches 17", "microbatches 17", "microbatches 16", {}),
    ("PD220", "chunk 63", "chunk 63", "chunk 64", {}),
    ("PD223", "sp 2 kind spiral", "sp 2 kind spiral", "sp 2", {}),
    ("PD223", "tp 2 placement tp sp adp pp tp", "placement tp sp adp pp tp", "placement tp sp adp pp", {}),
    ("PD223", "tp 2 placement warp", "placement warp", "", {}),
    ("PD224", "sp 3 kind ulysses", "sp 3 kind ulysses", "sp 3", {}),
    ("PD224", "sp 6 kind ulysses", "sp 6 kind ulysses", "sp 2 kind ulysses", {}),
    ("PD306", "chunk 1", "chunk 1", "chunk 2", {"workload": "batch 1 input 200000 tokens"}),
]

REJECTED = [
    ("cp 2", {}),
    ("tp 2 -> tp 4", {}),
    ("ep 8 { etp 2 } -> ep 8 { redundant 8 }", {"model": MOE}),
    ("tp 3", {"workload": "input 512 tokens"}),
    ("tp warp", {}),
]


def fix(strategy: str, **options: str) -> Fixed:
    return fix_spec(load(strategy, **options), memory=over_memory(), tidy=True)


@pytest.mark.parametrize(("code", "strategy", "before", "after", "options"), CASES)
def test_repair(code: str, strategy: str, before: str, after: str, options: dict[str, str]) -> None:
    fixed = fix(strategy, **options)
    assert fixed.outcome is Outcome.FIXED
    assert fixed.fixes == (Fix(code, before, after),)
    assert not any(d.is_error for d in check_spec(load_text(fixed.text))[1])


@pytest.mark.parametrize(("code", "strategy", "before", "after", "options"), CASES)
def test_candidates_come_in_the_order_of_preference(
    code: str, strategy: str, before: str, after: str, options: dict[str, str]
) -> None:
    spec = load(strategy, **options).spec
    for phase in (s.phase for s in spec.strategies):
        case = as_written(spec, phase) if code in CHAIN_REPAIRS else as_compiled(spec, phase)
        kinds = [c.kind for c in REPAIRS[code](case)]
        assert kinds == sorted(kinds)


def test_every_repair_has_an_example() -> None:
    assert {c[0] for c in CASES} | {"PD301"} == set(REPAIRS)


@pytest.mark.parametrize(("strategy", "options"), REJECTED)
def test_what_has_no_safe_repair_stays(strategy: str, options: dict[str, str]) -> None:
    loaded = load(strategy, **options)
    fixed = fix_spec(loaded, tidy=True)
    assert fixed.outcome is Outcome.REJECTED and not fixed.fixes
    assert fixed.loaded is loaded and fixed.text == loaded.texts["case.strat"]
    assert any(d.is_error for d in fixed.diagnostics)


def test_one_fault_without_a_repair_leaves_the_others_unrepaired() -> None:
    assert fix("tp 3 -> warp 2").outcome is Outcome.REJECTED


MESSY = """\
model "m" { layers 8 hidden 1024 vocab 1000 ffn 2048   # dense
    attention gqa { heads 16 kv_heads 4 head_dim 64 } }
cluster { accelerator h100_sxm  nodes 1 of 8 }
workload { batch 8\tinput 512 tokens }
strategy prefill {
    # stages first
    pp 3 { layers 3 3 3  # of nine?
    }
      -> ep 4   # experts
      -> tp 3   # tensors
    microbatches\t9
}
strategy   decode { tp 4 -> # inner
                    tp 4 }
"""

CLEAN = """\
model "m" { layers 8 hidden 1024 vocab 1000 ffn 2048   # dense
    attention gqa { heads 16 kv_heads 4 head_dim 64 } }
cluster { accelerator h100_sxm  nodes 1 of 8 }
workload { batch 8\tinput 512 tokens }
strategy prefill {
    # stages first
    pp 3 { layers 2 3 3  # of nine?
    }
      # experts
      -> tp 2   # tensors
    microbatches\t8
}
strategy   decode { tp 4 # inner
                    }
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_comments_and_formatting_stay(newline: str) -> None:
    fixed = fix_spec(load_text(MESSY.replace("\n", newline)), memory=over_memory(), tidy=True)
    assert fixed.text == CLEAN.replace("\n", newline)
    assert {f.rule for f in fixed.fixes} == {"PD209", "PD211", "PD216", "PD218", "PD203"}


def test_a_block_for_both_phases_is_repaired_once() -> None:
    fixed = fix("strategy { sp 2 -> tp 3 }")
    assert fixed.fixes == (Fix("PD211", "tp 3", "tp 2"),)
    assert "strategy { sp 2 -> tp 2 }" in fixed.text
    assert [s.degree("tp") for s in fixed.loaded.spec.strategies] == [2, 2]


def test_a_spec_without_a_text_is_repaired_in_its_canonical_text() -> None:
    spec = load("tp 3").spec
    fixed = fix_spec(LoadedSpec(spec))
    assert fixed.outcome is Outcome.FIXED and "strategy prefill { tp 2 }" in fixed.text
    assert load_text(fixed.text).spec == fixed.loaded.spec


def test_what_was_repaired_is_told_as_a_warning_at_its_place() -> None:
    loaded = load("pp 9 -> tp 3")
    fixed = fix_spec(loaded)
    assert [(str(d.severity), d.code) for d in fixed.repaired] == [
        ("warning", code) for code in ("PD211", "PD213", "PD216")
    ]
    assert fixed.repaired[0].span == loaded.sources["strategy.prefill.tp"]
    assert fixed.repaired[0].help == "repaired: `tp 3` -> `tp 2`"
    assert not any(d.is_error for d in fixed.diagnostics)


def big(strategy: str, batch: int = 8, nodes: str = "1 of 8") -> LoadedSpec:
    text = (EXAMPLES / "llama-3.1-70b-tp8.strat").read_text(encoding="utf-8")
    head = text[: text.index("workload")].replace("nodes 1 of 8", f"nodes {nodes}")
    return load_text(f"{head}workload {{ batch {batch} input 1000 tokens output 200 tokens }}\n{strategy}\n")


def test_over_memory_takes_more_ranks() -> None:
    loaded = big("strategy { tp 1 }")
    fixed = fix_spec(loaded, memory=over_memory())
    (made,) = fixed.fixes
    assert made.rule == "PD301" and made.before == "tp 1"
    assert not over_memory()(fixed.loaded.spec) and over_memory()(loaded.spec) == ("prefill", "decode")


def test_over_memory_on_a_full_cluster_takes_them_from_the_replicas() -> None:
    fixed = fix_spec(big("strategy { dp 8 }"), memory=over_memory())
    (made,) = fixed.fixes
    assert made.before == "dp 8" and made.after.startswith("dp ")
    assert sum(s.degree("dp") * s.degree("tp") * s.degree("pp") <= 8 for s in fixed.loaded.spec.strategies) == 2


def test_less_work_is_proposed_and_done_only_when_asked_for() -> None:
    loaded = big("strategy { tp 8 }", batch=100_000)
    refused = fix_spec(loaded, memory=over_memory())
    assert refused.outcome is Outcome.REJECTED and not refused.fixes
    (proposed,) = refused.proposals
    done = fix_spec(loaded, memory=over_memory(), workload=True)
    assert done.fixes == refused.proposals and done.outcome is Outcome.FIXED
    batch = done.loaded.spec.workload.batch
    assert batch is not None and proposed == Fix("PD301", "batch 100000", f"batch {batch}")
    more = loaded.spec.model_copy(update={"workload": loaded.spec.workload.model_copy(update={"batch": batch + 1})})
    assert over_memory()(more), "the largest batch that fits"


@pytest.mark.parametrize("name", ["llama-3.1-70b-pp2-tp4", "mixtral-8x7b-ep4-tp2", "qwen3-235b-a22b-ep32"])
def test_memory_is_that_of_a_compilation(name: str) -> None:
    path = EXAMPLES / f"{name}.strat"
    compiled = compile_strategy(path)
    reports = memory_reports(check_spec(load_file(path))[0].spec)
    assert reports == {phase: analysis.memory for phase, analysis in compiled.phases.items()}


def test_memory_of_two_layouts_is_that_of_a_compilation() -> None:
    loaded = big("strategy prefill { tp 8 }\nstrategy decode { pp 2 -> tp 4 }")
    compiled = compile_strategy(loaded)
    assert memory_reports(loaded.spec) == {phase: analysis.memory for phase, analysis in compiled.phases.items()}


def test_long_chains_are_left_alone() -> None:
    chain = " -> ".join(["tp 2"] * 2000)
    assert fix(chain).outcome is Outcome.REJECTED


def test_a_file_that_does_not_load_is_not_repaired() -> None:
    with pytest.raises(DiagnosticError):
        load("tp = 2")
