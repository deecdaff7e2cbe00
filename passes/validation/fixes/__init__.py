"""Repair of strategies: the smallest safe change of a file that makes it legal, or none.

A repair changes the text at its places and nothing else. Its result is read and judged again before it counts, memory
included; a spec that cannot be made legal as a whole stays as it is. The order of preference: insert what is missing,
reduce a degree, change the kind of parallelism; the workload is reduced only where that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ....compiler.diagnostics import Diagnostic, DiagnosticError, Fix, Outcome, Severity
from ....compiler.spec import LoadedSpec
from ....grammar import load_text, print_spec
from ..strategy import check_spec
from ._capacity import memory_reports, over_memory
from ._faults import Judge, MemoryCheck
from ._search import REPAIRS, Search
from ._steps import Step
from ._text import blocks, patch

__all__ = ["REPAIRS", "Fixed", "MemoryCheck", "as_repaired", "fix_spec", "memory_reports", "over_memory"]


@dataclass(frozen=True)
class Fixed:
    """What became of a spec.

    Attributes:
        outcome: VALID (nothing to do), FIXED, or REJECTED (then everything is as it was).
        loaded: The repaired spec. Places and texts remain those of the file as it is.
        text: The repaired text; of a spec that has none in the strategy language its canonical text.
        fixes: Repairs, each with the exact text before and after.
        repaired: Errors of the file that are no more, as warnings that say what was done.
        diagnostics: Findings that remain.
        proposals: Of a REJECTED one: fixes that would help, but reduce the workload.
    """

    outcome: Outcome
    loaded: LoadedSpec
    text: str
    fixes: tuple[Fix, ...] = ()
    repaired: tuple[Diagnostic, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    proposals: tuple[Fix, ...] = ()


def fix_spec(
    loaded: LoadedSpec, *, memory: MemoryCheck | None = None, workload: bool = False, tidy: bool = False
) -> Fixed:
    """Repair the strategies of a spec.

    Args:
        loaded: The spec and, where it has one, its text.
        memory: Tells the phases that do not fit, as :func:`over_memory` does; None leaves memory unasked.
        workload: Whether the batch may be reduced where nothing else helps.
        tidy: Whether notes with a repair (SP in decode) count as faults.
    """
    _, found = check_spec(loaded)
    rejected = Fixed(Outcome.REJECTED, loaded, _text(loaded), diagnostics=(*loaded.diagnostics, *found))
    judge = Judge(memory, tidy=tidy)
    faults = judge.faults(loaded.spec)
    if not faults:
        return replace(rejected, outcome=Outcome.VALID)
    if any(d.is_error and d.code not in REPAIRS for d in found):
        return rejected
    editable = _editable(loaded)
    if editable is None:
        return rejected
    result = _repaired(editable, judge, workload=False)
    if result is None:
        result = _repaired(editable, judge, workload=True) if judge.met_memory else None
        if result is None or not workload:
            return rejected if result is None else replace(rejected, proposals=result[1])
    fixed, fixes = result
    codes = {f.code for f in faults}
    repaired = tuple(as_repaired(d, fixes) for d in found if d.is_error or (tidy and d.code in codes))
    shown = _with_places(fixed, loaded)
    _, remaining = check_spec(shown)
    (text,) = fixed.texts.values()
    return Fixed(Outcome.FIXED, shown, text, fixes, repaired, (*shown.diagnostics, *remaining))


def as_repaired(diagnostic: Diagnostic, fixes: Sequence[Fix]) -> Diagnostic:
    """A finding that is no more, as a warning (a note stays one) with what was done about it."""
    own = [f for f in fixes if f.rule == diagnostic.code] or fixes
    done = ", ".join(dict.fromkeys(_shown(f) for f in own))
    severity = Severity.WARNING if diagnostic.is_error else diagnostic.severity
    return replace(diagnostic, severity=severity, help=f"repaired: {done}")


def _repaired(loaded: LoadedSpec, judge: Judge, *, workload: bool) -> tuple[LoadedSpec, tuple[Fix, ...]] | None:
    """The repaired text, read again, and its fixes."""
    steps = Search(judge, blocks(loaded), workload=workload).run(loaded.spec)
    written = None if steps is None else _written(loaded, steps)
    return None if written is None or judge.faults(written[0].spec) else written


def _written(loaded: LoadedSpec, steps: Sequence[Step]) -> tuple[LoadedSpec, tuple[Fix, ...]] | None:
    """The steps done in the text one by one; None where the text does not read as it should."""
    fixes: list[Fix] = []
    for step in steps:
        wanted = step.apply(loaded.spec)
        try:
            patched = patch(loaded, wanted)
            loaded = _reload(loaded, patched.text)
        except (LookupError, DiagnosticError):
            return None
        if loaded.spec != wanted:
            return None
        fixes += (Fix(step.rule, before, after) for before, after in patched.changes)
    return loaded, tuple(fixes)


def _editable(loaded: LoadedSpec) -> LoadedSpec | None:
    """The spec with a text in the strategy language: its own, or the canonical one."""
    for text in (*loaded.texts.values(), print_spec(loaded.spec)):
        try:
            again = _reload(loaded, text)
        except DiagnosticError:
            continue
        if again.spec == loaded.spec:
            return again
    return None


def _reload(loaded: LoadedSpec, text: str) -> LoadedSpec:
    file = next(iter(loaded.texts), "<text>")
    return load_text(text, file, Path(file).parent, loaded.pack)


def _text(loaded: LoadedSpec) -> str:
    return next(iter(loaded.texts.values()), "") or print_spec(loaded.spec)


def _with_places(fixed: LoadedSpec, loaded: LoadedSpec) -> LoadedSpec:
    """The repaired spec with places, texts and assumptions of the file; places of the chain by name only."""
    told = {(d.code, d.message) for d in fixed.diagnostics}
    return replace(
        loaded,
        spec=fixed.spec,
        sources={path: span for path, span in loaded.sources.items() if ".chain." not in path},
        diagnostics=tuple(d for d in loaded.diagnostics if (d.code, d.message) in told),
    )


def _shown(fix: Fix) -> str:
    return f"`{fix.before}` -> `{fix.after}`" if fix.after else f"`{fix.before}` removed"
