"""`paradag compile` as a user meets it: files, exit codes, diagnostics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paradag.tests.cli.invoke import invoke

SPEC = """
model "tiny" {
    layers 4  hidden 64  vocab 100  ffn 128
    attention gqa { heads 8  kv_heads 4  head_dim 8 }
}
cluster { accelerator h100_sxm  nodes 1 of 8 }
workload { batch 8  input 16 tokens  output 4 tokens }
strategy prefill { pp 2 -> tp 4 }
strategy decode { pp 2 -> tp 4 }
"""


def run(*arguments: str) -> tuple[int, str, str]:
    return invoke("compile", *arguments)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.strat"
    path.write_text(SPEC)
    return path


def test_writes_one_file_per_phase_and_format(source: Path, tmp_path: Path) -> None:
    code, out, _ = run(str(source), "-o", str(tmp_path / "out"), "--emit", "json,dot,columns,ir")
    assert code == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == sorted(f"tiny.{p}.{f}" for p in ("prefill", "decode") for f in ("json", "dot", "npz", "ir"))
    assert "tiny: VALID" in out and "TTFT" in out and "TPOT" in out
    assert "assumed: network efficiency" in out


def test_a_phase_can_be_picked(source: Path, tmp_path: Path) -> None:
    code, _, _ = run(str(source), "-o", str(tmp_path / "out"), "--emit", "json", "--phase", "decode")
    assert code == 0 and [p.name for p in (tmp_path / "out").iterdir()] == ["tiny.decode.json"]


def test_prints_the_ir_after_each_pass_asked_for(source: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        str(source), "-o", str(tmp_path), "--emit", "ir", "--print-ir-after", "pp", "--print-ir-after", "tp"
    )
    assert code == 0
    after_pp, after_tp = out.index("# decode after pp"), out.index("# decode after tp")
    assert "all_reduce" not in out[after_pp:after_tp] and "all_reduce" in out[after_tp:]


def test_json_output_is_one_document(source: Path, tmp_path: Path) -> None:
    code, out, _ = run(str(source), "-o", str(tmp_path), "--emit", "json", "--format", "json")
    document = json.loads(out)
    assert code == 0 and document["status"] == "VALID"
    assert document["phases"]["decode"]["gpus"] == 8 and document["phases"]["prefill"]["ttft_s"] > 0
    assert sorted(Path(p).name for p in document["outputs"]) == ["tiny.decode.json", "tiny.prefill.json"]


def test_outputs_are_the_same_byte_for_byte(source: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert run(str(source), "-o", str(tmp_path / folder), "--emit", "json,dot,ir")[0] == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_errors_are_all_reported_and_nothing_but_the_header_is_written(source: Path, tmp_path: Path) -> None:
    source.write_text(SPEC.replace("pp 2 -> tp 4 }\nstrategy decode { pp 2", "pp 2 -> tp 3 }\nstrategy decode { xp 2"))
    code, out, err = run(str(source), "-o", str(tmp_path / "out"))
    assert code == 1
    assert "PD211" in err and "PD201" in err and "^" in err, "both errors, with carets"
    assert "REJECTED" in out
    for path in (tmp_path / "out").iterdir():
        document = json.loads(path.read_text())
        assert document["status"] == "REJECTED" and document["nodes"] == document["edges"] == []
        assert {d["code"] for d in document["diagnostics"]} >= {"PD211", "PD201"}


def test_over_memory_is_rejected_with_the_parts(source: Path, tmp_path: Path) -> None:
    source.write_text(SPEC.replace("batch 8", "batch 800000").replace("input 16", "input 4000"))
    code, _, err = run(str(source), "-o", str(tmp_path / "out"), "--phase", "decode")
    assert code == 1 and "PD301" in err and "KV cache" in err and "a batch of" in err


def test_a_phase_without_a_strategy_is_a_note(source: Path, tmp_path: Path) -> None:
    source.write_text(SPEC.replace("strategy decode { pp 2 -> tp 4 }", ""))
    code, _, err = run(str(source), "-o", str(tmp_path / "out"), "--emit", "json")
    assert code == 0 and "PD104" in err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny.prefill.json"]


@pytest.mark.parametrize(
    ("content", "exit_code", "code"),
    [(b"", 1, "PD004"), (b"\x00\x01\x02", 2, "PD003"), (b"\xff\xfe strategy", 2, "PD003"), (b"model {", 1, "PD0")],
)
def test_bad_files_end_with_a_diagnostic(source: Path, content: bytes, exit_code: int, code: str) -> None:
    source.write_bytes(content)
    result, out, err = run(str(source))
    assert result == exit_code and code in err and not out


def test_a_missing_file_is_usage(tmp_path: Path) -> None:
    code, _, err = run(str(tmp_path / "no.strat"))
    assert code == 2 and "PD001" in err


def test_errors_as_json(tmp_path: Path) -> None:
    code, out, _ = run(str(tmp_path / "no.strat"), "--format", "json")
    document = json.loads(out)
    assert code == 2 and document["diagnostics"][0]["code"] == "PD001"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--emit", "json,gif"], "PD223"),
        (["--expand", "everything"], "PD223"),
        (["--pass", "./nothing.py:X"], "PD501"),
        (["--pass", "unknown-pass"], "PD501"),
        (["--pass", "@after="], "PD50"),
        (["--print-ir-after", "xp"], "PD501"),
        (["--steps", "0"], "PD015"),
        (["--steps", "1000000000"], "PD015"),
    ],
)
def test_bad_options_are_diagnosed(source: Path, tmp_path: Path, options: list[str], code: str) -> None:
    result, _, err = run(str(source), "-o", str(tmp_path / "out"), *options)
    assert result == 1 and code in err


def test_an_output_folder_that_is_a_file_is_diagnosed(source: Path) -> None:
    code, _, err = run(str(source), "-o", str(source))
    assert code == 1 and "PD601" in err


def test_no_half_written_files_where_writing_fails(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "tiny.prefill.json").mkdir(parents=True)
    code, _, err = run(str(source), "-o", str(folder), "--emit", "json")
    assert code == 1 and "PD601" in err
    assert not [p for p in folder.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.parametrize("change", [("--steps", "100000"), ("microbatches 8", "microbatches 90000")])
def test_a_graph_that_would_not_fit_in_memory_is_refused(source: Path, tmp_path: Path, change: tuple[str, str]) -> None:
    text = SPEC.replace("layers 4", "layers 400").replace("batch 8", "batch 100000")
    if change[0].startswith("--"):
        source.write_text(text)
        code, _, err = run(str(source), "-o", str(tmp_path / "out"), *change)
    else:
        source.write_text(text.replace("tp 4 }", f"tp 4 {change[1]} }}"))
        code, _, err = run(str(source), "-o", str(tmp_path / "out"))
    assert code == 1 and "PD306" in err
