"""The report is true and reads well: its figures are those of `compile`, its text is the golden one.

``PARADAG_UPDATE_GOLDENS=1`` rewrites the golden report; read the difference before committing it.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paradag
from paradag.compiler.driver import load
from paradag.compiler.plan import PhaseCounts
from paradag.compiler.plan.report import Sensitivity, gather, report_markdown
from paradag.compiler.plan.report._format import folded
from paradag.compiler.spec import LoadedSpec
from paradag.grammar import load_text

from .conditions import MLA, MOE, SLIDING, condition
from .reports import BOUNDS, CONDITIONS, facts, planned

GOLDEN = Path(__file__).parent / "small.parallel_strategy.md"

SECTIONS = [
    "## 1. Environment",
    "## 2. Phases",
    "## 3. Candidates",
    "## 4. Performance",
    "## 5. Selection",
    "## 6. Feasibility",
    "## 7. Mapping to GPUs",
    "## 8. Communication",
    "## 9. Expected latency and throughput",
    "## 10. Assumptions and sensitivity",
]


def test_the_report_is_the_golden_one() -> None:
    text = report_markdown(facts("chosen", sensitivity=True))
    if os.environ.get("PARADAG_UPDATE_GOLDENS"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CONDITIONS)
def test_sections_come_in_their_order(name: str) -> None:
    text = report_markdown(facts(name))
    assert re.findall(r"^## .*$", text, re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("name", CONDITIONS)
def test_tables_are_whole(name: str) -> None:
    """Every row has as many cells as its head; no figure is missing or not a number."""
    width = 0
    for line in report_markdown(facts(name)).splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert cells == width or not cells or not width, line
        width = cells
        assert not re.search(r"\bnan\b|\binf\b|None", line), line


@pytest.mark.parametrize(
    ("model", "gpus", "work"),
    [
        (MLA, "2 of 4", "batch 6 input 64 tokens output 8 tokens"),
        (SLIDING, "1 of 3", "batch 5 input 40 tokens output 9 tokens"),
    ],
    ids=["mla", "sliding"],
)
def test_the_facts_of_every_deployment_are_those_of_compile(model: str, gpus: str, work: str) -> None:
    loaded = condition(model, gpus=gpus, work=work)
    plan = paradag.plan(loaded, bounds=BOUNDS, top=3)
    for deployment in plan.top:
        found = gather(replace(plan, chosen=deployment), loaded, Sensitivity())
        compiled = paradag.compile(LoadedSpec(found.spec), fix=False)
        assert str(compiled.status) == "VALID"
        for phase, analysis in compiled.phases.items():
            told = found.phases[phase]
            assert told.latency == pytest.approx(analysis.latency, rel=1e-12)
            assert told.memory == analysis.memory
            assert told.traffic == analysis.traffic


def test_a_choice_passes_every_line_of_the_checklist() -> None:
    text = report_markdown(facts("chosen"))
    assert text.count("- [x] PD") > 30
    assert "- [ ]" not in text


def test_an_infeasible_request_is_told_what_binds() -> None:
    plan, text = planned("infeasible"), report_markdown(facts("infeasible"))
    assert not plan.feasible
    miss = plan.top[0].misses[0]
    assert f"What binds is the TPOT: relaxed by a factor of {miss.factor:.3g}" in text
    unmet = [line for line in text.splitlines() if line.startswith("- [ ]")]
    assert len(unmet) == 1 and unmet[0].startswith("- [ ] PD303 TPOT")
    assert "No strategy files are written" in text


CUT = "strategy prefill { dp 2 -> sp 2 -> ep 4 }  strategy decode { pp 2 -> ep 2 -> tp 4  pools separate }"


def test_the_mapping_of_a_cut_model() -> None:
    """Who holds what of prefill R 4 = sp 2 x adp 2 = ep 4, and decode R 4 = tp 4 = edp 2 x ep 2, worked out by hand."""
    text = deployed(CUT)
    prefill, decode = text.split("### Prefill\n")[1].split("### Decode\n")
    assert "GPUs 0-7: 2 x 1 x 4 (replicas x stages x GPUs of a stage)." in prefill
    assert rows(prefill, "| experts |") == [["0", "1", "0"], ["1", "1", "1"], ["2", "1", "2"], ["3", "1", "3"]]
    assert rows(prefill, "| request group |") == [
        ["0", "0", "0-1", "0"], ["0", "1", "0-1", "1"], ["1", "0", "0-1", "2"], ["1", "1", "0-1", "3"],
    ]  # fmt: skip
    assert "GPUs 8-15: 1 x 2 x 4 (replicas x stages x GPUs of a stage)." in decode
    layers = [row[:4] for row in rows(decode, "| stage |")]
    assert layers == [["0", "0 (1)", "embedding", "8-11"], ["1", "1 (1)", "LM head", "12-15"]]
    assert rows(decode, "| experts |") == [["0-1", "2", "8, 10"], ["2-3", "2", "9, 11"]]
    # two KV heads over four ranks: each on two of them
    assert rows(decode, "| request group |") == [["all", "all", "0", "8-9"], ["all", "all", "1", "10-11"]]
    assert "GPUs 0-7 send" in decode


def deployed(strategies: str) -> str:
    """The report as it would be with given strategies."""
    loaded = condition(MOE, gpus="4 of 4", work="batch 8 input 64 tokens output 8 tokens")
    chosen = planned("chosen").chosen
    assert chosen is not None
    (text,) = loaded.texts.values()
    spec = load_text(text + strategies).spec
    deployment = replace(chosen, strategies=spec.strategies, separate=True)
    plan = replace(planned("chosen"), spec=spec, chosen=deployment)
    return report_markdown(gather(plan, loaded, Sensitivity()))


def rows(text: str, head: str) -> list[list[str]]:
    """Cells of the table whose head begins so."""
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def unfolded(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(", "):
        ends, _, step = part.partition(" by ")
        low, _, high = ends.partition("-")
        found += range(int(low), int(high or low) + 1, int(step or 1))
    return found


@given(st.sets(st.integers(0, 300), min_size=1))
def test_ranges_read_back(numbers: set[int]) -> None:
    assert unfolded(folded(numbers)) == sorted(numbers)


def test_ranges_are_short() -> None:
    assert folded(range(8)) == "0-7"
    assert folded([0, 8, 16, 24]) == "0-24 by 8"
    assert folded([0, 1, 2, 5, 9]) == "0-2, 5, 9"
    assert folded([]) == "none"


PACK = """[constraints.small_tp]
require = "tp <= 2"
message = "TP of two at most"
"""


def test_a_knowledge_pack_is_cited(tmp_path: Path) -> None:
    (tmp_path / "pack.toml").write_text(PACK)
    loaded = load(CONDITIONS["chosen"], knowledge=tmp_path / "pack.toml")
    assert loaded.spec.pack is not None
    (constraint,) = loaded.spec.pack.constraints
    counts = PhaseCounts(10, {constraint.cite: 4}, evaluated=6)
    plan = replace(planned("chosen"), counts={"decode": counts})
    text = report_markdown(gather(plan, loaded, Sensitivity()))
    rule = "constraints.small_tp: TP of two at most (`tp <= 2`)"
    assert f"| {constraint.cite} | {rule} |" in text
    assert f"| decode | {constraint.cite} | eliminated: {rule} | 4 |" in text
