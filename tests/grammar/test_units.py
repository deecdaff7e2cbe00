"""Units: what they mean, and that written values read back exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paradag.grammar import _units as units
from paradag.grammar._units import Measure, exact, show, whole


@pytest.mark.parametrize(
    ("measure", "number", "unit", "value"),
    [
        (units.SIZE, "64", "GB", 64e9),
        (units.SIZE, "64", "GiB", 64 * 2.0**30),
        (units.SIZE, "7", "B", 7.0),
        (units.BANDWIDTH, "1.8", "TB/s", 1.8e12),
        (units.BANDWIDTH, "400", "Gb/s", 50e9),
        (units.TIME, "3", "us", 3e-6),
        (units.TIME, "50", "ms", 0.05),
        (units.COMPUTE, "400", "TFLOPS", 4e14),
        (units.COMPUTE, "1979", "TOPS", 1.979e15),
        (units.PARAMETERS, "235", "B", 235e9),
        (units.SHARE, "60", "%", 0.6),
    ],
)
def test_meaning(measure: Measure, number: str, unit: str, value: float) -> None:
    assert exact(number, measure.units[unit]) == value


@pytest.mark.parametrize("unit", ["gb", "Gb", "GBs", "KiB/s"])
def test_units_are_case_sensitive_and_kinds_apart(unit: str) -> None:
    assert unit not in units.SIZE.units


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("1_000", 1000),
        ("1e3", 1000),
        ("2.5", None),
        ("9" * 5000, 10**18),
        ("1e999999999", 10**18),
    ],
)
def test_whole(text: str, value: int | None) -> None:
    assert whole(text) == value


@pytest.mark.parametrize("exponent", ["400", "99999999999999999999"])
def test_numbers_past_a_float_are_infinite(exponent: str) -> None:
    assert exact(f"1e{exponent}") == float("inf")


@pytest.mark.parametrize("measure", [m for m in units.MEASURES if m.canonical], ids=lambda m: m.name)
@given(value=st.floats(min_value=5e-324, allow_infinity=False))
def test_shown_values_read_back(measure: Measure, value: float) -> None:
    number, _, unit = show(value, measure).replace("%", " %").partition(" ")
    assert exact(number, measure.units[unit] if unit else units.ONE) == value
