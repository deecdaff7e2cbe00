"""Condition files from end to end: a plan, or what is missing, on standard error and as an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paradag.compiler.cli import app

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "conditions"

CHIP = """
- **Computing power of a card**: 400 TFLOPS
- **Memory bandwidth**: 1.8 TB/s
- **Memory capacity**: 64 GB
"""
MODEL = """
- **Layers**: 4-layer, GQA + MoE with 8 experts each
- **Token dimension**: 512
- **Dimension of attention**: 8 heads, dimension of each head 64
- **KV heads**: 4
- **Hidden size of MoE**: 1024
"""
WORK = """
- **Batch size**: 8
- **Sequence in**: 256
- **Sequence out**: 32
"""


def plan(text: str | Path, folder: Path, *options: str) -> tuple[int, list[str], str]:
    """Exit code, names of the files written, and what standard error says."""
    file = text if isinstance(text, Path) else folder / "condition.md"
    if isinstance(text, str):
        file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["plan", str(file), "--save-path", str(folder / "out"), *options])
    assert not isinstance(result.exception, Exception), result.exception
    written = json.loads(result.stdout)["save_path"] if result.stdout else []
    return result.exit_code, [Path(name).name for name in written], result.stderr


def test_as_many_cards_as_wanted_are_searched_within_a_stated_bound(tmp_path: Path) -> None:
    code, written, said = plan("- **GPUs**: ample" + CHIP + MODEL + WORK, tmp_path, "--max-gpus", "2")
    assert code == 0
    assert {"parallel_strategy.md", "prefill.strat", "decode.strat", "pareto.svg"} <= set(written)
    assert "batch 8" in said and "tokens/s" in said


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (MODEL + WORK, "memory per accelerator, memory bandwidth per accelerator, computing power per accelerator"),
        (CHIP + MODEL, "the prompt length"),
        (CHIP + MODEL.replace("- **Token dimension**: 512\n", "") + WORK, "the hidden (token) dimension"),
        (CHIP + MODEL.replace("- **Hidden size of MoE**: 1024\n", "") + WORK, "the hidden size of an expert"),
        (CHIP + WORK, "the number of layers"),
    ],
    ids=["chip", "work", "hidden", "experts", "model"],
)
def test_what_is_missing_is_named(text: str, missing: str, tmp_path: Path) -> None:
    code, written, said = plan(text, tmp_path)
    assert (code, written) == (1, [])
    assert "PD013" in said and missing in said


@pytest.mark.parametrize(
    ("require", "code", "miss"),
    [
        ("- **TTFT**: 1 us", "PD302", "a TTFT of"),
        ("- **TPOT**: 1 us", "PD303", "a TPOT of"),
        ("- **Throughput**: 100000 tokens/ms", "PD304", "a throughput of"),
        ("- **Throughput per GPU**: 10000 tokens/ms", "PD304", "a throughput per GPU of"),
    ],
    ids=["ttft", "tpot", "throughput", "per-gpu"],
)
def test_a_requirement_that_nothing_meets_is_named(require: str, code: str, miss: str, tmp_path: Path) -> None:
    text = "- **GPUs**: 1" + CHIP + MODEL + WORK + require
    exit_code, written, said = plan(text, tmp_path)
    assert exit_code == 1 and code in said and miss in said
    # the closest deployments are told all the same
    assert written == ["parallel_strategy.md", "pareto.svg"]


def test_a_requirement_that_is_not_understood_is_told_before_the_plan(tmp_path: Path) -> None:
    text = "- **GPUs**: 1" + CHIP + MODEL + WORK + "- **Weights**: 235B\n- **Throughput**: 10 tokens/us"
    code, _, said = plan(text, tmp_path)
    assert code == 0 and "warning[PD018]" in said
    report = (tmp_path / "out" / "parallel_strategy.md").read_text()
    second_look = report.split("Lines of the file that ask for a second look:")[1].split("Bottlenecks")[0]
    # the claim of a model that is larger than its dimensions, too
    assert "PD018" in second_look and "PD102" in second_look


def test_throughput_per_gpu_is_a_requirement(tmp_path: Path) -> None:
    """Two GPUs serve more in all and less each: what each has to serve decides."""
    text = "- **GPUs**: 1 node of 2" + CHIP + MODEL + WORK + "- **TTFT**: 10 s\n"
    report = tmp_path / "out" / "parallel_strategy.md"
    assert plan(text, tmp_path)[0] == 0
    assert "**GPUs**: 2" in report.read_text()
    # the figure of one GPU alone, and that of two
    alone, both = (row_of(report, gpus) for gpus in ("1", "2"))
    assert both < alone
    assert plan(text + f"- **Throughput per GPU**: {(alone + both) / 2:.0f} tokens/s", tmp_path)[0] == 0
    assert "**GPUs**: 1" in report.read_text()


def row_of(report: Path, gpus: str) -> float:
    """Most tokens/s per GPU of the deployments on so many GPUs in the report's tables."""
    rows = [[c.strip() for c in line.split("|")] for line in report.read_text().splitlines() if "| shared |" in line]
    return max(float(row[11].replace(",", "")) for row in rows if row[6] == gpus)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(17))
def test_every_real_condition_is_planned_or_told_what_it_lacks(number: int, tmp_path: Path) -> None:
    files = sorted(CORPUS.glob("*.md"))
    if number >= len(files):
        pytest.skip(f"no {number + 1} conditions in {CORPUS}")
    code, written, said = plan(files[number], tmp_path)
    if code == 0:
        assert "parallel_strategy.md" in written and any(name.endswith(".strat") for name in written)
        return
    assert code == 1 and "error[PD" in said
    assert written == ["parallel_strategy.md", "pareto.svg"] or "PD013" in said
