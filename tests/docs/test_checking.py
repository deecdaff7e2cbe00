"""The page on checking: its Python runs, its diff is what the command prints, its codes are those with a repair."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paradag.compiler.cli import app
from paradag.passes.validation.fixes import REPAIRS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "checking.md").read_text(encoding="utf-8")


def python_block() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    return str(code)


def test_the_python_example_runs() -> None:
    exec(compile(python_block(), "docs/checking.md", "exec"), {})


def test_the_diff_is_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r'text = """\n(.*?)"""', python_block(), re.DOTALL)
    Path("model.strat").write_text(text)
    result = CliRunner().invoke(app, ["fix", "model.strat"])
    assert result.exit_code == 0
    shown = PAGE.split("$ paradag fix model.strat\n")[1].split("```")[0]
    assert result.stdout == shown


def test_every_repair_is_told() -> None:
    section = PAGE.split("## Which repair")[1].split("## ")[0]
    named = set(re.findall(r"PD\d{3}", section))
    for first, last in re.findall(r"PD(\d{3}) to PD(\d{3})", section):
        named |= {f"PD{n}" for n in range(int(first), int(last) + 1)}
    assert set(REPAIRS) == named
