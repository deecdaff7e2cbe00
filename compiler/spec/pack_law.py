"""The law of the stage as a spec's knowledge pack has it: degrees, ranks and GPUs of strategies, by name.

The built-in law stands in :mod:`.stage_law`. What a pack replaces is told in :class:`.pack.Law`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..diagnostics import Severity
from .catalog import accelerator
from .cluster import ClusterSpec
from .pack import Pack
from .source import Assumption
from .spec import Spec
from .stage_law import Degrees, degrees_of
from .strategy import Phase, StrategySpec

__all__ = [
    "broken",
    "degrees_in",
    "facts",
    "open_strategy",
    "scale_up_domain",
    "settled",
    "stated",
    "values_of",
    "whole",
]

Bools = NDArray[np.bool_]

_MOST = 2.0**53
"""Whole numbers up to here are exact in float64."""


def scale_up_domain(cluster: ClusterSpec, pack: Pack | None = None) -> int:
    """GPUs that the fast link joins: as given, one node, or a rack-wide fabric where the accelerator has one."""
    if cluster.scale_up.domain is not None:
        return cluster.scale_up.domain
    if cluster.accelerator.catalog is not None:
        entry = accelerator(cluster.accelerator.catalog, pack)
        if entry.scale_up.domain is not None and entry.scale_up.domain > entry.gpus_per_node:
            return entry.scale_up.domain
    return cluster.gpus_per_node


def facts(spec: Spec, phase: Phase, redundant: int = 0) -> dict[str, int]:
    """What formulas may read of model, cluster and phase, by the names of :data:`.pack.FACTS`."""
    model = spec.model
    return {
        "prefill": int(phase == "prefill"),
        "decode": int(phase == "decode"),
        "moe": int(model.moe is not None),
        "layers": model.layers.count,
        "heads": model.attention.heads,
        "kv_heads": model.attention.kv_heads,
        "experts": model.moe.experts if model.moe else 0,
        "top_k": model.moe.top_k if model.moe else 0,
        "redundant": redundant,
        "gpus_per_node": spec.cluster.gpus_per_node,
        "domain": scale_up_domain(spec.cluster, spec.pack),
    }


def stated(pack: Pack | None) -> tuple[Assumption, ...]:
    """What a pack replaces, to be told beside the assumptions: law, constraints and severities, each with its place."""
    if pack is None:
        return ()
    law = [
        Assumption(f"law of {k}", f.text, f"knowledge pack, {pack.cite(f'law.{k}')}") for k, f in pack.law.formulas()
    ]
    rules = [Assumption(c.message, c.formula.text, f"knowledge pack, {c.cite}") for c in pack.constraints]
    severities = [
        Assumption(f"severity of {code}", str(severity or "off"), f"knowledge pack, {pack.cite(f'rules.{code}')}")
        for code, severity in pack.severities.items()
    ]
    return (*law, *rules, *severities)


def degrees_in(spec: Spec, strategy: StrategySpec) -> Degrees:
    """Degrees of a strategy under the law of the spec's pack. EP counts only where there are experts.

    Where the law gives no whole positive number the built-in law's is taken, and rule PD046 tells of it.

    Raises:
        DiagnosticError: PD043, a formula divides by zero.
    """
    is_moe = spec.model.moe is not None
    if not is_moe and strategy.term("ep") is not None:
        chain = tuple(t for t in strategy.chain if t.name != "ep")
        strategy = strategy.model_copy(update={"chain": chain})
    plain = degrees_of(strategy, is_moe=is_moe)
    if spec.pack is None:
        return plain
    law, known = spec.pack.law, facts(spec, strategy.phase, plain.redundant)
    term = strategy.term("ep")
    etp, open_etp = plain.etp, is_moe and plain.ep > 1 and term is not None and term.etp is None
    if law.etp is not None and open_etp:
        etp = whole(law.etp({**known, "sp": plain.sp, "tp": plain.tp, "ep": plain.ep})) or plain.etp
    ranks = strategy.ranks or max(plain.sp * plain.tp, plain.ep * etp)
    if strategy.ranks is None and law.sets_ranks:
        side = {"sp": plain.sp, "tp": plain.tp, "ep": plain.ep, "etp": etp}
        ranks = whole(law.stage_ranks({**known, **side})) or ranks
    found = replace(plain, etp=etp, ranks=ranks)
    gpus = whole(law.phase_gpus(values_of(spec, strategy, found)))
    return replace(found, idle=max(0, gpus - found.gpus)) if gpus else found


def whole(value: Any) -> int | None:
    """The value as a whole positive number, or None where it is none."""
    number = float(value)
    if not 1 <= number <= _MOST or number != np.rint(number):
        return None
    return int(number)


def values_of(spec: Spec, strategy: StrategySpec, degrees: Degrees) -> Mapping[str, int]:
    """Everything that formulas may read of a strategy, by name: :data:`.pack.DEGREES` and :data:`.pack.FACTS`."""
    d = degrees
    return {
        **facts(spec, strategy.phase, d.redundant),
        **{name: getattr(d, name) for name in ("dp", "pp", "sp", "tp", "ep", "etp", "adp", "edp", "ranks", "gpus")},
        "microbatches": strategy.microbatches,
        "chunk": strategy.chunk or 0,
        "batch": spec.workload.batch or 0,
    }


def broken(pack: Pack, values: Mapping[str, Any], judged: Collection[str] = ()) -> dict[str, Bools]:
    """Which of many strategies the pack's law and constraints refuse, by the place that does: ``pack.toml:7``.

    Only conditions that read nothing but ``values`` are asked, and of those only what reads more than was ``judged``
    before; so a planner can ask for layouts first and for whole strategies later. Constraints that are no errors
    refuse nothing.

    Args:
        pack: The pack.
        values: Arrays or numbers by the names of :data:`.pack.DEGREES` and :data:`.pack.FACTS`.
        judged: Names that were there when it was last asked.

    Raises:
        DiagnosticError: PD043, a formula divides by zero.
    """
    found: dict[str, Bools] = {}
    shape = np.broadcast_shapes(*(np.shape(v) for v in values.values()))
    law, have, old = pack.law, frozenset(values), frozenset(judged)

    def told(key: str, names: frozenset[str], refused: Callable[[], Any]) -> None:
        if names <= have and not (old and names <= old):
            found[key] = np.broadcast_to(np.asarray(refused(), dtype=bool), shape) | found.get(key, False)

    if law.sets_ranks:
        formula, key = (law.ranks, "ranks") if law.ranks is not None else (law.gpus, "gpus")
        assert formula is not None
        names = (formula.names - {"dp", "pp"}) | {"ranks"}
        told(_place(pack, key), names, lambda: law.stage_ranks(values) != values["ranks"])
    if law.gpus is not None:
        names = law.gpus.names | {"dp", "pp", "ranks"}
        told(_place(pack, "gpus"), names, lambda: _too_few(law.phase_gpus(values), values))
    for constraint in pack.constraints:
        if constraint.severity is Severity.ERROR:
            told(constraint.cite, constraint.formula.names, lambda c=constraint: ~c.formula(values))  # type: ignore[misc]
    return found


def _place(pack: Pack, key: str) -> str:
    span = pack.law.span(key)
    return f"{span.file}:{span.line}" if span else pack.path


def _too_few(gpus: Any, values: Mapping[str, Any]) -> Any:
    return (gpus < values["dp"] * values["pp"] * values["ranks"]) | (gpus != np.rint(gpus))


def settled(spec: Spec, strategy: StrategySpec) -> StrategySpec:
    """The strategy with what the pack's law decides written out, so that it means the same without the pack."""
    if spec.pack is None:
        return strategy
    law, degrees = spec.pack.law, degrees_in(spec, strategy)
    update: dict[str, Any] = {"ranks": degrees.ranks} if law.sets_ranks else {}
    if law.etp is not None and spec.model.moe is not None and degrees.ep > 1:
        update["chain"] = tuple(
            t.model_copy(update={"etp": degrees.etp}) if t.name == "ep" else t for t in strategy.chain
        )
    return strategy.model_copy(update=update)


def open_strategy(spec: Spec, strategy: StrategySpec) -> StrategySpec:
    """The strategy without the ranks that the pack's law decides, so that another degree can take its course."""
    if spec.pack is None or not spec.pack.law.sets_ranks:
        return strategy
    return strategy.model_copy(update={"ranks": None})
