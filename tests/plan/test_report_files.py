"""What `plan` writes: files that `compile` and `check` accept, the same bytes every time, nothing that is not so.

``PARADAG_UPDATE_GOLDENS=1`` rewrites the published schema. One that refuses documents of the version before takes a new
number.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

import paradag
from paradag.compiler.diagnostics import Diagnostic, DiagnosticError
from paradag.compiler.plan import write
from paradag.compiler.plan.report import StrategyDocument, pareto_svg, strategy_document, strategy_schema
from paradag.compiler.plan.report.schema import schema_text
from paradag.compiler.plan.write import STRATEGY_FILES, plan_files, write_files
from paradag.grammar import load_text, print_spec
from paradag.passes.validation.foreign import check_strategy_json
from paradag.tests.cli.invoke import invoke

from .conditions import MOE, condition
from .reports import BOUNDS, CONDITIONS, facts, planned

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "schema" / "paradag-strategy-1.json"
FEASIBLE = ["chosen", "decode_only"]


def files(name: str) -> dict[str, bytes]:
    return plan_files(planned(name), CONDITIONS[name], bounds=BOUNDS, sensitivity=False)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_the_generated_one() -> None:
    if os.environ.get("PARADAG_UPDATE_GOLDENS"):
        SCHEMA_FILE.write_bytes(schema_text())
    assert SCHEMA_FILE.read_bytes() == schema_text()
    assert json.loads(schema_text()) == strategy_schema()


@pytest.mark.parametrize("name", FEASIBLE)
def test_documents_obey_the_schema_and_contradict_nothing(
    name: str, validator: jsonschema.Draft202012Validator
) -> None:
    written = files(name)
    for strategy in planned(name).spec.strategies:
        file = f"{strategy.phase}_strategy.json"
        validator.validate(json.loads(written[file]))
        assert StrategyDocument.model_validate_json(written[file]) == strategy_document(facts(name), strategy.phase)
        found = check_strategy_json(written[file].decode(), file)
        assert [d.code for d in found] == ["PD756"], found


@pytest.mark.parametrize(("key", "value"), [("gpus", 0), ("status", "REJECTED"), ("seconds", 1.0), ("degrees", {})])
def test_the_schema_refuses_other_documents(
    key: str, value: object, validator: jsonschema.Draft202012Validator
) -> None:
    document: dict[str, Any] = json.loads(files("chosen")["decode_strategy.json"])
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**document, key: value})


def test_a_document_states_the_law() -> None:
    for phase, told in facts("chosen").phases.items():
        document = strategy_document(facts("chosen"), phase)
        d = document.degrees
        assert document.gpus_per_stage == d.adp * d.sp * d.tp == d.edp * d.ep * d.etp
        assert document.gpus == d.dp * d.pp * document.gpus_per_stage
        assert sum(document.layers_per_stage) == document.model.layers.count
        assert document.stages[0].memory.total == round(told.memory.stages[0].total)


@pytest.mark.parametrize("name", FEASIBLE)
def test_strategy_files_compile_as_planned(name: str) -> None:
    plan, written = planned(name), files(name)
    assert plan.chosen is not None
    numbers = plan.chosen.numbers
    for strategy in plan.chosen.strategies:
        text = written[f"{strategy.phase}.strat"].decode()
        assert print_spec(load_text(text).spec) == text
        compiled = paradag.compile(text, fix=False)
        assert str(compiled.status) == "VALID"
        analysis = compiled.phases[strategy.phase]
        latency = numbers.ttft_s if strategy.phase == "prefill" else numbers.tpot_s
        assert analysis.latency == pytest.approx(latency, rel=1e-9)
        assert analysis.graph.mesh.gpus == numbers.gpus_by_phase[strategy.phase]
        assert analysis.memory.fullest.total == pytest.approx(numbers.memory_bytes[strategy.phase], rel=1e-9)


def test_the_same_question_gives_the_same_bytes() -> None:
    loaded = condition(MOE, gpus="1 of 2")
    first, second = (
        plan_files(paradag.plan(loaded, bounds=BOUNDS), loaded, bounds=BOUNDS, sensitivity=False) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("name", ["infeasible", "too_large"])
def test_nothing_claims_to_be_valid_without_a_choice(name: str, tmp_path: Path) -> None:
    for stale in STRATEGY_FILES:
        (tmp_path / stale).write_text("of an earlier plan")
    (tmp_path / "other.strat").write_text("somebody's")
    paths = write_files(files(name), tmp_path)
    assert [p.name for p in paths] == ["parallel_strategy.md", "pareto.svg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.strat", "parallel_strategy.md", "pareto.svg"]
    with pytest.raises(ValueError, match="no strategy"):
        strategy_document(facts(name), "decode")


@pytest.mark.parametrize(("requirement", "code"), [("ttft <= 1 s", 0), ("tpot <= 1 ns", 1)])
def test_the_command_prints_the_paths_and_nothing_else(requirement: str, code: int, tmp_path: Path) -> None:
    (text,) = condition(
        MOE, gpus="1 of 1", work=f"batch 2 input 32 tokens output 4 tokens require {requirement}"
    ).texts.values()
    (tmp_path / "request.strat").write_text(text)
    out = tmp_path / "made" / "here"
    status, stdout, stderr = invoke("plan", tmp_path / "request.strat", "--save-path", out)
    assert status == code, stderr
    told = json.loads(stdout)
    assert list(told) == ["save_path"]
    assert sorted(told["save_path"]) == sorted(str(p) for p in out.iterdir())
    assert ("tokens/s" in stderr) == (code == 0)
    assert ("PD303" in stderr) == (code == 1)
    assert (out / "decode.strat").exists() == (code == 0)


def test_a_choice_that_breaks_a_rule_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(facts("chosen"), findings=(Diagnostic("PD211", "4 heads over tp 3"),))
    monkeypatch.setattr(write, "gather", lambda *_: broken)
    with pytest.raises(DiagnosticError, match="PD211"):
        files("chosen")
    with pytest.raises(ValueError, match="PD211"):
        strategy_document(broken, "decode")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiagnosticError, match="PD601"):
        write_files({"a": b""}, tmp_path / "file")


@pytest.mark.parametrize("name", CONDITIONS)
def test_the_plot_stands_alone(name: str) -> None:
    plan = planned(name)
    text = pareto_svg(plan).decode()
    assert pareto_svg(plan).decode() == text
    root = ElementTree.fromstring(text)
    assert not [e for e in root.iter() if e.tag.endswith(("script", "image", "use"))]
    assert text.count("http") == text.count("http://www.w3.org/2000/svg")
    assert "<!--" not in text
    dots = [e for e in root.iter() if e.tag.endswith("circle")]
    drawn = {(d.strategies, d.numbers.batch, d.separate) for d in (*plan.pareto, *plan.top)}
    assert len(dots) == len(drawn)
