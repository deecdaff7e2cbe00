"""`paradag fix`, and repairs in `paradag compile`, as a user meets them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import paradag
from paradag.compiler.cli import app
from paradag.compiler.diagnostics import Outcome
from paradag.tests.cli.invoke import invoke

SPEC = """\
model "tiny" {  # small
    layers 4  hidden 64  vocab 100  ffn 128
    attention gqa { heads 8  kv_heads 4  head_dim 8 }
}
cluster { accelerator h100_sxm  nodes 1 of 8 }
workload { batch 8  input 16 tokens  output 4 tokens }
strategy prefill { tp 3 -> pp 2 }  # to be repaired
strategy decode  { pp 2 -> tp 4 }
"""
REPAIRED = SPEC.replace("tp 3 -> pp 2", "pp 2 -> tp 2")


def run(*arguments: str) -> tuple[int, str, str]:
    return invoke(*arguments)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.strat"
    path.write_text(SPEC)
    return path


@pytest.mark.parametrize("options", [[], ["--diff"]])
def test_prints_a_diff_and_leaves_the_file(source: Path, options: list[str]) -> None:
    code, out, err = run("fix", str(source), *options)
    assert code == 0 and source.read_text() == SPEC
    assert out.startswith(f"--- {source}\n+++ {source}\n@@")
    assert "-strategy prefill { tp 3 -> pp 2 }  # to be repaired" in out
    assert "+strategy prefill { pp 2 -> tp 2 }  # to be repaired" in out
    assert "fixed[PD202]" in err and "fixed[PD211]: `tp 3` -> `tp 2`" in err and "FIXED (2 repairs)" in err


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize("text", [SPEC, SPEC.replace("\n", "\r\n")])
def test_the_diff_is_one_that_patch_applies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, ending: str
) -> None:
    source = tmp_path / "tiny.strat"
    source.write_bytes((text.rstrip() + ending).encode())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["fix", "tiny.strat"])
    assert result.exit_code == 0
    try:
        subprocess.run(["patch", "-p0", "--binary"], input=result.stdout_bytes, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no `patch` on this machine")
    assert source.read_bytes() == (text.replace("tp 3 -> pp 2", "pp 2 -> tp 2").rstrip() + ending).encode()


def test_write_changes_the_file_and_nothing_else_of_it(source: Path) -> None:
    source.chmod(0o640)
    code, out, _ = run("fix", str(source), "--write")
    assert code == 0 and not out
    assert source.read_text() == REPAIRED
    assert stat.S_IMODE(source.stat().st_mode) == 0o640
    assert [p.name for p in source.parent.iterdir()] == ["tiny.strat"]
    code, out, err = run("fix", str(source), "--write")
    assert code == 0 and "VALID" in err and source.read_text() == REPAIRED


def test_write_keeps_links_and_byte_order_marks(source: Path) -> None:
    link = source.with_name("link.strat")
    link.symlink_to(source)
    source.write_bytes(b"\xef\xbb\xbf" + SPEC.encode())
    assert run("fix", str(link), "--write")[0] == 0
    assert link.is_symlink() and source.read_bytes() == b"\xef\xbb\xbf" + REPAIRED.encode()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that cannot be written to")
def test_an_unwritable_file_is_diagnosed(source: Path) -> None:
    source.parent.chmod(0o500)
    try:
        code, _, err = run("fix", str(source), "--write")
    finally:
        source.parent.chmod(0o700)
    assert code == 1 and "PD601" in err and source.read_text() == SPEC


def test_what_cannot_be_repaired_stays_and_exits_1(source: Path) -> None:
    text = SPEC.replace("tp 3", "warp 3")
    source.write_text(text)
    code, out, err = run("fix", str(source), "--write")
    assert code == 1 and not out and source.read_text() == text
    assert "error[PD201]" in err and "REJECTED" in err


def test_a_file_with_syntax_errors_exits_1_and_a_missing_one_2(source: Path) -> None:
    source.write_text("model {")
    assert run("fix", str(source))[0] == 1
    assert run("fix", str(source.with_name("no.strat")))[0] == 2
    assert run("fix", str(source), "--diff", "--write")[0] == 2


def test_over_memory_names_the_batch_that_fits(source: Path) -> None:
    full = SPEC.replace("tp 3 -> pp 2", "tp 8").replace("pp 2 -> tp 4", "tp 8")
    source.write_text(full.replace("batch 8", "batch 800000").replace("input 16", "input 40000"))
    code, out, err = run("fix", str(source))
    assert code == 1 and not out
    assert "error[PD301]" in err and "--fix-workload" in err
    code, out, err = run("fix", str(source), "--fix-workload", "--write")
    assert code == 0 and "fixed[PD301]: `batch 800000`" in err
    assert run("compile", str(source), "--no-fix", "--emit", "", "-o", str(source.parent))[0] == 0


def test_compile_repairs_and_says_so(source: Path, tmp_path: Path) -> None:
    code, out, err = run("compile", str(source), "-o", str(tmp_path / "out"), "--emit", "json")
    assert code == 0 and source.read_text() == SPEC
    assert "tiny: FIXED" in out and "fixed[PD211]: `tp 3` -> `tp 2`" in out
    assert "warning[PD211]" in err and "repaired: `tp 3` -> `tp 2`" in err and "error" not in err
    document = json.loads((tmp_path / "out" / "tiny.prefill.json").read_text())
    assert document["status"] == "FIXED" and document["nodes"]
    assert {"rule": "PD211", "before": "tp 3", "after": "tp 2"} in document["fixes"]
    assert [t["degree"] for t in document["strategy"]["chain"]] == [2, 2]


def test_compile_without_repairs_rejects(source: Path, tmp_path: Path) -> None:
    code, out, err = run("compile", str(source), "-o", str(tmp_path / "out"), "--emit", "json", "--no-fix")
    assert code == 1 and "REJECTED" in out and "error[PD211]" in err
    assert json.loads((tmp_path / "out" / "tiny.prefill.json").read_text())["fixes"] == []


def test_compile_as_json_lists_the_fixes(source: Path, tmp_path: Path) -> None:
    code, out, _ = run("compile", str(source), "-o", str(tmp_path), "--emit", "json", "--format", "json")
    document = json.loads(out)
    assert code == 0 and document["status"] == "FIXED"
    assert [f["rule"] for f in document["fixes"]] == ["PD202", "PD211"]
    assert not [d for d in document["diagnostics"] if d["severity"] == "error"]


def test_a_repaired_compilation_is_that_of_the_repaired_file(source: Path) -> None:
    fixed, clean = paradag.compile(SPEC), paradag.compile(REPAIRED)
    assert fixed.spec == clean.spec
    assert {p: a.latency for p, a in fixed.phases.items()} == {p: a.latency for p, a in clean.phases.items()}


def test_python_gives_the_same(source: Path) -> None:
    fixed = paradag.fix(source)
    assert fixed.outcome is Outcome.FIXED and fixed.text == REPAIRED and source.read_text() == SPEC
    assert paradag.fix(REPAIRED).outcome is Outcome.VALID


def test_a_repair_that_needs_less_work_too_is_told(source: Path) -> None:
    full = SPEC.replace("tp 3 -> pp 2", "tp 3").replace("pp 2 -> tp 4", "tp 8").replace("nodes 1 of 8", "nodes 1 of 4")
    source.write_text(full.replace("batch 8", "batch 800000").replace("input 16", "input 40000"))
    code, _, err = run("fix", str(source))
    assert code == 1 and "let `--fix-workload` write" in err
    assert run("fix", str(source), "--fix-workload", "--write")[0] == 0
    assert run("fix", str(source))[0] == 0
