"""Numbers as JSON text that reads the same every time."""

from __future__ import annotations

import orjson

_EXACT = 2**53
"""Up to here every integer is a double."""


def plain(value: float) -> int | float:
    """A whole number as an int, so that counts of FLOPs and bytes are printed without a fraction."""
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def number(value: float) -> bytes:
    """JSON text of a number, shortest form that gives the same double."""
    return orjson.dumps(plain(value))
