"""What a repair has to remove: the errors of a spec, by code and phase, memory included."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ....compiler.diagnostics import Span
from ....compiler.spec import LoadedSpec, Spec
from ....compiler.spec.strategy import Phase
from .._case import Case
from ..strategy import check_spec

MemoryCheck = Callable[[Spec], Iterable[Phase]]
"""Phases of a legal spec whose fullest GPU holds more than its memory."""

TIDY = frozenset({"PD204"})
"""Notes that `paradag fix` removes; nothing that a compilation need be stopped or changed for."""


@dataclass(frozen=True)
class Fault:
    """An error by its code; ``phase`` is None where it belongs to the spec as a whole."""

    code: str
    phase: Phase | None


class Judge:
    """Tells the faults of specs, each spec once."""

    def __init__(self, memory: MemoryCheck | None, *, tidy: bool) -> None:
        self._memory = memory
        self._tidy = TIDY if tidy else frozenset()
        self._known: dict[object, tuple[Fault, ...]] = {}
        self.met_memory = False
        """Whether any spec so far did not fit."""

    def faults(self, spec: Spec) -> tuple[Fault, ...]:
        """All faults in the order of stages. Memory is asked for only where nothing else is wrong."""
        key = (spec.strategies, spec.workload)
        if key not in self._known:
            self._known[key] = self._judge(spec)
        return self._known[key]

    def _judge(self, spec: Spec) -> tuple[Fault, ...]:
        checked, found = check_spec(_named_by_phase(spec), advised=False)
        faults = [Fault(d.code, _phase(d.span)) for d in found if d.is_error or d.code in self._tidy]
        if not any(d.is_error for d in found) and self._memory is not None:
            faults += [Fault("PD301", phase) for phase in self._memory(checked.spec)]
            self.met_memory |= bool(faults) and faults[-1].code == "PD301"
        return tuple(faults)


def as_written(spec: Spec, phase: Phase) -> Case:
    """A phase of a spec.

    Raises:
        KeyError: the phase has no strategy.
    """
    strategy = spec.strategy(phase)
    if strategy is None:
        raise KeyError(phase)
    return Case(LoadedSpec(spec), strategy)


def as_compiled(spec: Spec, phase: Phase) -> Case:
    """The same without what is left out of a compilation."""
    return as_written(check_spec(LoadedSpec(spec), advised=False)[0].spec, phase)


def _named_by_phase(spec: Spec) -> LoadedSpec:
    """The spec with places that tell no more than the phase."""
    return LoadedSpec(spec, {f"strategy.{s.phase}": Span(s.phase, 1, 1, 1, 1) for s in spec.strategies})


def _phase(span: Span | None) -> Phase | None:
    if span is None:
        return None
    return "prefill" if span.file == "prefill" else "decode"
