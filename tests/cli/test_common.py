"""Reports and exit codes that all commands share."""

from __future__ import annotations

import json

import pytest
import typer

from paradag.compiler.cli import main
from paradag.compiler.cli._common import OutputFormat, exit_code, report, reporting
from paradag.compiler.diagnostics import Diagnostic, DiagnosticError, Span

WRONG = Diagnostic("PD016", "no model is called 'x'", Span("a.strat", 3, 7, 3, 8), help="did you mean y?")
MISSING = Diagnostic("PD001", "a.strat does not exist")
WARNING = Diagnostic("PD208", "2 GPUs are left unused")


@pytest.mark.parametrize(
    ("diagnostics", "code"), [([], 0), ([WARNING], 0), ([WRONG, WARNING], 1), ([WRONG, MISSING], 2)]
)
def test_exit_codes(diagnostics: list[Diagnostic], code: int) -> None:
    assert exit_code(diagnostics) == code


def test_json_report_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    report([WRONG, WARNING], OutputFormat.JSON)
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert output.err == ""
    assert document["status"] == "REJECTED"
    assert document["diagnostics"][0] == {
        "code": "PD016",
        "severity": "error",
        "message": "no model is called 'x'",
        "file": "a.strat",
        "line": 3,
        "column": 7,
        "help": "did you mean y?",
    }
    assert document["diagnostics"][1]["line"] is None
    report([WARNING], OutputFormat.JSON)
    assert json.loads(capsys.readouterr().out)["status"] == "VALID"


def test_text_report_goes_to_standard_error_with_the_source_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, reporting(OutputFormat.TEXT, {"a.strat": "\n\nmodel x\n"}):
        raise DiagnosticError([WRONG])
    output = capsys.readouterr()
    assert caught.value.exit_code == 1
    assert output.out == ""
    assert "a.strat:3:7: error[PD016]" in output.err
    assert "    3 | model x\n" in output.err


def test_main_reports_what_no_command_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> tuple[str, ...]:
        raise DiagnosticError([MISSING])

    monkeypatch.setattr("paradag.compiler.spec.catalog.model_names", fail)
    with pytest.raises(SystemExit) as caught:
        main(["models"])
    assert caught.value.code == 2
    assert "error[PD001]: a.strat does not exist" in capsys.readouterr().err
