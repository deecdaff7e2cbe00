"""What a knowledge pack asks of strategies: its law, if the mesh can follow it, and its constraints."""

from __future__ import annotations

from collections.abc import Iterator

from ...compiler.spec.pack import Constraint
from ...compiler.spec.pack_law import facts, values_of, whole
from ._case import Case, Finding, choices, near

_CHANGED = ("ep", "tp", "sp", "pp", "dp", "etp", "microbatches")
"""Degrees of which the nearest legal values are told, if a constraint reads them."""

_REACH = 256
"""How far away those are looked for."""


def law_not_lowered(case: Case) -> Iterator[Finding]:
    """Every stage owns whole ranks, a multiple of what both views need, and a phase takes no fewer GPUs than ranks."""
    if case.spec.pack is None:
        return
    law, d = case.spec.pack.law, case.degrees
    known = facts(case.spec, case.phase, d.redundant)
    side = {"sp": d.sp, "tp": d.tp, "ep": d.ep, "etp": d.etp}
    term = case.strategy.term("ep")
    asked = case.model.moe is not None and d.ep > 1 and term is not None and term.etp is None
    if law.etp is not None and asked and whole(inside := law.etp({**known, **side})) is None:
        yield _fault(case, "etp", f"the pack's TP inside an expert is {inside:g}", "a whole number of 1 or more")
    if law.sets_ranks:
        ranks = law.stage_ranks({**known, **side})
        attention, experts = d.sp * d.tp, d.ep * d.etp
        if (number := whole(ranks)) is None:
            yield _fault(case, "ranks", f"the pack's law gives a stage {ranks:g} ranks", "a whole number of 1 or more")
            return
        if case.strategy.ranks is None and (number % attention or number % experts):
            sides = f"sp*tp = {attention}" + (f" and ep*etp = {experts}" if case.model.moe else "")
            expected = "ranks = adp*sp*tp = edp*ep*etp in whole numbers"
            yield _fault(
                case, "ranks", f"the pack's law gives a stage {number} ranks, no multiple of {sides}", expected
            )
            return
    mesh = d.dp * d.pp * d.ranks
    gpus = law.phase_gpus(values_of(case.spec, case.strategy, d))
    if whole(gpus) is None or gpus < mesh:
        counted = f"the pack's law counts {gpus:g} GPUs, the strategy has {mesh:,} ranks"
        yield _fault(case, "gpus", counted, "a whole number of GPUs, at least dp * pp * ranks: those beyond are idle")


def _fault(case: Case, key: str, message: str, expected: str) -> Finding:
    assert case.spec.pack is not None
    span = case.spec.pack.law.span(key, "gpus", "ranks")
    where = f" ({span.file}:{span.line})" if span else ""
    help_ = "change `ep`, `tp` or `sp`, or the law: `ranks` is what the mesh has, `gpus` what is counted"
    return Finding(f"{message}{where}", ("ranks", "ep", "tp", "sp", "pp"), expected, help_)


def constraints_broken(case: Case) -> Iterator[Finding]:
    """Every constraint of the pack is met, and `ranks` is what its law says."""
    pack = case.spec.pack
    if pack is None:
        return
    law, d = pack.law, case.degrees
    if law.sets_ranks and case.strategy.ranks is not None:
        side = {"sp": d.sp, "tp": d.tp, "ep": d.ep, "etp": d.etp}
        ranks = whole(law.stage_ranks({**facts(case.spec, case.phase, d.redundant), **side}))
        if ranks != case.strategy.ranks:
            cited = law.span("ranks", "gpus")
            where = f"{cited.file}:{cited.line}" if cited else pack.path
            yield Finding(
                f"`ranks {case.strategy.ranks}`, and the pack's law gives {ranks} ({where})",
                ("ranks",),
                f"`ranks {ranks}`",
                "leave `ranks` out",
            )
    for constraint in pack.constraints:
        if not _met(case, constraint):
            yield _broken(case, constraint)


def _met(case: Case, constraint: Constraint) -> bool:
    return bool(constraint.formula(values_of(case.spec, case.strategy, case.degrees)))


def _broken(case: Case, constraint: Constraint) -> Finding:
    values = values_of(case.spec, case.strategy, case.degrees)
    read = sorted(constraint.formula.names)
    have = ", ".join(f"{name} = {values[name]}" for name in read)
    changed = [name for name in _CHANGED if name in read]
    found = [text for name in changed if case.advised and (text := _nearest(case, constraint, name))]
    return Finding(
        f"{constraint.message} ({constraint.cite}): here {have}",
        (*changed, "ranks"),
        f"`{constraint.formula.text}`",
        constraint.help or (f"use {' or '.join(found)}" if found else "change the strategy, or the pack"),
        constraint.severity,
    )


def _nearest(case: Case, constraint: Constraint, name: str) -> str:
    """The nearest values of one degree that meet the constraint and leave whole groups, as text to type in."""
    now = case.strategy.microbatches if name == "microbatches" else getattr(case.degrees, name)

    def legal(value: int) -> bool:
        other = case.with_option(name, value)
        return other.degrees.fits() and _met(other, constraint)

    return choices(name, near(now, legal, reach=_REACH))
