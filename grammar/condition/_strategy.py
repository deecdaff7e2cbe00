"""The strategy section of a condition file: degrees to strategies, and the GPU counts that they can mean."""

from __future__ import annotations

from math import prod

from ...compiler.diagnostics import Severity
from ...compiler.spec import ChainTerm, StrategySpec
from ...compiler.spec.stage_law import Degrees, degrees_of
from ._claims import Claims

__all__ = ["strategies"]

_MAX_RANKS = 1_000_000
_ORDER = ("dp", "pp", "sp", "ep", "tp")


def strategies(claims: Claims, *, experts: int | None) -> tuple[StrategySpec, ...]:
    """The strategies that the file's degrees mean; findings on GPU counts go to ``claims``.

    A total that the file states decides how its DP is read: as replicas (the language's meaning), as attention DP
    inside a stage, or not counted at all.

    Args:
        claims: Statements of the file.
        experts: Experts of a layer, None for a dense model.
    """
    degrees = {name: claims.get(f"degrees.{name}") or 1 for name in _ORDER}
    if not any(path.startswith("degrees.") for path in claims.by_path):
        return ()
    _one_expert_each(claims, degrees["ep"], experts)
    readings = _readings(degrees, is_moe=experts is not None)
    stated = claims.get("gpus.stated")
    chosen = next((name for name, law in readings.items() if law is not None and law.gpus == stated), "DP as replicas")
    _report(claims, degrees, readings, stated, chosen)
    law = readings[chosen]
    return tuple(_strategy(phase, degrees, law, chosen) for phase in ("prefill", "decode"))


def _readings(degrees: dict[str, int], *, is_moe: bool) -> dict[str, Degrees | None]:
    """The law of the stage for each meaning of DP; None where no whole number of groups comes out."""
    alone = _law(degrees | {"dp": 1}, is_moe=is_moe)
    if degrees["dp"] == 1:
        return {"DP as replicas": alone}
    ranks = max(degrees["dp"] * degrees["sp"] * degrees["tp"], alone.ep * alone.etp)
    inside = _law(degrees | {"dp": 1}, is_moe=is_moe, ranks=ranks) if ranks <= _MAX_RANKS else None
    return {
        "without DP": alone,
        "DP as attention DP": inside if inside and inside.fits() and inside.adp % degrees["dp"] == 0 else None,
        "DP as replicas": _law(degrees, is_moe=is_moe),
    }


def _law(degrees: dict[str, int], *, is_moe: bool, ranks: int | None = None) -> Degrees:
    chain = tuple(ChainTerm(name=n, degree=v) for n, v in degrees.items() if v > 1)
    return degrees_of(StrategySpec(phase="decode", chain=chain, ranks=ranks), is_moe=is_moe)


def _strategy(phase: str, degrees: dict[str, int], law: Degrees | None, reading: str) -> StrategySpec:
    names = [n for n in _ORDER if degrees[n] > 1 and not (n == "sp" and phase == "decode")]
    if reading != "DP as replicas":
        names = [n for n in names if n != "dp"]
    chain = tuple(ChainTerm(name=n, degree=degrees[n]) for n in names)
    ranks = law.ranks if reading == "DP as attention DP" and law is not None else None
    return StrategySpec.model_validate({"phase": phase, "chain": chain, "ranks": ranks})


def _report(
    claims: Claims, degrees: dict[str, int], readings: dict[str, Degrees | None], stated: int | None, chosen: str
) -> None:
    named = " ".join(f"{n} {v}" for n, v in degrees.items() if v > 1) or "one GPU"
    counts = {name: f"{law.gpus} {name}" if law else f"none {name}" for name, law in readings.items()}
    text = counts["DP as replicas"].split()[0] if len(counts) == 1 else ", ".join(counts.values())
    line = claims.by_path["gpus.stated" if stated else next(p for p in claims.by_path if p.startswith("degrees."))].line
    product = prod(degrees.values())
    right = stated in {law.gpus for law in readings.values() if law}
    if stated is not None and not right:
        if stated == product:
            message = f"{stated} GPUs is the product of {named}; experts and attention share the ranks of a stage"
            claims.report("PD752", message, line, f"by the law of the stage: {text}", "state one of these counts")
        else:
            message = f"{stated} GPUs are stated for {named}"
            claims.report("PD753", message, line, f"by the law of the stage: {text}", "state one of these counts")
    elif len(readings) > 1:
        said = f"the file states {stated}" if stated else "the file states no total"
        message = f"{named} can mean {text}; {said}: read as {chosen}"
        claims.report("PD023", message, line, None, "say how many replicas and how many attention groups are meant")
    elif stated is None:
        claims.report("PD023", f"{named} means {text} GPUs", line, None, None, Severity.NOTE)


def _one_expert_each(claims: Claims, ep: int, experts: int | None) -> None:
    if claims.get("degrees.one_expert_per_gpu") and experts and experts != ep:
        message = f"EP {ep} puts {experts / ep:g} of the {experts} experts on each GPU, not one"
        line = claims.by_path["degrees.one_expert_per_gpu"].line
        expected = f"EP {experts} for one expert per GPU"
        claims.report("PD019", message, line, expected, "correct the degree or the remark")
