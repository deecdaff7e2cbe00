"""The planning tutorial: its commands run, and what it shows is what they print and write.

``PARADAG_UPDATE_GOLDENS=1`` rewrites the outputs in the page; read the difference before committing it.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paradag.compiler.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial-plan.md"
BLOCK = re.compile(
    r"<!-- (?P<kind>file|run|report)(?:: (?P<about>.*?))? -->\n```\w+\n(?P<code>.*?)```\n"
    r"(?:\n```text\n(?P<out>.*?)```\n)?",
    re.DOTALL,
)


def blocks() -> list[re.Match[str]]:
    return list(BLOCK.finditer(PAGE.read_text(encoding="utf-8")))


def commands(block: re.Match[str], folder: Path) -> str:
    """What the lines of a block say on standard error; the line with the seconds of the search left out."""
    said = ""
    for line in block["code"].splitlines():
        if not line.startswith("paradag "):
            subprocess.run(["sh", "-c", line], check=True, cwd=folder)
            continue
        result = CliRunner().invoke(app, line.split()[1:])
        assert result.exit_code == int("exit 1" in (block["about"] or "")), result.output
        said = "".join(s for s in result.stderr.splitlines(keepends=True) if "strategies evaluated in" not in s)
    return said


def excerpt(block: re.Match[str], folder: Path) -> str:
    """The part of a report that a block shows."""
    plan, first, behind = re.fullmatch(r'(\w+), "(.*)", "(.*)"', block["about"]).groups()  # type: ignore[union-attr]
    lines = (folder / plan / "parallel_strategy.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    end = next(i for i, line in enumerate(lines) if i > start and line.startswith(behind))
    return "\n".join(lines[start:end]).strip() + "\n"


def follow(folder: Path, *, slow: bool) -> None:
    """Everything that the page does: the slow commands, or the others."""
    shown: list[tuple[str, str]] = []
    for block in blocks():
        about = block["about"] or ""
        if block["kind"] == "file":
            (folder / about).write_text(block["code"], encoding="utf-8")
        elif block["kind"] == "report" and not slow:
            fence = "```markdown\n"
            shown.append((block[0], block[0].replace(fence + block["code"], fence + excerpt(block, folder))))
        elif block["kind"] == "run" and ("slow" in about) == slow:
            said = commands(block, folder)
            if block["out"] is not None:
                shown.append((block[0], block[0].replace(f"```text\n{block['out']}", f"```text\n{said}")))
    assert shown
    if os.environ.get("PARADAG_UPDATE_GOLDENS"):
        text = PAGE.read_text(encoding="utf-8")
        for before, after in shown:
            text = text.replace(before, after)
        PAGE.write_text(text, encoding="utf-8")
    else:
        for before, after in shown:
            assert before == after


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["short", "whole"])
def test_the_tutorial_shows_what_happens(slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    follow(tmp_path, slow=slow)
