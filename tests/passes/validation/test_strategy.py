"""Legality of strategies: for each rule a case that it finds and a case that it lets pass."""

from __future__ import annotations

import pytest

from paradag.compiler.diagnostics import CODES, Severity
from paradag.compiler.spec import LoadedSpec
from paradag.passes.validation import PHASE_RULES, SPEC_RULES, check_spec
from paradag.tests.passes.validation.cases import DENSE, MOE, codes, found, load

FP8 = DENSE.replace("hidden 1024", "hidden 1024 dtype fp8").replace("head_dim 64", "head_dim 128")
MOE_FP8 = MOE.replace("hidden 1024", "hidden 1024 dtype fp8").replace("head_dim 64", "head_dim 128")
MLA = (
    "model dense { layers 8 hidden 1024 vocab 1000 ffn 2048 attention mla "
    "{ heads 16 q_lora 128 kv_lora 64 nope_dim 64 rope_dim 32 v_dim 64 } }"
)
BOTH = "strategy prefill {{ {} }} strategy decode {{ {} }}"

# code, illegal strategy, legal strategy, other parts of the file, text that the finding must hold
RULES = [
    ("PD201", "cp 2", "sp 2", {}, "unknown parallel dimension `cp`"),
    ("PD202", "tp 2 -> pp 2", "pp 2 -> tp 2", {}, "write `pp 2 -> tp 2`"),
    ("PD202", "ep 2 -> sp 2", "sp 2 -> ep 2", {"model": MOE}, "write `sp 2 -> ep 2`"),
    ("PD202", "tp 2 -> ep 2", "ep 2 -> tp 2", {"model": MOE}, "`ep` inside `tp`"),
    ("PD203", "tp 2 -> tp 4", "tp 4", {}, "keep one of `tp 2` and `tp 4`"),
    ("PD204", "strategy decode { sp 2 -> tp 2 }", "strategy decode { tp 2 }", {}, "remove `sp 2`"),
    ("PD205", "ep 6 -> tp 4", "ep 8 -> tp 4", {"model": MOE}, "`ep 4`, `ep 8`, `tp 2`, `ranks 12`"),
    ("PD205", "tp 4 ranks 6", "tp 4 ranks 8", {}, "R a multiple of 4"),
    ("PD205", "tp 4 ranks 2", "tp 2 ranks 2", {}, "2 ranks of a stage"),
    (
        "PD206",
        "sp 3 -> ep 4 -> tp 2 ranks 36",
        "sp 2 -> ep 4 -> tp 2 ranks 36",
        {"model": MOE},
        "no common refinement",
    ),
    ("PD207", "pp 2 -> tp 8", "tp 8", {"nodes": "1 of 8"}, "16 GPUs (pp 2 * 8 ranks of a stage)"),
    (
        "PD207",
        BOTH.format("tp 8 pools separate", "tp 8"),
        BOTH.format("tp 8", "tp 8"),
        {"nodes": "1 of 8"},
        "8 + 8 = 16",
    ),
    ("PD207", "dp 3 -> tp 4", "dp 2 -> tp 4", {"nodes": "1 of 8"}, "`tp 2` or `dp 2` or `nodes 2 of 8`"),
    ("PD208", "tp 4", "dp 2 -> tp 4", {"nodes": "1 of 8"}, "`dp 2`"),
    ("PD209", "ep 4", "tp 4", {}, "no experts"),
    ("PD209", "ep 1 { etp 2 }", "ep 1", {}, "`ep 1 { etp 2 }` on a dense model"),
    ("PD209", "sp tp", "sp tp -> tp 2", {}, "remove `sp tp`"),
    ("PD011", "tp 2 { layers 4 4 }", "pp 2 { layers 4 4 }", {}, "move it to `pp`"),
    ("PD211", "tp 3", "tp 2", {}, "use `tp 2` or `tp 4`"),
    ("PD211", "tp 3", "tp 16", {"model": MLA}, "16 attention heads"),
    ("PD212", "tp 6", "tp 4", {"model": DENSE.replace("heads 16", "heads 24", 1)}, "4 KV heads"),
    ("PD212", "tp 6", "tp 8", {"model": DENSE.replace("heads 16", "heads 24", 1)}, "neither split nor replicated"),
    ("PD213", "tp 16", "tp 8", {"model": DENSE.replace("ffn 2048", "ffn 1000")}, "dense FFN of width 1000"),
    ("PD213", "ep 4 { etp 3 }", "ep 4 { etp 4 }", {"model": MOE}, "use `etp 2` or `etp 4`"),
    ("PD213", "tp 8", "tp 4", {"model": MOE.replace("ffn 512", "ffn 500")}, "expert FFN of width 500"),
    (
        "PD213",
        "ep 8 -> tp 8",
        "ep 8 -> tp 4",
        {"model": MOE.replace("ffn 512", "ffn 500")},
        "shared experts' FFN of width 500",
    ),
    ("PD214", "tp 16", "tp 4", {"model": FP8.replace("ffn 2048", "ffn 1024")}, "64 of the dense FFN's 1024"),
    ("PD214", "tp 4", "tp 2", {"model": FP8.replace("head_dim 128", "head_dim 64")}, "key and value projection"),
    ("PD214", "tp 8", "ep 8 -> tp 4", {"model": MOE_FP8}, "64 of the expert FFN's 512"),
    ("PD214", "ep 2 { etp 8 }", "ep 2 { etp 4 }", {"model": MOE_FP8}, "cuts a block of 128"),
    ("PD215", "ep 48", "ep 32", {"model": MOE}, "`ep 48 { redundant 32 }`"),
    ("PD215", "ep 48", "ep 48 { redundant 32 }", {"model": MOE}, "64 experts"),
    ("PD215", "ep 16 { redundant 8 }", "ep 16 { redundant 16 }", {"model": MOE}, "8 redundant"),
    ("PD216", "pp 9", "pp 8", {}, "9 stages for 8 layers"),
    ("PD216", "pp 2 { layers 4 3 }", "pp 2 { layers 4 4 }", {}, "adds up to 7"),
    ("PD216", "pp 2 { layers 3 3 2 }", "pp 3 { layers 3 3 2 }", {}, "lists 3 stages"),
    ("PD216", "pp 2 { layers 8 0 }", "pp 2", {}, "a stage without layers"),
    ("PD217", "sp 8", "sp 4", {"workload": "batch 1 input 4 tokens"}, "use `sp 4`"),
    ("PD217", "sp 8 chunk 64", "sp 8 chunk 512", {}, "`chunk 512`"),
    ("PD218", "microbatches 65", "microbatches 64", {}, "`microbatches 64`"),
    ("PD218", "dp 4 microbatches 17", "dp 4 microbatches 16", {}, "per replica"),
    ("PD219", "ep 64 microbatches 2", "ep 64", {"model": MOE}, "32 of 64 attention-DP groups"),
    ("PD219", "dp 128", "dp 64", {}, "64 of 128 replicas"),
    ("PD220", "chunk 63", "chunk 64", {}, "`microbatches 2`"),
    ("PD221", "pp 2 { layers 6 2 }", "pp 2 { layers 4 4 }", {}, "write `layers 4 4`"),
    ("PD222", "tp 2 ranks 4", "dp 2 -> tp 2", {}, "`dp 2`"),
    ("PD223", "sp 2 kind spiral", "sp 2 kind allgather", {}, "unknown kind `spiral`"),
    ("PD223", "tp 2 kind ring", "tp 2", {}, "`tp` has no kinds"),
    ("PD223", "tp 2 placement tp sp adp pp tp", "tp 2 placement tp sp adp pp", {}, "`tp` stands twice"),
    ("PD223", "pp 2 -> tp 2 placement tp sp", "pp 2 -> tp 2 placement tp pp", {}, "`pp` is missing"),
    ("PD224", "sp 256 kind ring", "sp 128 kind ring", {"workload": "batch 1 input 4096 tokens"}, "has 255 hops"),
    ("PD224", "sp 3 kind ulysses", "sp 3 kind ring", {}, "do not divide by `sp 3 kind ulysses`"),
    ("PD224", "sp 16 kind ulysses -> tp 4", "sp 4 kind ulysses -> tp 4", {}, "or `sp 16 kind allgather`"),
    ("PD305", "tp 16", "tp 8", {}, "50 GB/s per GPU instead of 450 GB/s"),
    ("PD305", "ep 16", "ep 8", {"model": MOE}, "an EP group of 16 GPUs"),
    ("PD305", "pp 2 -> tp 8 placement tp sp adp pp", "pp 2 -> tp 8", {}, "`tp` is innermost"),
    ("PD306", "chunk 1", "chunk 512", {"workload": "batch 1 input 200000 tokens"}, "200,000 trips"),
    ("PD104", "tp 2", BOTH.format("tp 2", "tp 2"), {}, "decode has no strategy"),
    ("PD225", "ep 1 { redundant 8 }", "ep 8 { redundant 8 }", {"model": MOE}, "remove `redundant 8`"),
    ("PD226", BOTH.format("tp 2 pools separate", "pp 2"), BOTH.format("pp 2", "pp 2"), {}, "2 pipeline stages"),
    ("PD227", BOTH.format("tp 8 pools separate", "tp 2"), BOTH.format("tp 4 pools separate", "tp 2"), {}, "TP 8 and 2"),
    ("PD227", BOTH.format("tp 8 pools separate", "tp 2"), BOTH.format("tp 8", "tp 2"), {}, "`tp 4` in both"),
    ("PD228", "strategy decode { tp 2 }", "strategy prefill { tp 2 }", {"model": MLA}, "held 2 times"),
]

FULL = DENSE.replace("hidden 1024", "hidden 1024 dtype bf16 kv_dtype bf16")
CHIP = '"{}" {{ compute {} TFLOPS bf16 memory 80 GB bandwidth 3 TB/s }} link scale_up {{ bandwidth {} GB/s }}'
OUT = " link scale_out { bandwidth 50 GB/s }"

# code, illegal and legal parts of a file around the strategy `tp 16`
SURROUNDINGS = [
    ("PD102", {"model": FULL.replace("kv_dtype", "weights 1 B kv_dtype")}, {"model": FULL}),
    ("PD103", {"model": FULL.replace("kv_dtype bf16", "")}, {"model": FULL}),
    (
        "PD107",
        {"accelerator": "h100_sxm link scale_up { bandwidth 900 GB/s }"},
        {"accelerator": "h100_sxm link scale_up { bandwidth 450 GB/s }"},
    ),
    ("PD107", {"accelerator": CHIP.format("H100", 9000, 450)}, {"accelerator": CHIP.format("H100", 1979, 450)}),
    ("PD107", {"accelerator": CHIP.format("npu", 99999, 450)}, {"accelerator": CHIP.format("npu", 2000, 450)}),
    ("PD108", {"accelerator": CHIP.format("H100 SXM", 1979, 450)}, {"accelerator": CHIP.format("H100 SXM", 989, 450)}),
    ("PD108", {"accelerator": CHIP.format("H100 SXM", 1979, 450)}, {"accelerator": CHIP.format("npu", 1979, 450)}),
    ("PD109", {"accelerator": CHIP.format("npu", 400, 200)}, {"accelerator": CHIP.format("npu", 400, 200) + OUT}),
    ("PD105", {"workload": "input 512 tokens"}, {"workload": "batch 1 input 512 tokens"}),
    (
        "PD106",
        {"workload": "batch 8 input 4000 tokens output 97 tokens"},
        {"workload": "batch 8 input 4000 tokens output 96 tokens"},
    ),
    ("PD207", {"nodes": "1 of 8"}, {"nodes": "2 of 8"}),
    ("PD208", {"nodes": "3 of 8"}, {"nodes": "any of 8"}),
    ("PD305", {"nodes": "any of 8"}, {"nodes": "any of 4", "accelerator": "gb200_nvl72"}),
]


@pytest.mark.parametrize(("code", "illegal", "legal", "options", "text"), RULES)
def test_rule(code: str, illegal: str, legal: str, options: dict[str, str], text: str) -> None:
    diagnostics = found(illegal, code, **options)
    assert diagnostics
    for d in diagnostics:
        assert d.span is not None and d.expected and d.help
    assert any(text in f"{d.message} {d.expected} {d.help}" for d in diagnostics), diagnostics
    assert code not in codes(legal, **options)


@pytest.mark.parametrize(("code", "illegal", "legal"), SURROUNDINGS)
def test_rule_on_surroundings(code: str, illegal: dict[str, str], legal: dict[str, str]) -> None:
    (diagnostic,) = found("tp 16", code, **illegal)
    assert diagnostic.span is not None and diagnostic.help
    assert code not in codes("tp 16", **legal)


def test_every_rule_has_a_case() -> None:
    packs = {"PD045", "PD046"}  # tests/knowledge/test_packs.py
    tested = {r[0] for r in RULES} | {s[0] for s in SURROUNDINGS} | packs
    assert {r.code for r in (*PHASE_RULES, *SPEC_RULES)} <= tested
    assert tested <= CODES.keys()


def test_all_findings_in_one_run_and_always_the_same() -> None:
    text = "tp 3 -> pp 9 -> warp 2 -> sp 2 kind spiral microbatches 99 placement tp"
    loaded = load(text)
    first = check_spec(loaded)[1]
    assert {"PD201", "PD202", "PD211", "PD216", "PD218", "PD223"} <= {d.code for d in first}
    assert first == check_spec(loaded)[1]


def test_a_block_for_both_phases_tells_a_fault_once() -> None:
    assert len(found("strategy { tp 3 }", "PD211")) == 1
    assert len(found("strategy { pp 2 -> tp 8 }", "PD207", nodes="1 of 8")) == 1


def test_places_are_those_of_the_terms() -> None:
    loaded = load("pp 2 { layers 4 3 } -> tp 3")
    spans = {d.code: d.span for d in check_spec(loaded)[1]}
    assert spans["PD216"] == loaded.sources["strategy.prefill.pp.layers"]
    assert spans["PD211"] == loaded.sources["strategy.prefill.tp"]


def test_without_places_the_phase_is_named() -> None:
    spec = load("strategy { tp 3 }").spec
    messages = [d.message for d in check_spec(LoadedSpec(spec))[1] if d.code == "PD211"]
    assert [m.split(":")[0] for m in messages] == ["prefill", "decode"]


def test_sp_is_dropped_in_decode_and_placement_completed() -> None:
    loaded, diagnostics = check_spec(load("strategy decode { sp 2 -> tp 2 placement tp }"))
    decode = loaded.spec.strategies[0]
    assert [t.name for t in decode.chain] == ["tp"]
    assert decode.placement == ("pp", "adp", "sp", "tp")
    assert not any(d.severity is Severity.ERROR for d in diagnostics)


def test_choices_in_the_help_are_legal() -> None:
    (d,) = found("ep 6 -> tp 4", "PD205", model=MOE)
    assert d.help is not None
    for choice in d.help.split(": ")[1].split(", "):
        name, value = choice.strip("`").split()
        changed = {"ep": "6", "tp": "4", name: value}
        ranks = f"ranks {value}" if name == "ranks" else ""
        found_codes = codes(f"ep {changed['ep']} -> tp {changed['tp']} {ranks}", model=MOE)
        assert "PD205" not in found_codes and "PD206" not in found_codes


def test_degrees_of_one_are_absent() -> None:
    assert not codes("strategy { dp 1 -> pp 1 -> sp 1 -> ep 1 -> tp 1 }") - {"PD103", "PD208"}
    assert not codes("strategy { }") - {"PD103"}


def test_huge_degrees_end_quickly() -> None:
    million = "strategy { dp 1000000 -> pp 1000000 -> sp 1000000 -> ep 1000000 -> tp 1000000 }"
    assert "PD216" in codes(million, model=MOE, nodes="1000000 of 100000")
