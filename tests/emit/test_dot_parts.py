"""The small parts of drawings: words, runs of layers, files."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paradag.compiler.diagnostics import DiagnosticError, Severity
from paradag.compiler.emit import render_svg, write_dot
from paradag.compiler.emit._labels import duration, groups_text, number_ranges, quantity, share
from paradag.compiler.emit._plan import periodic_runs
from paradag.tests.emit.builds import compile_phase, term, tiny_spec

SOURCE = "digraph { a -> b }"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "3"),
        (range(8), "0-7"),
        ([4, 0], "0, 4"),
        (range(0, 36, 2), "0, 2, 4, ... 34"),
        ([0, 1, 2, 3, 8, 9], "0-3, 8-9"),
        ([], "none"),
    ],
)
def test_number_ranges(numbers: list[int], text: str) -> None:
    assert number_ranges(numbers) == text


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ([(3,)], "GPU 3"),
        ([tuple(range(8))], "GPUs 0-7"),
        ([(0,), (1,), (2,)], "each of GPUs 0-2"),
        ([(0, 1), (2, 3)], "2 groups of 2: GPUs 0-1, 2-3"),
        ([(0, 4), (1, 5)], "2 groups of 2: GPUs {0, 4}, {1, 5}"),
        ([tuple(range(i, i + 4)) for i in range(0, 320, 4)], "80 groups of 4: GPUs 0-3, 4-7, 8-11, ... 316-319"),
    ],
)
def test_groups(groups: list[tuple[int, ...]], text: str) -> None:
    assert groups_text(groups) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (64, "64 B"), (999.7, "1 kB"), (33_554_432, "33.6 MB"), (2.05e12, "2.05 TB")]
)
def test_quantities(value: float, text: str) -> None:
    assert quantity(value, "B") == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0"), (2.1e-6, "2.1 us"), (9.996e-4, "1 ms"), (0.0698, "69.8 ms"), (1234.0, "1234 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("part", "text"), [(0.314, "31 %"), (0.0996, "10 %"), (0.004, "0.4 %"), (1e-6, "< 0.1 %")])
def test_shares(part: float, text: str) -> None:
    assert share(part) == text


@given(st.text(alphabet="sfd", min_size=1, max_size=80))
def test_runs_cover_the_sequence(kinds: str) -> None:
    runs = periodic_runs(list(kinds))
    assert "".join(kinds[start : start + period] * repeats for start, period, repeats in runs) == kinds
    assert all(period == 1 or repeats > 1 for _, period, repeats in runs)


@pytest.mark.parametrize(
    ("kinds", "runs"),
    [
        ("ddd" + 58 * "m", [(0, 1, 3), (3, 1, 58)]),
        ("sf" * 18, [(0, 2, 18)]),
        ("sfs", [(0, 1, 1), (1, 1, 1), (2, 1, 1)]),
        ("sssssf" * 4 + "ss", [(0, 6, 4), (24, 1, 2)]),
    ],
)
def test_shortest_period_that_covers_most(kinds: str, runs: list[tuple[int, int, int]]) -> None:
    assert periodic_runs(list(kinds)) == runs


def fake_dot(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "dot"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))


def test_without_graphviz_the_source_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    analysis = compile_phase(tiny_spec("decode", term("tp", 2)), "decode").phases["decode"]
    source, found = write_dot(analysis, tmp_path / "a.dot")
    assert not found
    missing = render_svg(source, tmp_path / "a.svg")
    assert missing is not None
    assert (missing.code, missing.severity) == ("PD602", Severity.WARNING)
    assert missing.help is not None and "apt install graphviz" in missing.help
    assert [p.name for p in tmp_path.iterdir()] == ["a.dot"]
    assert (tmp_path / "a.dot").read_text(encoding="utf-8") == source


@pytest.mark.skipif(os.name != "posix", reason="stands a script in for `dot`")
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import sys; sys.exit('syntax error in line 1')", "syntax error in line 1"),
        ("import sys; sys.exit(3)", "status 3"),
        ("import time; time.sleep(60)", "more than 0.5 s"),
    ],
)
def test_a_failing_graphviz_leaves_older_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    fake_dot(tmp_path, body, monkeypatch)
    svg = tmp_path / "a.svg"
    svg.write_text("older")
    begun = time.monotonic()
    found = render_svg(SOURCE, svg, seconds=0.5)
    assert time.monotonic() - begun < 20
    assert found is not None
    assert found.code == "PD604" and said in found.message
    assert svg.read_text() == "older"


@pytest.mark.skipif(os.name != "posix", reason="stands a script in for `dot`")
def test_what_graphviz_gives_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dot(tmp_path, "import sys; print(sys.argv[1:], len(sys.stdin.read()))", monkeypatch)
    assert render_svg(SOURCE, tmp_path / "a.svg", seconds=20) is None
    assert (tmp_path / "a.svg").read_text() == f"['-Tsvg'] {len(SOURCE)}\n"


def test_a_folder_that_is_not_there_is_a_diagnostic(tmp_path: Path) -> None:
    analysis = compile_phase(tiny_spec("decode"), "decode").phases["decode"]
    with pytest.raises(DiagnosticError) as caught:
        write_dot(analysis, tmp_path / "none" / "a.dot")
    assert caught.value.diagnostics[0].code == "PD601"
