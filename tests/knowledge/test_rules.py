"""Every code has a rule section, every rule a check, and its failing example breaks that rule alone."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from paradag.compiler.diagnostics import CODES, Severity
from paradag.compiler.knowledge import Applies, MalformedRule, nearest_codes, rules
from paradag.passes.validation import PHASE_RULES, SPEC_RULES
from paradag.passes.validation._advice_rules import ADVICE_RULES
from paradag.passes.validation._graph_rules import GRAPH_RULES
from paradag.passes.validation.fixes._search import REPAIRS
from paradag.passes.validation.flat import FLAT_RULES
from paradag.tests.knowledge.situations import ROOT, changed, findings

RULES = rules()
RANK = {Severity.ERROR: 2, Severity.WARNING: 1, Severity.NOTE: 0}


@cache
def codes_of_the_source() -> dict[str, set[str]]:
    """Codes that stand as strings in the source (documentation and the table of codes left out), with their files."""
    found: dict[str, set[str]] = {}
    for folder in ("compiler", "grammar", "passes"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name == "_codes.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and re.fullmatch(r"PD\d{3}", str(node.value)):
                    found.setdefault(str(node.value), set()).add(str(path.relative_to(ROOT)))
    return found


def test_codes_are_those_of_the_rules() -> None:
    assert list(CODES) == sorted(CODES) == list(RULES)
    assert {c: (i.title, i.severity) for c, i in CODES.items()} == {
        c: (r.title, str(r.severity)) for c, r in RULES.items()
    }


def test_nothing_is_read_before_a_code_is_asked_for() -> None:
    program = """
from paradag.compiler.cli import main
from paradag.compiler.diagnostics._sections import rule_sections
try:
    main(["--version"])
except SystemExit:
    assert rule_sections.cache_info().currsize == 0
    from paradag.compiler.diagnostics import Diagnostic
    Diagnostic("PD211", "text")
    assert rule_sections.cache_info().currsize == 1
    print("read late")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("read late\n"), done.stderr


def test_every_rule_has_a_check() -> None:
    assert not set(RULES) - codes_of_the_source().keys()


def test_every_check_has_a_rule() -> None:
    assert not codes_of_the_source().keys() - RULES.keys()


def test_tables_bind_rules_to_functions_of_their_kind() -> None:
    in_tables = {r.code for r in (*PHASE_RULES, *SPEC_RULES)}
    assert all(RULES[c].applies in {Applies.STRATEGY, Applies.SPEC, Applies.INPUT} for c in in_tables)
    assert all(RULES[c].applies is Applies.GRAPH for c in GRAPH_RULES)
    assert all(RULES[c].applies in {Applies.GRAPH, Applies.FLAT} for c, _ in FLAT_RULES)
    assert all(RULES[r.code].applies is Applies.RUN for r in ADVICE_RULES)


def test_fixes_are_announced_where_they_are_made() -> None:
    """On strategies exactly the repairs that exist; on graphs at least those that a repair can be listed under."""
    asked = {Applies.INPUT, Applies.SPEC, Applies.STRATEGY, Applies.RUN}
    assert {c for c, r in RULES.items() if r.fixes and r.applies in asked} == set(REPAIRS)
    text = (ROOT / "passes" / "validation" / "_changes.py").read_text(encoding="utf-8")
    listed = set(re.findall(r"PD\d{3}", text))
    assert not {c for c in listed if not RULES[c].fixes}
    assert not {c for c, r in RULES.items() if r.fixes and r.applies in {Applies.FLAT, Applies.DRAWING}}


@pytest.mark.parametrize("code", RULES)
def test_a_rule_says_what_it_must(code: str) -> None:
    body = RULES[code].body
    statement = body.split("\n\n")[0]
    assert statement.endswith(".") and "```" not in statement
    for part in ("Why", "Detection", "Fix"):
        assert f"**{part}.**" in body, part
    assert RULES[code].examples


@pytest.mark.parametrize("code", RULES)
def test_the_failing_example_breaks_its_rule_alone(code: str, tmp_path: Path) -> None:
    rule = RULES[code]
    for number, example in enumerate(rule.examples):
        folder = tmp_path / str(number)
        folder.mkdir()
        if "ir_examples" in example.text:
            shutil.copytree(ROOT / "ir_examples", folder / "ir_examples", ignore=shutil.ignore_patterns("printed"))
        found = findings(example, folder, against_logical=code == "PD414")
        heard = {c for c, severity in found if RANK[severity] >= RANK[rule.severity]}
        assert heard == {code, *example.also}, sorted(found)


def test_reading_all_headers_is_quick() -> None:
    from time import perf_counter

    from paradag.compiler.diagnostics._sections import rule_sections

    times = []
    for _ in range(5):
        rule_sections.cache_clear()
        start = perf_counter()
        rule_sections()
        times.append(perf_counter() - start)
    assert min(times) < 0.05, "10 ms on an idle machine; a busy one may take longer"


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("severity: error\nstage: legality\napplies: strategy", "missing key `fix`"),
        ("severity: error\nstage: legality\napplies: strategy\nfix: none\ncolour: red", "unknown key `colour`"),
        ("severity: fatal\nstage: legality\napplies: strategy\nfix: none", "`fatal` is none of"),
        ("severity: error\nstage: legality\napplies: strategy\nfix: insert, pray", "`pray` is none of"),
    ],
)
def test_a_malformed_header_is_refused(tmp_path: Path, header: str, complaint: str) -> None:
    (tmp_path / "a.md").write_text(f"# A\n\n### PD999 fault\n\n```rule\n{header}\n```\n\nText.\n")
    with pytest.raises(MalformedRule, match=complaint):
        rules(tmp_path)


def test_a_code_given_twice_is_refused(tmp_path: Path) -> None:
    section = "### PD999 fault\n\n```rule\nseverity: error\nstage: input\napplies: input\nfix: none\n```\n\nText.\n"
    (tmp_path / "a.md").write_text(section)
    (tmp_path / "b.md").write_text(section)
    with pytest.raises(MalformedRule, match=r"PD999 stands in a\.md and in b\.md"):
        rules(tmp_path)


def test_nearest_codes() -> None:
    assert nearest_codes("PD210") == ["PD209", "PD211", "PD208"]
    assert "PD211" in nearest_codes("heads")
    assert nearest_codes("PD" + "9" * 500)
    assert nearest_codes("") == []


def test_a_change_must_fit_its_base() -> None:
    assert changed("a b\nc\n", "- b\n- c\n+ d") == "a d\n"
    with pytest.raises(AssertionError, match="stands 2 times"):
        changed("a a", "- a\n+ b")
