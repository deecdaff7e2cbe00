"""Rules on counts of ranks: the law of the stage, the mesh, the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm

import numpy as np

from ...compiler.build.mesh import mesh_of
from ...compiler.ir.mesh import Mesh
from ...compiler.spec import Spec
from ...compiler.spec.catalog import accelerator
from ...compiler.spec.pack_law import scale_up_domain
from ._case import Case, Finding, near
from ._shape_rules import SHAPE_RULES

AXES = ("pp", "adp", "sp", "tp")
"""Axes that ``placement`` orders."""

_MANY_RANKS = 1_000_000
"""Above it only the first group of an axis is looked at for slow links."""


def no_whole_groups(case: Case) -> Iterator[Finding]:
    """The law of the stage: R = adp*sp*tp = edp*ep*etp in whole numbers."""
    d = case.degrees
    if d.fits():
        return
    attention, experts = d.sp * d.tp, d.ep * d.etp
    both = lcm(attention, experts)
    sides = f"{attention} (sp*tp = {d.sp}*{d.tp})"
    if case.model.moe:
        sides += f" and {experts} (ep*etp = {d.ep}*{d.etp})"
    at = ("ranks", "ep", "tp") if case.strategy.ranks else ("ep", "tp", "sp")
    yield Finding(
        f"no whole number of rank groups: {d.ranks} ranks of a stage do not divide by {sides}",
        at,
        f"R = adp*sp*tp = edp*ep*etp in whole numbers: R a multiple of {both}, such as `ranks {both}`",
        _help(legal_choices(case)),
    )


def axes_do_not_nest(case: Case) -> Iterator[Finding]:
    """The views of attention and experts have a common refinement."""
    if case.mesh is not None:
        return
    d = case.degrees
    yield Finding(
        f"the rank groups of attention (adp {d.adp}, sp {d.sp}, tp {d.tp}) and of the experts "
        f"(edp {d.edp}, ep {d.ep}, etp {d.etp}) have no common refinement",
        ("ep", "tp"),
        "group sizes of which each divides the next",
        _help(legal_choices(case)),
    )


def legal_choices(case: Case, *, fewer: bool = False) -> list[str]:
    """The nearest changes of one degree that are legal for law, mesh, model and cluster, as text to type in.

    Where the model's shapes admit none, those that law, mesh and cluster admit. ``fewer``: only smaller degrees. None
    where nobody reads them.
    """
    if not case.advised:
        return []
    d = case.degrees
    names = [n for n in ("ep", "tp", "sp", "etp", "pp", "dp") if getattr(d, n) > 1]
    if case.strategy.term("ep") is None and "etp" in names:
        names.remove("etp")
    if not fewer:
        names = [n for n in names if n not in {"pp", "dp"}]
    for per_side, known in ((1, _shape_faults(case)), (2, None)):
        found: list[str] = []
        for name in names:
            value = getattr(d, name)

            def legal(v: int, name: str = name, known: frozenset[str] | None = known) -> bool:
                return _legal(case.with_option(name, v), known)

            values = near(value, legal, reach=1024, count=per_side, above=not fewer)
            found += [f"`{name} {v}`" for v in values]
        ranks = lcm(d.sp * d.tp, d.ep * d.etp)
        if not fewer and _legal(case.with_option("ranks", ranks), known):
            found.append(f"`ranks {ranks}`")
        if found:
            return found
    return []


def _shape_faults(case: Case) -> frozenset[str]:
    """What is wrong with the case's shapes; a change of another degree cannot be blamed for it."""
    return frozenset(f.message for rule in SHAPE_RULES for f in rule.check(case))


def _legal(case: Case, known: frozenset[str] | None) -> bool:
    """Whether law, mesh and cluster admit the case, and its shapes have no faults but ``known`` ones (None: any)."""
    gpus = case.spec.cluster.gpus
    if not case.degrees.fits() or (gpus is not None and case.degrees.gpus > gpus):
        return False
    return case.mesh is not None and (known is None or _shape_faults(case) <= known)


def _help(found: list[str]) -> str:
    return f"the nearest legal choices: {', '.join(found)}" if found else "lower `ep` and `tp` to a power of two"


def placement_no_permutation(case: Case) -> Iterator[Finding]:
    """``placement`` orders every axis once, DP outermost."""
    order = case.strategy.placement
    needed = [a for a in AXES if getattr(case.degrees, a) > 1] if case.degrees.fits() else []
    wrong = [a for a in dict.fromkeys(order) if a not in (*AXES, "dp")]
    twice = [a for a in dict.fromkeys(order) if order.count(a) > 1]
    absent = [a for a in needed if order and a not in order]
    fix = f"write `placement {' '.join([*(a for a in dict.fromkeys(order) if a in AXES), *absent]) or ' '.join(AXES)}`"
    for axes, fault in ((wrong, "is no axis"), (twice, "stands twice"), (absent, "is missing")):
        for axis in axes:
            yield Finding(f"`placement`: `{axis}` {fault}", ("placement",), f"a permutation of {', '.join(AXES)}", fix)
    if "dp" in order[1:] and case.degrees.dp > 1:
        yield Finding("`placement`: `dp` is not outermost", ("placement",), "`dp` first, or left out", fix)


def dense_attention_dp(case: Case) -> Iterator[Finding]:
    """On a dense model attention DP is nothing but DP."""
    d = case.degrees
    if case.model.moe is None and d.adp > 1:
        yield Finding(
            f"attention DP of {d.adp} on a dense model is data parallelism",
            ("ranks",),
            f"`dp {d.dp * d.adp}` without `ranks`",
            f"it is reported as DP; write `dp {d.dp * d.adp}` to say so yourself",
        )


def spans_slow_link(case: Case) -> Iterator[Finding]:
    """A TP or EP group inside one scale-up domain is faster."""
    if case.mesh is None:
        return
    domain = scale_up_domain(case.spec.cluster, case.spec.pack)
    for view in ("tp", "ep"):
        size = case.degrees.tp if view == "tp" else case.degrees.ep
        if size > 1 and _crosses(_placed(case, case.mesh), view, domain):
            help_ = (
                f"use `{view} {domain}` or less, or an accelerator with a larger scale-up domain"
                if size > domain
                else f"change `placement` so that `{view}` is innermost"
            )
            yield Finding(
                f"{'an' if view == 'ep' else 'a'} {view.upper()} group of {size} GPUs leaves the scale-up domain "
                f"of {domain}{_speeds(case.spec)}",
                (view,),
                f"groups inside one scale-up domain of {domain} GPUs",
                help_,
            )


def _placed(case: Case, plain: Mesh) -> Mesh:
    order = case.strategy.placement
    return mesh_of(case.degrees, case.model, case.strategy) if order else plain


def _crosses(mesh: Mesh, view: str, domain: int) -> bool:
    """Whether any group of the named axis has ranks in two domains."""
    inside = set(mesh.view(view))
    span = sum((a.size - 1) * a.stride for a in mesh.axes if a.name in inside)
    first = np.zeros(1, dtype=np.int64)
    if mesh.replica_ranks <= _MANY_RANKS:
        first = (np.arange(mesh.pp)[:, None] * mesh.pp_stride + first).ravel()
        for axis in mesh.axes:
            if axis.name not in inside:
                first = (first[:, None] + np.arange(axis.size) * axis.stride).ravel()
    return bool(((first // domain) != ((first + span) // domain)).any())


def _speeds(spec: Spec) -> str:
    cluster = spec.cluster
    entry = accelerator(cluster.accelerator.catalog, spec.pack) if cluster.accelerator.catalog else None
    up = cluster.scale_up.bandwidth or (entry.scale_up.bandwidth if entry else None)
    out = cluster.scale_out.bandwidth or (entry.scale_out.bandwidth if entry else None)
    return f": {out / 1e9:g} GB/s per GPU instead of {up / 1e9:g} GB/s" if up and out else ""
