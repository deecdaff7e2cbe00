"""What a strategy file claims, whatever its keys are called: degrees, GPUs, model sizes, memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ....compiler.spec.dtypes import DTYPES
from ._facts import FACTS, PER_PART, in_one_part, is_stage_count, words_of
from ._json_text import JsonText, Leaf

__all__ = ["DIMENSIONS", "Claim", "Claims", "claims_of"]

DIMENSIONS = ("dp", "pp", "sp", "ep", "tp")

_NAMES = {
    "tensor": "tp",
    "tp": "tp",
    "pipeline": "pp",
    "pp": "pp",
    "expert": "ep",
    "ep": "ep",
    "sequence": "sp",
    "sp": "sp",
    "data": "dp",
    "dp": "dp",
}
_DEGREE_WORDS = frozenset(
    {
        "parallel",
        "parallelism",
        "parallelization",
        "size",
        "degree",
        "degrees",
        "model",
        "way",
        "ways",
        "world",
        "value",
        "num",
        "number",
        "of",
    }
)
_PLURAL = {"experts": "expert"}
_NUMBER = re.compile(r"\s*(?:[A-Za-z]{2,3}\s*=\s*)?(-?\d{1,15}(?:\.\d{1,15})?)(?![\d.]*\s*[-\u2013]\s*\d)")
_OTHERS = re.compile(
    r"(?:context|zero|fsdp|layer|spatial|temporal|head|vocab|token|batch|module|attention|cp|hp|mp|lp|zp)"
)
_NAME_DEGREE = re.compile(r"(?<![A-Za-z])(TP|PP|EP|SP|DP)[-_=: ]?(\d{1,6})(?![\d.])")


@dataclass(frozen=True)
class Claim:
    """A number and where it stands."""

    value: float
    leaf: Leaf

    @property
    def whole(self) -> int | None:
        return int(self.value) if float(self.value).is_integer() else None


@dataclass
class Claims:
    """Everything understood. Degrees are per phase: ``prefill``, ``decode`` or empty where none is named."""

    text: JsonText
    phases: set[str] = field(default_factory=set)
    degrees: dict[tuple[str, str], list[Claim]] = field(default_factory=dict)
    """By phase and dimension."""
    unknown: list[tuple[str, Claim]] = field(default_factory=list)
    numbers: dict[str, list[Claim]] = field(default_factory=dict)
    """By what they measure: layers, layers_per_stage, experts, heads, gpus, cluster, weights_gb, ..."""
    stage_layers: list[Claim] = field(default_factory=list)
    dtype_bytes: float | None = None
    dense: Leaf | None = None
    """Where the file says that the model has no experts."""
    sp_on: Leaf | None = None
    training: list[Leaf] = field(default_factory=list)
    understood: list[Leaf] = field(default_factory=list)

    def first(self, what: str) -> Claim | None:
        return next(iter(self.numbers.get(what, ())), None)

    def degree(self, phase: str, dimension: str) -> Claim | None:
        """The degree that holds in a phase."""
        found = self.degrees.get((phase, dimension)) or self.degrees.get(("", dimension))
        return found[0] if found else None

    def degree_phases(self) -> list[str]:
        """Phases with degrees of their own, else the one that the file is about."""
        named = sorted({p for p, _ in self.degrees if p}, reverse=True)
        return named or ([""] if self.degrees else [])


def claims_of(text: JsonText) -> Claims:
    """Read every leaf."""
    claims = Claims(text)
    for leaf in text.leaves:
        used = [reader(claims, leaf) for reader in _READERS]
        if any(used):
            claims.understood.append(leaf)
    return claims


def _number(value: object) -> float | None:
    """A number, also in words: ``"TP=4"``, ``"64GB"``, ``"60%"``, ``"8-way"``."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1e18 and value == value else None
    match = _NUMBER.match(str(value)[:200])
    return float(match[1]) if match else None


def _phase_of(leaf: Leaf) -> str:
    for key in leaf.keys:
        words = words_of(key)
        if "prefill" in words and "decode" not in words:
            return "prefill"
        if "decode" in words and "prefill" not in words:
            return "decode"
    return ""


def _phase(claims: Claims, leaf: Leaf) -> bool:
    claims.phases |= {w for k in leaf.keys for w in words_of(k) if w in ("prefill", "decode")}
    if (
        leaf.keys
        and words_of(leaf.keys[-1])[-1:] in (("phase",), ("mode",), ("stage",))
        and isinstance(leaf.value, str)
    ):
        claims.phases |= {w for w in words_of(leaf.value) if w in ("prefill", "decode")}
        return True
    return False


def _dimension(words: Iterable[str]) -> str | None:
    """The dimension that a key names, where it names nothing else."""
    rest = [w for w in words if w not in _DEGREE_WORDS]
    named = {_NAMES.get(_PLURAL.get(w, w)) for w in rest}
    return named.pop() if len(named) == 1 else None


def _degree(claims: Claims, leaf: Leaf) -> bool:
    """``tp: 4``, ``tensor_parallel_size: 4``, ``tensor_parallelism: {degree: 4}``, ``"EP16-TP4"`` in a name."""
    if not leaf.keys or any(PER_PART.search(k.lower()) for k in leaf.keys[:-1]) or leaf.in_list:
        return False
    last = words_of(leaf.keys[-1])
    if last[-1:] in (("name",), ("strategy",), ("id",)) and isinstance(leaf.value, str):
        found = _NAME_DEGREE.findall(leaf.value[:200])
        for name, value in found:
            claims.degrees.setdefault((_phase_of(leaf), name.lower()), []).append(Claim(float(value), leaf))
        return bool(found)
    dimension = _named_dimension(leaf.keys)
    if dimension == "sp" and leaf.value is True:
        claims.sp_on = leaf
        return True
    value = _number(leaf.value)
    if value is None or value < 0:
        return False
    if dimension is not None:
        claims.degrees.setdefault((_phase_of(leaf), dimension), []).append(Claim(value, leaf))
        return True
    other = _other_dimension(leaf.keys)
    if other is not None and value > 1:
        claims.unknown.append((other, Claim(value, leaf)))
    return other is not None


def _named_dimension(keys: tuple[str, ...]) -> str | None:
    last = words_of(keys[-1])
    dimension = _dimension(last)
    if dimension is not None and (
        (len(last) == 1 and last[0] == dimension)
        or set(last) & (_DEGREE_WORDS - {"num", "number", "of", "model"})
        or _in_strategy(keys)
    ):
        return dimension if set(last) & (set(DIMENSIONS) | {"parallel", "parallelism", "parallelization"}) else None
    if all(w in _DEGREE_WORDS for w in last) and len(keys) > 1:
        before = words_of(keys[-2])
        return _dimension(before) if set(before) & (set(DIMENSIONS) | {"parallel", "parallelism"}) else None
    return None


def _in_strategy(keys: tuple[str, ...]) -> bool:
    return any(set(words_of(k)) & {"parallel", "parallelism", "strategy", "degrees"} for k in keys[:-1])


def _other_dimension(keys: tuple[str, ...]) -> str | None:
    """A parallel dimension that is none of the five."""
    last = words_of(keys[-1])
    named = "_".join(w for w in last if w not in _DEGREE_WORDS)
    parallel = bool(set(last) & {"parallel", "parallelism"})
    if (
        (parallel or (re.fullmatch(r"[a-z]p", named) and _in_strategy(keys)))
        and named not in _NAMES
        and _OTHERS.fullmatch(named)
    ):
        return named
    return None


def _model_fact(claims: Claims, leaf: Leaf) -> bool:
    """Sizes, by the words of the last key."""
    if not leaf.keys:
        return False
    words = words_of(leaf.keys[-1])
    if words[-1:] in (("precision",), ("dtype",)) or words[:1] == ("precision",):
        name = str(leaf.value).lower()
        known = next((d for n, d in DTYPES.items() if n in name.replace("float", "fp").replace("bfp", "bf")), None)
        claims.dtype_bytes = known.bytes if known else claims.dtype_bytes
        return known is not None
    if "moe" in words and words[0] == "is":
        claims.dense = leaf if leaf.value is False else None
        return True
    if re.search(r"gradient|checkpointing|optimizer|1f1b|learning", "_".join(words)) or (
        words[-1:] == ("schedule",) and "1f1b" in str(leaf.value).lower()
    ):
        if leaf.value not in (False, 1, 0, None):
            claims.training.append(leaf)
        return True
    if in_one_part(leaf) and not is_stage_count(leaf):
        return False
    what = next((w for w, test in FACTS if test(leaf, words)), None)
    value = _measured(what, leaf) if what else None
    if what is None or value is None:
        return False
    if what == "stage_layers":
        claims.stage_layers.append(Claim(value, leaf))
    else:
        claims.numbers.setdefault(what, []).append(Claim(value, leaf))
    return True


def _measured(what: str, leaf: Leaf) -> float | None:
    """The number in its unit: GB for memory, percent for shares, billions for parameters."""
    value = _number(leaf.value)
    if value is None:
        return None
    text = str(leaf.value).upper()
    if what == "utilization" and isinstance(leaf.value, str) and "%" not in text:
        return None
    if what.endswith("_gb") and isinstance(leaf.value, str):
        factor = next(
            (f for unit, f in (("TB", 1e3), ("GB", 1.0), ("GIB", 1.073741824), ("MB", 1e-3)) if unit in text), None
        )
        return value * factor if factor else None
    if what == "parameters_b":
        if isinstance(leaf.value, str):
            return value * next(
                (f for unit, f in (("T", 1e3), ("B", 1.0), ("M", 1e-3)) if text.strip().endswith(unit)), 1e-9
            )
        return value / 1e9 if value > 1e6 else value
    if what == "utilization" and not isinstance(leaf.value, str) and "percent" not in words_of(leaf.keys[-1]):
        return value * 100 if value <= 1 else value
    return value


_READERS: tuple[Callable[[Claims, Leaf], bool], ...] = (_phase, _degree, _model_fact)
