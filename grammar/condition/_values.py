"""Figures as people write them in prose: ``400TFlops``, ``1.8TBps``, ``64GB``, ``60%``, ``100tokens/ms``."""

from __future__ import annotations

import re

__all__ = [
    "bandwidth",
    "catalogued",
    "compute",
    "count",
    "dtype_of",
    "first_number",
    "no_bound",
    "seconds",
    "share",
    "size",
    "throughput",
    "token_range",
]

_NUMBER = r"(?<![\w.])([0-9]{1,15}(?:[,_][0-9]{3}){0,5}(?:\.[0-9]{1,15})?)"
_PREFIX = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}

_COMPUTE = re.compile(_NUMBER + r"\s{0,3}([mgtpe])(?:flops?(?:/s)?|ops)\b", re.IGNORECASE)
_SIZE = re.compile(_NUMBER + r"\s{0,3}([KMGTPkmgtp]?)(i?)B(?:ytes?)?\b(?!/s|ps)")
_BANDWIDTH = re.compile(_NUMBER + r"\s{0,3}([KMGTPkmgtp]?)(i?)([Bb])(?:ytes?|its?)?(?:ps|/s(?:ec)?)\b")
_TIME = re.compile(_NUMBER + r"\s{0,3}(ns|us|µs|ms|seconds?|secs?|s|minutes?|min)\b", re.IGNORECASE)
_SHARE = re.compile(_NUMBER + r"\s{0,3}(%|percent\b)?", re.IGNORECASE)
_COUNT = re.compile(_NUMBER + r"\s{0,3}(thousand|million|billion|trillion|[kmbt])?(?![\w])", re.IGNORECASE)
_THROUGHPUT = re.compile(
    _NUMBER + r"\s{0,3}(k?)\s{0,3}(?:tokens?|toks?)\s{0,3}(?:/|per)\s{0,3}(ms|millisecond|seconds?|secs?|s|minute|min)",
    re.IGNORECASE,
)
_RANGE = re.compile(_NUMBER + r"\s{0,3}(?:~|-|\u2013|to|\.\.|,)\s{0,3}" + _NUMBER, re.IGNORECASE)
_FACTORS = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6, "b": 1e9, "billion": 1e9, "t": 1e12, "trillion": 1e12}
_TIMES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "millisecond": 1e-3}
_NOTHING = re.compile(
    r"\s*(none|n/?a|no|no limits?|unlimited|-|\?|any|tbd|not (?:required|specified))?\.?\s*", re.IGNORECASE
)
_DTYPES = (
    (r"nv-?fp4", "nvfp4"),
    (r"mx-?fp4", "mxfp4"),
    (r"fp8|float8|e4m3|e5m2", "fp8"),
    (r"int8|w8a8", "int8"),
    (r"int4|w4a16|awq|gptq", "int4"),
    (r"bf16|bfloat16", "bf16"),
    (r"fp16|float16|half", "fp16"),
    (r"fp32|float32", "fp32"),
)


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("_", ""))


def first_number(text: str) -> float | None:
    """The first number of a text."""
    found = re.search(_NUMBER, text)
    return _number(found[1]) if found else None


def compute(text: str) -> float | None:
    """FLOP/s.

    >>> compute("400TFlops."), compute("1.2 PFLOPS per card")
    (400000000000000.0, 1200000000000000.0)
    """
    found = _COMPUTE.search(text)
    return _scaled(found[1], found[2]) if found else None


def _scaled(number: str, prefix: str) -> float:
    return float(f"{number.replace(',', '').replace('_', '')}e{3 * _PREFIX[prefix.lower()]}")


def size(text: str) -> float | None:
    """Bytes; ``GiB`` is 2^30, ``GB`` 10^9."""
    found = _SIZE.search(text)
    if not found:
        return None
    return _number(found[1]) * 1024.0 ** _PREFIX[found[2].lower()] if found[3] else _scaled(found[1], found[2])


def bandwidth(text: str) -> float | None:
    """Bytes per second; a small ``b`` counts bits.

    >>> bandwidth("1.8TBps"), bandwidth("400 Gb/s")
    (1800000000000.0, 50000000000.0)
    """
    found = _BANDWIDTH.search(text)
    if not found:
        return None
    value = _number(found[1]) * 1024.0 ** _PREFIX[found[2].lower()] if found[3] else _scaled(found[1], found[2])
    return value / 8 if found[4] == "b" else value


def seconds(text: str) -> float | None:
    """Seconds."""
    found = _TIME.search(text)
    if not found:
        return None
    unit = found[2].lower()
    return float(_number(found[1]) * _TIMES.get(unit, 60.0 if unit.startswith("min") else 1.0))


def share(text: str) -> float | None:
    """A share: ``60%`` and ``0.6`` alike; None outside of 0 to 1."""
    found = _SHARE.search(text)
    if not found:
        return None
    value = _number(found[1]) / (100 if found[2] else 1)
    return value if 0 < value <= 1 else None


def count(text: str) -> float | None:
    """A count: ``235B``, ``128``, ``2k``."""
    found = _COUNT.search(text)
    return _number(found[1]) * _FACTORS.get((found[2] or "").lower(), 1.0) if found else None


def throughput(text: str) -> float | None:
    """Tokens per second.

    >>> throughput("100tokens/ms")
    100000.0
    """
    found = _THROUGHPUT.search(text)
    if not found:
        return None
    unit = found[3].lower()
    per_second = 1e3 if unit in ("ms", "millisecond") else 1 / 60 if unit.startswith("min") else 1.0
    return float(_number(found[1]) * (1e3 if found[2] else 1.0) * per_second)


def token_range(text: str) -> tuple[int, int] | None:
    """Two counts with a sign of range between them: ``128 ~ 10240``, ``[128, 10240]``."""
    found = _RANGE.search(text)
    if not found:
        return None
    low, high = int(_number(found[1])), int(_number(found[2]))
    return (low, high) if 0 < low <= high else None


def dtype_of(text: str) -> str | None:
    """The number format that a text names."""
    return next((name for pattern, name in _DTYPES if re.search(rf"(?i)(?<![a-z0-9])(?:{pattern})", text)), None)


def no_bound(text: str) -> bool:
    """Whether a value says that there is none."""
    return _NOTHING.fullmatch(text) is not None


def catalogued(text: str, names: tuple[str, ...]) -> str | None:
    """The accelerator of the catalogue that a text names: the longest name all of whose words occur in it."""
    words = set(re.findall(r"[a-z]+[0-9]*[a-z]*|[0-9]+gb|[0-9]+", text.lower()))
    fitting = [n for n in names if set(n.split("_")[:1]) <= words]
    best = max(fitting, key=lambda n: (len(set(n.split("_")) & words), -len(n)), default=None)
    return best
