"""What holds of every repair: legal or untouched, the same when done again, minimal, and at its place only."""

from __future__ import annotations

import re

from hypothesis import HealthCheck, given, settings

from paradag.compiler.diagnostics import Outcome
from paradag.grammar import load_text
from paradag.passes.validation import check_spec
from paradag.passes.validation.fixes import fix_spec, over_memory
from paradag.passes.validation.fixes._faults import Judge
from paradag.passes.validation.fixes._search import Search, apply_all
from paradag.passes.validation.fixes._text import blocks
from paradag.tests.passes.fixes.files import files

SOME = settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SOME
@given(files())
def test_a_repaired_file_is_clean_and_any_other_unchanged(text: str) -> None:
    loaded = load_text(text)
    fixed = fix_spec(loaded, memory=over_memory(), tidy=True)
    errors = [d for d in check_spec(loaded)[1] if d.is_error]
    if fixed.outcome is Outcome.FIXED:
        again = load_text(fixed.text)
        assert again.spec == fixed.loaded.spec
        assert not [d for d in check_spec(again)[1] if d.is_error or d.code == "PD204"]
        assert not over_memory()(check_spec(again)[0].spec)
        assert fixed.text != text and fixed.fixes
        assert {d.message for d in errors} <= {d.message for d in fixed.repaired}
    else:
        assert fixed.text == text and fixed.loaded is loaded and not fixed.fixes
        assert bool(errors) == (fixed.outcome is Outcome.REJECTED)


@SOME
@given(files())
def test_repairing_twice_changes_nothing(text: str) -> None:
    once = fix_spec(load_text(text), tidy=True)
    twice = fix_spec(load_text(once.text), tidy=True)
    assert twice.text == once.text and not twice.fixes
    assert (twice.outcome is Outcome.REJECTED) == (once.outcome is Outcome.REJECTED)


@SOME
@given(files())
def test_what_can_be_repaired_is_repaired_in_the_text_and_no_step_is_needless(text: str) -> None:
    loaded = load_text(text)
    judge = Judge(None, tidy=True)
    steps = Search(judge, blocks(loaded), workload=False).run(loaded.spec)
    fixed = fix_spec(loaded, tidy=True)
    assert (fixed.outcome is Outcome.REJECTED) == (steps is None)
    for index in range(len(steps or ())):
        assert steps is not None
        rest = [*steps[:index], *steps[index + 1 :]]
        assert judge.faults(apply_all(rest, loaded.spec)), f"{steps[index].rule} was not needed"


@SOME
@given(files())
def test_the_text_outside_of_the_repairs_stays_byte_for_byte(text: str) -> None:
    fixed = fix_spec(load_text(text), tidy=True)
    assert re.findall(r"#[^\n]*", fixed.text) == re.findall(r"#[^\n]*", text) or _inside(fixed.fixes)
    start = text.index("strategy")
    assert fixed.text[:start] == text[:start]
    after = fixed.text.splitlines()
    touched = "\n".join(f.before for f in fixed.fixes)
    for line in text.splitlines():
        words = line.split("#")[0].strip()
        if words and words not in touched and not any(b.splitlines()[0] in line for b in touched.splitlines() if b):
            assert line in after


def _inside(fixes: object) -> bool:
    """Whether a repair replaced a piece with a comment in it; such comments may move with their term."""
    return any("#" in f.before for f in fixes)  # type: ignore[attr-defined]
