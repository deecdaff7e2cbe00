"""How the choice answers when what was assumed is otherwise: the search again, with one figure moved at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...build import decode_context
from ...cost import Hardware, Link, resolve_hardware
from ...spec import LoadedSpec, Spec
from ...spec.calibration import (
    CollectiveParameters,
    DecodeParameters,
    ExchangeParameters,
    ExpertParameters,
    Fit,
    GemmParameters,
    Parameters,
    PrefillParameters,
    StreamingParameters,
)
from ...spec.stage_law import degrees_of
from ..layouts import KIND_NAMES, Layouts
from ..question import Progress
from ..result import Deployment, Numbers, Plan
from ..search import find_plan
from ..space import Bounds, Law

CONTEXT = "decode context"
"""Name of the assumption on how far a generation is when its step is costed."""

FACTORS = (0.8, 1.25)
"""By what each figure is moved."""

_SEARCHED = "GPUs searched"

WHOLE = 20_000
"""Most strategies, over all moves, that are evaluated anew; beyond it only layouts of good deployments are."""


@dataclass(frozen=True)
class Moved:
    """What a search is asked with one figure moved; None leaves a figure as it was."""

    hardware: Hardware | None = None
    context: int | None = None
    loaded: LoadedSpec | None = None
    max_gpus: int | None = None


@dataclass(frozen=True)
class Figure:
    """A figure that can be moved.

    Attributes:
        name: What it is, in the words of the assumption where there is one.
        value: As it stands.
        assumptions: Names of the plan's assumptions that it stands for; empty for a figure that was given.
        move: The search's arguments with the figure times a factor.
    """

    name: str
    value: str
    assumptions: frozenset[str]
    move: Callable[[float], Moved]


@dataclass(frozen=True)
class Response:
    """The best deployment with one figure moved.

    Attributes:
        figure: What was moved.
        factor: By what.
        best: The best then, or the closest where nothing is feasible; None where nothing fits.
        feasible: Whether anything meets the requirements then.
        same: Whether it is the plan's own.
        change: Relative change of the objective's figure from the plan's to the best's; None without a best.
        regret: How much worse the plan's own deployment is then than the best, as a share of the objective's figure;
            0 where it is the best.
        bound: Whether ``regret`` is a lower bound: the plan's own is not among the best that were compared.
    """

    figure: Figure
    factor: float
    best: Deployment | None
    feasible: bool
    same: bool
    change: float | None
    regret: float | None
    bound: bool = False


@dataclass(frozen=True)
class Sensitivity:
    """Responses to all moves.

    Attributes:
        responses: Two per figure.
        layouts: Stage layouts that were searched anew; None where all were.
        objective: What the figures of ``change`` and ``regret`` are.
        reason: Why moves are missing; empty where none is.
    """

    responses: tuple[Response, ...] = ()
    layouts: int | None = None
    objective: str = ""
    reason: str = "it was not asked for"


def objective_figure(plan: Plan, numbers: Numbers) -> tuple[str, float, bool]:
    """Name, value and whether more is better, of the figure that the objective looks at first."""
    if plan.objective == "latency":
        if numbers.tpot_s is not None:
            return "TPOT", numbers.tpot_s, False
        return "TTFT", numbers.ttft_s or 0.0, False
    if plan.objective == "balanced" or plan.spec.cluster.nodes is None:
        return "tokens/s per GPU", numbers.tokens_per_s_per_gpu, True
    return "tokens/s", numbers.tokens_per_s, True


def analyse_sensitivity(
    plan: Plan,
    loaded: LoadedSpec,
    *,
    top: int = 5,
    max_gpus: int | None = None,
    law: Law | None = None,
    bounds: Bounds | None = None,
    progress: Progress = lambda what: None,
) -> Sensitivity:
    """Search again with every assumed figure, and every figure of the cost model, a fifth smaller and a quarter larger.

    Args:
        plan: The answer.
        loaded: What was asked; as are ``top``, ``max_gpus``, ``law`` and ``bounds``.
        top: How many deployments are compared.
        max_gpus: Most GPUs.
        law: The GPU-count law.
        bounds: Where the search of schedules stops.
        progress: Told what is being done.

    The searches are whole where they are small. Else they are confined to the stage layouts of the best and the
    Pareto-optimal deployments, with all stages, replicas, batches and schedules. An interrupt ends them early.
    """
    subject = plan.chosen or next(iter(plan.top), None)
    if subject is None:
        return Sensitivity(reason="no strategy fits into memory")
    if not plan.complete:
        return Sensitivity(reason="the search was interrupted")
    figures = movable(plan, loaded, max_gpus)
    known = [*plan.top, *plan.pareto]
    layouts: int | None = None
    if plan.evaluated * len(FACTORS) * len(figures) > WHOLE:
        law, layouts = _confined(law or Law(), known, is_moe=plan.spec.model.moe is not None)
    ask = partial(find_plan, objective=plan.objective, top=max(2, top), law=law, bounds=bounds)
    responses: list[Response] = []
    reason = ""
    try:
        for number, figure in enumerate(figures):
            progress(f"sensitivity: {figure.name} ({number + 1} of {len(figures)})")
            for factor in FACTORS:
                m = figure.move(factor)
                gpus = m.max_gpus or max_gpus
                found = ask(m.loaded or loaded, max_gpus=gpus, hardware=m.hardware, context=m.context)
                responses.append(_response(plan, subject, figure, factor, found))
    except KeyboardInterrupt:
        reason = f"Interrupted after {len(responses)} of {len(figures) * len(FACTORS)} moves"
    return Sensitivity(tuple(responses), layouts, objective_figure(plan, subject.numbers)[0], reason)


def _response(plan: Plan, subject: Deployment, figure: Figure, factor: float, found: Plan) -> Response:
    best = found.chosen or next(iter(found.top), None)
    if best is None:
        return Response(figure, factor, None, False, False, None, None)
    _, before, more = objective_figure(plan, subject.numbers)
    after = objective_figure(plan, best.numbers)[1]
    own = next((d for d in found.top if _is(d, subject)), None)
    value = objective_figure(plan, (own or found.top[-1]).numbers)[1]
    regret = 1 - value / after if more else value / after - 1
    same = _is(best, subject)
    return Response(figure, factor, best, found.feasible, same, after / before - 1, regret, own is None)


def _is(one: Deployment, other: Deployment) -> bool:
    return (one.strategies, one.numbers.batch) == (other.strategies, other.numbers.batch)


# --- what can be moved --------------------------------------------------------------------------------------------


def movable(plan: Plan, loaded: LoadedSpec, max_gpus: int | None) -> tuple[Figure, ...]:
    """Figures of the cost model, and assumed figures of the request."""
    spec = loaded.spec
    hardware, _ = resolve_hardware(spec.cluster, spec.model.dtype, pack=spec.pack)
    stated = frozenset(a.name for a in plan.assumptions)
    figures = [*_rates(hardware, spec.model.dtype, stated), *_links(spec, hardware, stated)]
    if spec.workload.mode != "prefill":
        tokens = decode_context(spec)

        def at(factor: float) -> Moved:
            return Moved(context=max(2, round(tokens * factor)))

        figures.append(Figure(CONTEXT, f"{tokens} tokens", frozenset({CONTEXT}), at))
    for name in ("input", "output", "batch"):
        mine = stated & {f"workload.{name}"}
        value = getattr(spec.workload, name)
        if mine and value is not None:
            figures.append(Figure(f"workload.{name}", f"{value}", mine, partial(_with_work, loaded, name, value)))
    most = _bound(plan)
    if max_gpus is None and most is not None:
        searched = frozenset({_SEARCHED})
        figures.append(Figure(_SEARCHED, f"up to {most}", searched, lambda f: Moved(max_gpus=max(1, int(most * f)))))
    return tuple(figures)


def _rates(hardware: Hardware, dtype: str, stated: frozenset[str]) -> list[Figure]:
    def compute(factor: float) -> Moved:
        return Moved(replace(hardware, peaks={name: peak * factor for name, peak in hardware.peaks.items()}))

    def memory(factor: float) -> Moved:
        return Moved(replace(hardware, bandwidth=hardware.bandwidth * factor))

    peak = f"{hardware.peaks[dtype] / 1e12:,.4g} TFLOP/s {dtype} peak"
    streams = f"{hardware.bandwidth / 1e9:,.4g} GB/s peak"
    fitted = {"kernel efficiencies", "inherited efficiencies"}
    empty = f"{hardware.launch * 1e6:.3g} us of an empty kernel, the others as fitted"
    return [
        Figure("compute rate", peak, stated & _either("compute efficiency", fitted, stated), compute),
        Figure("HBM bandwidth", streams, stated & _either("bandwidth efficiency", fitted, stated), memory),
        Figure("kernel latency", empty, stated & fitted, partial(_with_latencies, hardware, _KERNELS)),
    ]


def _either(own: str, fitted: set[str], stated: frozenset[str]) -> set[str]:
    """The assumption that a rate rests on: an efficiency that was stated, else the fitted ones."""
    return {own} if own in stated else fitted


_KERNELS = (GemmParameters, PrefillParameters, DecodeParameters, ExpertParameters, StreamingParameters)
_ON_THE_LINK = (CollectiveParameters, ExchangeParameters)
_LATENCIES = ("latency_s", "hop_s", "direct_latency_s", "direct_hop_s", "second_s")


def _with_latencies(
    hardware: Hardware, kinds: tuple[type[Parameters], ...], factor: float, names: tuple[str, ...] = _LATENCIES
) -> Moved:
    """The hardware with fitted latencies of some operator classes times a factor."""

    def moved(fit: Fit) -> Fit:
        p = fit.parameters
        if not isinstance(p, kinds):
            return fit
        return replace(fit, parameters=replace(p, **{n: getattr(p, n) * factor for n in names if hasattr(p, n)}))

    fits = {key: moved(fit) for key, fit in hardware.calibration.fits.items()}
    return Moved(replace(hardware, calibration=replace(hardware.calibration, fits=fits)))


def _links(spec: Spec, hardware: Hardware, stated: frozenset[str]) -> list[Figure]:
    """Links that a group of the cluster's GPUs can use."""
    most = spec.cluster.gpus
    used = {
        "scale_up": hardware.domain > 1 and most != 1,
        "scale_out": most is None or most > hardware.domain,
    }
    figures = []
    for name in (n for n, is_used in used.items() if is_used):
        link: Link = getattr(hardware, name)
        told = {f"{name} bandwidth", f"cluster.{name}.bandwidth", f"{name} link"}
        if name == "scale_out":
            told |= {"network efficiency"}
        reached = f"{link.bandwidth / 1e9:.4g} GB/s reached"
        words = name.replace("_", "-")
        figures += [
            Figure(f"{words} bandwidth", reached, stated & told, partial(_with_link, hardware, name, "bandwidth")),
            Figure(
                f"{words} latency",
                f"{link.latency * 1e6:g} us" + _told_by(name, link),
                stated & {f"{name} latency"},
                partial(_with_link, hardware, name, "latency"),
            ),
        ]
    return figures


def _told_by(name: str, link: Link) -> str:
    """Where a latency that no file states comes from besides: those of collectives are fitted whole."""
    if link.stated_latency:
        return ""
    return ", collectives as fitted" if name == "scale_up" else ", expert exchanges as fitted"


def _with_link(hardware: Hardware, name: str, field: str, factor: float) -> Moved:
    """The hardware with a link's bandwidth or latency times a factor, and the fitted latencies that stand for it."""
    link: Link = getattr(hardware, name)
    if field == "bandwidth":
        moved = replace(link, bandwidth=link.bandwidth * factor, peak=link.peak * factor)
    else:
        moved = replace(link, latency=link.latency * factor)
        if not link.stated_latency:
            names = _LATENCIES if name == "scale_up" else ("network_latency_s",)
            hardware = _with_latencies(hardware, _ON_THE_LINK, factor, names).hardware or hardware
    both = {"scale_up": hardware.scale_up, "scale_out": hardware.scale_out, name: moved}
    return Moved(replace(hardware, scale_up=both["scale_up"], scale_out=both["scale_out"]))


def _with_work(loaded: LoadedSpec, name: str, value: int, factor: float) -> Moved:
    work = loaded.spec.workload.model_copy(update={name: max(1, round(value * factor))})
    return Moved(loaded=replace(loaded, spec=loaded.spec.model_copy(update={"workload": work})))


def _bound(plan: Plan) -> int | None:
    """GPUs up to which `nodes any` was searched, as the plan states it."""
    told = next((a.value for a in plan.assumptions if a.name == _SEARCHED), "")
    last = told.rpartition(" ")[2]
    return int(last) if last.isdigit() else None


def _confined(law: Law, deployments: Iterable[Deployment], *, is_moe: bool) -> tuple[Law, int]:
    """The law for the stage layouts of the given deployments only, and how many these are."""
    told = [(s, degrees_of(s, is_moe=is_moe)) for d in deployments for s in d.strategies]
    kinds = ["tp" if d.sp_on_tp else s.sp_kind or "allgather" for s, d in told]
    wanted = {
        (d.ranks, d.sp, d.tp, d.ep, d.etp, KIND_NAMES.index(kind)) for (_, d), kind in zip(told, kinds, strict=True)
    }

    def fits(layouts: Layouts) -> NDArray[np.bool_]:
        columns = (layouts.ranks, layouts.sp, layouts.tp, layouts.ep, layouts.etp, layouts.kind)
        rows = zip(*(c.tolist() for c in columns), strict=True)
        mine = np.fromiter((row in wanted for row in rows), dtype=bool, count=len(layouts))
        return np.asarray(mine & law.fits(layouts))

    return Law(fits, law.gpus), len(wanted)
