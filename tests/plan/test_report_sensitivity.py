"""A move of a figure answers what a file with that figure would be answered."""

from __future__ import annotations

import pytest

import paradag
from paradag.compiler.plan.report import analyse_sensitivity, report_markdown, sensitivity
from paradag.compiler.plan.report.sensitivity import FACTORS, Response, movable

from .conditions import MOE, condition
from .reports import BOUNDS, CONDITIONS, facts, moved, planned

pytestmark = pytest.mark.slow

WORK = "batch 4 input 64 tokens output 8 tokens"


def by_figure(name: str) -> dict[tuple[str, float], Response]:
    return {(r.figure.name, r.factor): r for r in moved(name).responses}


def test_every_figure_is_moved_both_ways() -> None:
    figures = movable(planned("chosen"), CONDITIONS["chosen"], None)
    wanted = {(f.name, factor) for f in figures for factor in FACTORS}
    assert set(by_figure("chosen")) == wanted
    assert {"compute rate", "HBM bandwidth", "kernel latency", "decode context", "scale-out latency"} <= {
        f.name for f in figures
    }


@pytest.mark.parametrize(
    ("figure", "before", "after"),
    [
        ("compute rate", "compute 1 TFLOPS", "compute 1.25 TFLOPS"),
        ("HBM bandwidth", "bandwidth 100 GB/s", "bandwidth 125 GB/s"),
        ("scale-up bandwidth", "bandwidth 20 GB/s", "bandwidth 25 GB/s"),
    ],
)
def test_a_move_is_the_file_with_that_figure(
    figure: str, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "WHOLE", 10**9)
    loaded = condition(MOE, gpus="1 of 2", work=WORK)
    plan = paradag.plan(loaded, bounds=BOUNDS)
    figures = [f for f in movable(plan, loaded, None) if f.name == figure]
    monkeypatch.setattr(sensitivity, "movable", lambda *_: tuple(figures))
    response = next(r for r in analyse_sensitivity(plan, loaded, bounds=BOUNDS).responses if r.factor == 1.25)
    (text,) = loaded.texts.values()
    assert text.count(before) == 1
    other = paradag.plan(text.replace(before, after), bounds=BOUNDS)
    assert other.chosen is not None and response.best is not None
    assert response.best.strategies == other.chosen.strategies
    assert response.best.numbers.tpot_s == pytest.approx(other.chosen.numbers.tpot_s, rel=1e-9)


def test_slower_hardware_is_never_better() -> None:
    """On the objective's own figure, and nobody is better than the best."""
    for response in moved("infeasible").responses:
        assert response.change is not None and response.regret is not None
        assert response.regret >= -1e-12
        gains = response.figure.name.endswith(("rate", "bandwidth")) == (response.factor > 1)
        # a decode kernel's slowest unit may gain in the tenth digit where there is less to share
        assert response.change <= 1e-9 if gains else response.change >= -1e-9
        if response.same:
            assert response.regret == 0 and not response.bound


def test_a_confined_search_finds_nothing_better_than_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = condition(MOE, gpus="1 of 2", work=WORK)
    plan = paradag.plan(loaded, bounds=BOUNDS)
    figures = movable(plan, loaded, None)[:1]
    monkeypatch.setattr(sensitivity, "movable", lambda *_: figures)
    found = {}
    for limit in (0, 10**9):
        monkeypatch.setattr(sensitivity, "WHOLE", limit)
        found[limit] = analyse_sensitivity(plan, loaded, bounds=BOUNDS)
    confined, whole = found[0], found[10**9]
    assert confined.layouts is not None and whole.layouts is None
    for a, b in zip(confined.responses, whole.responses, strict=True):
        assert a.change is not None and b.change is not None
        assert a.change >= b.change - 1e-12


def test_an_interrupt_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def search(*args: object, **kwargs: object) -> object:
        asked.append(kwargs)
        if len(asked) > 2:
            raise KeyboardInterrupt
        return planned("chosen")

    monkeypatch.setattr(sensitivity, "find_plan", search)
    found = analyse_sensitivity(planned("chosen"), CONDITIONS["chosen"], bounds=BOUNDS)
    assert len(found.responses) == 2 and "Interrupted after 2 of" in found.reason


def test_what_was_not_analysed_is_said() -> None:
    assert "Sensitivity was not analysed: it was not asked for." in report_markdown(facts("chosen"))
    if not planned("too_large").top:
        assert moved("too_large").reason == "no strategy fits into memory"
