"""`paradag check` as a user meets it: kinds of files, formats, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paradag.compiler.cli import app
from paradag.compiler.diagnostics import CODES, Diagnostic, Span
from paradag.compiler.sarif import sarif_log
from paradag.tests.cli.invoke import invoke

CLEAN = """\
model "small" {
    layers 8  hidden 8192  vocab 32000  ffn 28672  dtype bf16  kv_dtype bf16
    attention gqa { heads 64  kv_heads 8  head_dim 128 }
}
cluster { accelerator h100_sxm  nodes 1 of 4 }
workload { batch 32  input 2048 tokens  output 512 tokens }
strategy { tp 4 }
"""
ILLEGAL = CLEAN.replace("tp 4", "tp 3")
DRAWING = 'digraph { a [label="Attention GPU: 0"]; b [label="FFN GPU: 0"]; a -> b; b -> a }'


def run(*arguments: object) -> tuple[int, str, str]:
    return invoke("check", *arguments)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clean.strat").write_text(CLEAN)
    (tmp_path / "illegal.strat").write_text(ILLEGAL)
    (tmp_path / "cycle.dot").write_text(DRAWING)
    return tmp_path


def test_a_clean_file(folder: Path) -> None:
    code, out, err = run("clean.strat")
    assert code == 0 and out == "clean.strat: clean\n" and not err


def test_a_fixable_error_is_an_error_and_nothing_is_changed(folder: Path) -> None:
    code, out, err = run("illegal.strat")
    assert code == 1 and "error[PD211]" in err and "^" in err
    assert out.startswith("illegal.strat: ") and "error" in out
    assert (folder / "illegal.strat").read_text() == ILLEGAL
    assert sorted(p.name for p in folder.iterdir()) == ["clean.strat", "cycle.dot", "illegal.strat"]


def test_warnings_do_not_fail(folder: Path) -> None:
    (folder / "half.strat").write_text(CLEAN.replace("nodes 1 of 4", "nodes 1 of 8"))
    code, out, err = run("half.strat")
    assert code == 0 and "1 warning" in out and "PD208" in err


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["clean.strat"], 0),
        (["clean.strat", "illegal.strat"], 1),
        (["illegal.strat", "clean.strat"], 1),
        (["illegal.strat", "missing.strat"], 2),
        (["cycle.dot"], 1),
        (["missing.dot", "clean.strat"], 2),
        (["missing.json"], 2),
        (["missing.md"], 2),
    ],
)
@pytest.mark.parametrize("output", ["text", "json", "sarif"])
def test_exit_code_is_the_highest(folder: Path, files: list[str], expected: int, output: str) -> None:
    code, out, err = run(*files, "--format", output)
    assert code == expected
    if output != "text":
        assert not err and json.loads(out)
    assert "Traceback" not in err


def test_json_is_one_document_for_all_files(folder: Path) -> None:
    code, out, _ = run("illegal.strat", "clean.strat", "cycle.dot", "--format", "json")
    document = json.loads(out)
    assert code == 1 and document["status"] == "REJECTED"
    assert {d["file"] for d in document["diagnostics"]} == {"illegal.strat", "cycle.dot"}
    assert all(
        set(d) == {"code", "severity", "message", "file", "line", "column", "help"} for d in document["diagnostics"]
    )
    heads = next(d for d in document["diagnostics"] if d["code"] == "PD211")
    assert (heads["line"], heads["column"]) == (7, 12)


def test_a_syntax_error_and_a_binary_file(folder: Path) -> None:
    (folder / "bad.strat").write_text("model {")
    (folder / "binary.strat").write_bytes(b"\x00\x01")
    assert run("bad.strat")[0] == 1
    assert run("bad.strat", "binary.strat")[0] == 2


def test_condition_files_are_told_apart(folder: Path) -> None:
    (folder / "plan.md").write_text("* **Model**: tiny\n")
    code, _, err = run("plan.md")
    assert code == 1 and "plan.md:1:1: error[PD013]: the condition does not give the number of layers" in err


def test_a_strategy_file_of_another_tool(folder: Path) -> None:
    (folder / "other.json").write_text('{"strategy": "TP 8", ')
    code, _, err = run("other.json")
    assert code == 1 and "other.json" in err


@pytest.fixture
def document(folder: Path) -> Path:
    result = CliRunner().invoke(app, ["compile", "clean.strat", "--emit", "json", "-o", "out"])
    assert result.exit_code == 0
    return folder / "out" / "clean.prefill.json"


def test_a_graph_of_ours_is_clean(document: Path) -> None:
    code, out, err = run(document)
    assert code == 0 and out.endswith(": clean\n") and not err


def test_a_damaged_graph_of_ours_is_found(document: Path) -> None:
    content = json.loads(document.read_text())
    content["edges"][0]["target"] = 10**8
    document.write_text(json.dumps(content))
    code, _, err = run(document)
    assert code == 1 and f"{document}:1:1: error" in err


def test_a_graph_of_ours_that_lost_its_sense_is_found(document: Path) -> None:
    content = json.loads(document.read_text())
    reduced = [n for n in content["nodes"] if n["op"] == "AllReduce"]
    for node in reduced:
        node["op"], node["devices"] = "AllGather", node["devices"][:1]
    document.write_text(json.dumps(content))
    code, _, err = run(document)
    assert code == 1 and "error[PD4" in err


def test_a_graph_of_ours_with_an_illegal_strategy_is_found(document: Path) -> None:
    content = json.loads(document.read_text())
    content["strategy"]["chain"][0]["degree"] = 3
    document.write_text(json.dumps(content))
    code, _, err = run(document)
    assert code == 1 and "PD211" in err


def test_a_rejected_graph_of_ours_tells_why(folder: Path) -> None:
    CliRunner().invoke(app, ["compile", "illegal.strat", "--no-fix", "--emit", "json", "-o", "out"])
    code, _, err = run("out/illegal.decode.json")
    assert code == 1 and "PD211" in err


# --- SARIF: what its schema asks for, as far as we write it (sarif-v2.1.0, sections 3.13 to 3.30)


def sarif(*files: object) -> dict[str, Any]:
    document = json.loads(run(*files, "--format", "sarif")[1])
    assert isinstance(document, dict)
    return document


def check_sarif(document: dict[str, Any]) -> list[dict[str, Any]]:
    assert document["version"] == "2.1.0" and document["$schema"].endswith("sarif-schema-2.1.0.json")
    (run_,) = document["runs"]
    driver = run_["tool"]["driver"]
    assert driver["name"] == "paradag" and driver["version"]
    ids = [r["id"] for r in driver["rules"]]
    assert len(set(ids)) == len(ids)
    for rule in driver["rules"]:
        assert rule["id"] in CODES
        assert rule["shortDescription"]["text"] and rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
    for result in run_["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note") and result["message"]["text"]
        for location in result["locations"]:
            place = location["physicalLocation"]
            assert place["artifactLocation"]["uri"] and "\\" not in place["artifactLocation"]["uri"]
            region = place["region"]
            assert all(isinstance(region[k], int) and region[k] >= 1 for k in region)
            assert (region["startLine"], region["startColumn"]) <= (region["endLine"], region["endColumn"])
    results = run_["results"]
    assert isinstance(results, list)
    return results


def test_sarif_of_clean_and_illegal_files(folder: Path) -> None:
    document = sarif("clean.strat", "illegal.strat", "cycle.dot")
    results = check_sarif(document)
    heads = next(r for r in results if r["ruleId"] == "PD211")
    place = heads["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "illegal.strat"
    assert place["region"] == {"startLine": 7, "startColumn": 12, "endLine": 7, "endColumn": 16}
    assert "Help: use `tp 2`" in heads["message"]["text"]
    assert document["runs"][0]["invocations"] == [{"executionSuccessful": True, "exitCode": 1}]
    assert check_sarif(sarif("clean.strat")) == []


def test_sarif_of_an_unreadable_file(folder: Path) -> None:
    document = sarif("missing.strat")
    assert check_sarif(document)[0]["ruleId"] == "PD001"
    assert document["runs"][0]["invocations"] == [{"executionSuccessful": False, "exitCode": 2}]


@pytest.mark.parametrize(
    ("file", "uri"),
    [("a b/x#1.strat", "a%20b/x%231.strat"), ("./x.strat", "x.strat"), ("/tmp/x y.strat", "file:///tmp/x%20y.strat")],
)
def test_sarif_names_files_by_uri(file: str, uri: str) -> None:
    log = sarif_log([Diagnostic("PD211", "m", Span(file, 1, 1, 1, 2))], [file], version="1", exit_code=1)
    (result,) = log["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri
