"""Expert loads: both forms read alike, every fault is told with its line, and no text is a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paradag.compiler.diagnostics import Diagnostic, DiagnosticError
from paradag.compiler.driver import load
from paradag.compiler.spec import ModelSpec
from paradag.grammar.expert_load import load_expert_load, read_expert_load

MODEL = """model "m" { layers 3 { dense 1 } hidden 256 vocab 512 ffn 768
    attention gqa { heads 4 kv_heads 2 head_dim 64 } moe { experts 3 top_k 2 ffn 384 } }
cluster { accelerator h100_sxm nodes 1 of 2 } workload { batch 1 input 1 tokens output 1 tokens }"""
ROWS = ["1,0,30", "1,1,10", "1,2,0", "2,0,1", "2,1,1", "2,2,2"]


def model(text: str = MODEL) -> ModelSpec:
    return load(text).spec.model


def csv_of(rows: list[str]) -> str:
    return "\n".join(["layer,expert,load", *rows]) + "\n"


def told(text: str, of: ModelSpec | None = None) -> tuple[Diagnostic, ...]:
    with pytest.raises(DiagnosticError) as caught:
        read_expert_load(text, "load", of or model())
    return caught.value.diagnostics


def test_all_forms_read_alike() -> None:
    forms = [
        csv_of(ROWS),
        "load,expert,layer\n" + "\n".join(",".join(reversed(r.split(","))) for r in reversed(ROWS)),
        json.dumps({"layers": {"2": [1, 1, 2], "1": [30, 10, 0]}}),
        json.dumps([[0.75, 0.25, 0], [0.25, 0.25, 0.5]]),
    ]
    for text in forms:
        found = read_expert_load(text, "load", model())
        assert found.layers == (1, 2)
        np.testing.assert_allclose(found.shares, [[0.75, 0.25, 0], [0.25, 0.25, 0.5]])


def test_a_layer_may_be_left_out() -> None:
    assert read_expert_load(csv_of(ROWS[3:]), "load", model()).layers == (2,)


@pytest.mark.parametrize(
    ("text", "code", "line", "message"),
    [
        ("", "PD034", 1, "the header is `nothing`"),
        ("layer,expert\n1,0\n", "PD034", 1, "the header is `layer,expert`"),
        ("layer,expert,load\n", "PD034", 1, "no rows"),
        (csv_of(["1,0,30,4"]), "PD034", 2, "4 fields"),
        (csv_of(["1,-1,30"]), "PD034", 2, "expert is '-1'"),
        (csv_of(["1,0,1", "1.5,0,30"]), "PD034", 3, "layer is '1.5'"),
        (csv_of(["1,0,nan"]), "PD034", 2, "load is nan"),
        (csv_of(["1,0,-3"]), "PD034", 2, "load is -3"),
        (csv_of(["1,0,1e99"]), "PD034", 2, "load is 1e99"),
        (csv_of(["1,0,1", "1,0,2"]), "PD034", 3, "expert 0 of layer 1 stands twice"),
        (csv_of(['1,0,"3']), "PD034", 2, "no CSV from here on"),
        ("{\n1", "PD034", 2, "no JSON"),
        ("[[1, 2, 3]]", "PD034", 1, "1 lists"),
        ('{"layers": {}}', "PD034", 1, "not an object with `layers` alone"),
        ('{"layers": {"one": []}}', "PD034", 1, "layer 'one'"),
        ('{"layers": {"1": [1, true, 2]}}', "PD034", 1, "load of expert 1 of layer 1 is true"),
        ('{"layers": {"1": [1, NaN, 2]}}', "PD034", 1, "load of expert 1 of layer 1 is NaN"),
        ('{"layers": {"1": 4}}', "PD034", 1, "layer 1 is 4"),
        ("[" * 100_000, "PD034", 1, "nested too deeply"),
        ("[" + "9" * 10_000 + "]", "PD034", 1, ""),
        (csv_of(["0,0,1"]), "PD035", 2, "layer 0 has no experts"),
        (csv_of([*ROWS, "1,3,1"]), "PD035", 8, "layer 1 has a load for expert 3"),
        (csv_of(ROWS[1:]), "PD035", 2, "layer 1 has no load for expert 0"),
        (csv_of(["1,0,0", "1,1,0", "1,2,0"]), "PD035", 2, "layer 1 has no load at all"),
        ('{"layers": {"1": []}}', "PD035", 1, "layer 1 has no load for expert 0 and 2 more"),
    ],
)
def test_faults_are_told_with_their_line(text: str, code: str, line: int, message: str) -> None:
    found = told(text)[0]
    assert found.code == code and found.span is not None and found.span.line == line
    assert message in found.message and found.expected and found.help


def test_many_faults_are_counted() -> None:
    found = told(csv_of([f"1,{n},x" for n in range(50)]))
    assert len(found) == 21 and found[-1].message == "30 more faults of this kind"


def test_a_model_without_experts_has_no_load() -> None:
    dense = model(MODEL.replace("layers 3 { dense 1 }", "layers 3").replace("moe { experts 3 top_k 2 ffn 384 }", ""))
    assert told(csv_of(ROWS), dense)[0].code == "PD035"


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiagnosticError) as caught:
        load_expert_load(tmp_path / "absent.csv", model())
    assert caught.value.diagnostics[0].code == "PD001"


@given(st.one_of(st.text(), st.text(alphabet='[]{}",:0123456789.-e \nlayersxpt'), st.lists(st.text()).map(csv_of)))
def test_any_text_is_a_load_or_told(text: str) -> None:
    try:
        read_expert_load(text, "load", model())
    except DiagnosticError as error:
        assert {d.code for d in error.diagnostics} <= {"PD034", "PD035"}
