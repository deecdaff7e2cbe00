"""What a rule is asked for has one, or a stated reason why it cannot have one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from paradag.compiler.knowledge import rules

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ITEMS: dict[str, dict[str, list[str] | str]] = tomllib.loads((HERE / "coverage.toml").read_text(encoding="utf-8"))
LIST = ROOT.parent / "shared" / "facts" / "rules.md"


@pytest.mark.parametrize(("item", "covered"), [pair for group in ITEMS.values() for pair in group.items()])
def test_an_item_is_covered_by_rules_or_has_a_reason(item: str, covered: list[str] | str) -> None:
    if isinstance(covered, str):
        assert len(covered.split()) > 5
    else:
        assert covered and set(covered) <= rules().keys()


@pytest.mark.skipif(not LIST.is_file(), reason="the list of required rules is not beside this checkout")
def test_the_items_are_those_of_the_list() -> None:
    """Words of the list that no item uses would be items left out."""
    text = LIST.read_text(encoding="utf-8")
    wanted = re.findall(r"\*\*[^*]+\*\*: (.*?)\n", text)
    words = set(re.findall(r"[a-z]{4,}", " ".join(wanted).lower()))
    ours = set(re.findall(r"[a-z]{4,}", " ".join(item for group in ITEMS.values() for item in group).lower()))
    # fixes and remarks of the list, which are no items
    remarks = """hard reject remove insert prefillend decodestepbegin reorder give ranks attention hint factor that
        does divide degree part what binds much adding slows down neither edge missed requirement used"""
    assert not words - ours - set(remarks.split())


def test_every_failure_mode_names_rules_that_exist() -> None:
    text = (ROOT / "docs" / "knowledge" / "10_common_failure_modes.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if re.match(r"\| F\d\d ", line)]
    assert len(rows) == 47
    for row in rows:
        known, rule = row[4].strip(), row[5]
        assert set(re.findall(r"PD\d{3}", rule)) <= rules().keys()
        if known == "yes":
            assert "PD" in rule or "none needed" in rule, row
        assert "to come" not in rule, row
