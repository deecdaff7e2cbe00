"""`paradag verify` as a user meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paradag
from paradag.compiler.ir.ops.elementwise import Activation
from paradag.tests.cli.invoke import invoke

SPEC = """
model "tiny" {
    layers 2  hidden 16  vocab 40  ffn 24
    attention gqa { heads 8  kv_heads 4  head_dim 4 }
}
cluster { accelerator h100_sxm  nodes 1 of 8 }
workload { batch 4  input 6 tokens  output 4 tokens }
strategy { pp 2 -> tp 2 }
"""


def run(*arguments: str) -> tuple[int, str, str]:
    return invoke("verify", *arguments)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.strat"
    path.write_text(SPEC)
    return path


def test_json_is_one_document(source: Path) -> None:
    code, out, err = run(str(source), "--format", "json", "--steps", "5")
    document = json.loads(out)
    assert (code, err, document["equal"], document["name"]) == (0, "", True, "tiny")
    assert set(document["phases"]) == {"prefill", "decode"}
    decode = document["phases"]["decode"]
    assert 0 < decode["max_error"] < 1e-12 and decode["steps"] == 5 and decode["ranks"] == 4
    assert decode["ops"] == 2 * decode["calls"]
    assert set(decode["bytes"]) == {"AllReduce", "AllGather", "Send"} and min(decode["bytes"].values()) > 0
    assert all(row["sent"] == row["charged"] and row["agrees"] for row in decode["communication"])


def test_text_says_what_was_shrunk_and_found(source: Path) -> None:
    code, out, _ = run(str(source))
    assert code == 0
    assert "shrunk: workload.output 4 -> 1" in out
    assert "AllReduce" in out and "exactly" in out and "tiny: EQUAL" in out


def test_exit_code_1_where_not_equal(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def relu(self: Activation, shard: Any, inputs: list[np.ndarray], params: Any) -> list[np.ndarray]:
        return [np.maximum(inputs[0], 0) * inputs[1]]

    monkeypatch.setattr(Activation, "kernel", relu)
    code, out, _ = run(str(source))
    assert code == 1 and "tiny: NOT EQUAL" in out
    code, out, _ = run(str(source), "--format", "json")
    document = json.loads(out)
    assert code == 1 and not document["equal"] and document["phases"]["prefill"]["max_error"] > 1e-3


def test_an_illegal_strategy_is_rejected_before_it_runs(source: Path) -> None:
    source.write_text(SPEC.replace("tp 2", "tp 3"))
    code, out, _ = run(str(source), "--format", "json")
    assert code == 1 and json.loads(out)["status"] == "REJECTED"
    source.write_text(SPEC.replace("strategy { pp 2 -> tp 2 }", ""))
    code, _, err = run(str(source))
    assert code == 1 and "no strategy to verify" in err
    source.write_text(SPEC.replace("strategy {", "strategy prefill {").replace("batch 4", "batch 4  mode decode"))
    code, _, err = run(str(source))
    assert code == 1 and "no strategy to verify" in err


def test_usage_errors(tmp_path: Path, source: Path) -> None:
    assert run(str(tmp_path / "missing.strat"))[0] == 2
    assert run(str(source), "--engine", "abacus")[0] == 2
    assert run(str(source), "--steps", "0")[0] == 2


def test_python_gives_the_same(source: Path) -> None:
    found = paradag.verify(source)
    document = json.loads(run(str(source), "--format", "json")[1])
    assert found.name == "tiny"
    assert {**found.to_json(), "seconds": 0} == {**document, "seconds": 0}


def test_a_model_to_compare_with_needs_the_extra(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "paradag.compiler.run.huggingface", raising=False)
    code, _, err = run(str(source), "--against", "anywhere")
    assert code == 1 and "PD504" in err and "paradag[verify]" in err
