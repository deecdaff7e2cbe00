"""Units of the language: what a number with a unit means, and how a value is written so that it reads back exactly.

Units are case-sensitive: ``GB`` is 10^9 bytes, ``GiB`` 2^30 bytes, ``Gb/s`` 10^9 bits per second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, Overflow
from types import MappingProxyType

__all__ = ["ALL_UNITS", "Measure", "exact", "show", "whole"]

_SI = {"": 0, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15}
_IEC = {"K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def _bytes(suffix: str) -> dict[str, Decimal]:
    decimal = {f"{p}B{suffix}": Decimal(10) ** e for p, e in _SI.items()}
    return decimal | {f"{p}iB{suffix}": Decimal(1024) ** e for p, e in _IEC.items()}


_BITS_PER_SECOND = {f"{p}b/s": Decimal(10) ** e / 8 for p, e in _SI.items() if p}


@dataclass(frozen=True)
class Measure:
    """A kind of quantity. ``units`` maps each unit to its factor; ``canonical`` lists those the printer uses."""

    name: str
    units: Mapping[str, Decimal]
    canonical: tuple[str, ...]
    optional: bool = False
    """Whether a bare number is allowed (counts)."""

    @property
    def expected(self) -> str:
        """The units that people use, for messages."""
        if not self.units:
            return "a number without a unit"
        units = " or ".join(", ".join(f"`{unit}`" for unit in self.canonical).rsplit(", ", 1))
        return f"a {self.name}{', if need be in' if self.optional else ' in'} {units}"


def _measure(name: str, units: Mapping[str, Decimal], canonical: str, *, optional: bool = False) -> Measure:
    return Measure(name, MappingProxyType(dict(units)), tuple(canonical.split()), optional)


ONE = Decimal(1)
COUNT = _measure("count", {}, "")
FACTOR = _measure("factor", {}, "")
TOKENS = _measure("number of tokens", {"tokens": ONE}, "tokens", optional=True)
PARAMETERS = _measure(
    "number of parameters",
    {"K": Decimal("1e3"), "M": Decimal("1e6"), "B": Decimal("1e9"), "T": Decimal("1e12")},
    "T B M",
    optional=True,
)
SIZE = _measure("size in bytes", _bytes(""), "TB GB MB KB B")
BANDWIDTH = _measure("bandwidth", _bytes("/s") | _BITS_PER_SECOND, "TB/s GB/s MB/s KB/s B/s")
TIME = _measure("time", {"s": ONE, "ms": Decimal("1e-3"), "us": Decimal("1e-6"), "ns": Decimal("1e-9")}, "s ms us")
COMPUTE = _measure(
    "compute rate",
    {f"{p}FLOPS": Decimal(10) ** e for p, e in (_SI | {"E": 18}).items() if p != "K"}
    | {f"{p}OPS": Decimal(10) ** _SI[p] for p in "GTP"},
    "PFLOPS TFLOPS GFLOPS FLOPS",
)
SHARE = _measure("share", {"%": Decimal("0.01")}, "%")
RATE = _measure("request rate", {"req/s": ONE}, "req/s")
THROUGHPUT = _measure("throughput", {"tokens/s": ONE}, "tokens/s")

MEASURES = (COUNT, TOKENS, PARAMETERS, SIZE, BANDWIDTH, TIME, COMPUTE, SHARE, RATE, THROUGHPUT)
ALL_UNITS = frozenset(unit for measure in MEASURES for unit in measure.units)

_TOO_LARGE = 10**18
"""Stands for any integer past every bound, so that none of thousands of digits is ever computed."""


def exact(text: str, factor: Decimal = ONE) -> float:
    """``text`` times ``factor``, rounded once; infinite where a float cannot hold it.

    >>> exact("1.8", Decimal("1e12"))
    1800000000000.0
    """
    try:
        return float(Decimal(text) * factor)
    except (InvalidOperation, Overflow):
        return float("inf")


def whole(text: str, factor: Decimal = ONE) -> int | None:
    """The integer that ``text`` times ``factor`` is, or None where it is none.

    >>> whole("2048"), whole("1e3"), whole("2.5")
    (2048, 1000, None)
    """
    value = exact(text, factor)
    if abs(value) >= _TOO_LARGE:
        return _TOO_LARGE if value > 0 else -_TOO_LARGE
    return int(value) if value.is_integer() else None


def show(value: float, measure: Measure) -> str:
    """``value`` in the largest unit in which it is at least one; reads back exactly.

    >>> show(1.8e12, BANDWIDTH), show(3e-6, TIME)
    ('1.8 TB/s', '3 us')
    """
    number = Decimal(repr(value))
    fitting = [unit for unit in measure.canonical if abs(number) >= measure.units[unit]]
    if not measure.canonical or (measure.optional and not fitting):
        return _plain(number)
    unit = fitting[0] if fitting else measure.canonical[-1]
    gap = "" if unit == "%" else " "
    return f"{_plain(number / measure.units[unit])}{gap}{unit}"


def _plain(number: Decimal) -> str:
    number = number.normalize()
    digits = format(number, "f")
    return digits if len(digits) <= 24 else format(number, "E").replace("E", "e")
