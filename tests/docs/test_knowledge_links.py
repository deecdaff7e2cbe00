"""The knowledge base has its files, its links lead somewhere, its lines are readable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from paradag.compiler.diagnostics import CODES

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "docs" / "knowledge"
FILES = (
    "README.md",
    "01_model_semantics/attention_structure.md",
    "01_model_semantics/kv_cache_semantics.md",
    "01_model_semantics/moe_structure.md",
    "03_inference_phases/prefill_phase.md",
    "03_inference_phases/decode_phase.md",
    "04_parallel_primitives/tensor_parallelism.md",
    "04_parallel_primitives/sequence_parallelism.md",
    "04_parallel_primitives/pipeline_parallelism.md",
    "04_parallel_primitives/expert_parallelism.md",
    "04_parallel_primitives/dp_in_inference.md",
    "05_parallelism_by_module/attention_parallelism.md",
    "05_parallelism_by_module/ffn_parallelism.md",
    "05_parallelism_by_module/moe_parallelism.md",
    "05_parallelism_by_module/embedding_and_lm_head.md",
    "06_execution_and_scheduling/pipeline_scheduling.md",
    "06_execution_and_scheduling/microbatching.md",
    "06_execution_and_scheduling/overlap_compute_communication.md",
    "06_execution_and_scheduling/synchronization_points.md",
    "07_hardware_and_system_constraints/memory_constraints.md",
    "07_hardware_and_system_constraints/interconnect_topology.md",
    "07_hardware_and_system_constraints/latency_vs_throughput.md",
    "07_hardware_and_system_constraints/accelerator_specific_notes.md",
    "08_dag_construction_primitives.md",
    "09_metrics_and_objectives.md",
    "10_common_failure_modes.md",
    "11_dag_validation_and_autofix.md",
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
LONGEST = 120


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Lines outside fenced blocks, with their numbers and without code spans."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`", "", line)


def links(name: str) -> list[str]:
    """Relative links of a file, without their fragments."""
    found = [m[1] for _, line in prose((BASE / name).read_text(encoding="utf-8")) for m in LINK.finditer(line)]
    return [f.split("#")[0] for f in found if "://" not in f and not f.startswith("#")]


def test_the_directory_holds_exactly_the_files_of_the_map() -> None:
    assert {str(p.relative_to(BASE)) for p in BASE.rglob("*.md")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_relative_links_resolve(name: str) -> None:
    missing = [link for link in links(name) if not ((BASE / name).parent / link).is_file()]
    assert not missing


def test_the_entry_point_leads_to_every_other_file() -> None:
    assert set(links("README.md")) == set(FILES) - {"README.md"}


@pytest.mark.parametrize("name", FILES)
def test_lines_are_short_except_in_tables(name: str) -> None:
    lines = (BASE / name).read_text(encoding="utf-8").splitlines()
    long = [n for n, line in enumerate(lines, 1) if len(line) > LONGEST and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_one_title_and_closed_fences(name: str) -> None:
    text = (BASE / name).read_text(encoding="utf-8")
    assert [line for _, line in prose(text) if line.startswith("# ")] == text.splitlines()[:1]
    assert sum(line.startswith("```") for line in text.splitlines()) % 2 == 0


@pytest.mark.parametrize("name", FILES)
def test_tables_have_as_many_cells_in_every_row(name: str) -> None:
    text = (BASE / name).read_text(encoding="utf-8")
    rows = [(n, line.count("|") - line.count(r"\|")) for n, line in prose(text) if line.startswith("|")]
    uneven = [b for (a, cells), (b, others) in pairwise(rows) if b == a + 1 and cells != others]
    assert not uneven


@pytest.mark.parametrize("name", FILES)
def test_codes_that_are_named_exist(name: str) -> None:
    named = set(re.findall(r"\bPD\d{3}\b", (BASE / name).read_text(encoding="utf-8")))
    assert not named - CODES.keys()


def test_every_failure_mode_has_a_rule_or_a_reason() -> None:
    text = (BASE / "10_common_failure_modes.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| F")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [row[0] for row in rows] == [f"F{n:02}" for n in range(1, 48)]
    assert all(row[3] in {"yes", "partly", "no"} and row[4] for row in rows)
    counted = [sum(row[3] == answer for row in rows) for answer in ("yes", "partly", "no")]
    assert "Count: {} yes, {} partly, {} no.".format(*counted) in text
