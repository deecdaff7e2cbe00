"""``paradag explain`` and ``paradag rules``."""

from __future__ import annotations

import json

import pytest

from paradag.compiler.cli import main
from paradag.compiler.diagnostics import CODES


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


@pytest.mark.parametrize("spelling", ["PD211", "pd211"])
def test_explain_prints_the_whole_section(capsys: pytest.CaptureFixture[str], spelling: str) -> None:
    code, out, _ = run(capsys, "explain", spelling)
    assert code == 0
    assert out.startswith("PD211 heads not divisible\n")
    for part in ("severity: error", "stage: legality", "Why.", "Detection.", "Fix.", "    strategy"):
        assert part in out
    assert "```" not in out and "**" not in out
    assert "05_parallelism_by_module/attention_parallelism.md" in out


def test_an_unknown_code_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "explain", "PD210")
    assert code == 1 and not out
    assert "`PD211` (heads not divisible)" in err


def test_words_are_looked_for_in_titles(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "explain", "inverted nesting")
    assert code == 1 and "`PD202`" in err


def test_rules_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "rules", "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert [r["code"] for r in rows] == sorted(CODES)
    assert all(list(r) == ["code", "title", "severity", "stage", "fix"] for r in rows)
    assert {r["severity"] for r in rows} == {"error", "warning", "note"}


def test_rules_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "rules")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["code", "title", "severity", "stage", "fix"]
    assert sum(line.startswith("PD") for line in lines) == len(CODES)
