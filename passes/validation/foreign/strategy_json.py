"""Everything that can be said of a strategy file in JSON that paradag did not write."""

from __future__ import annotations

from ....compiler.diagnostics import Diagnostic, Span
from ._claims import DIMENSIONS, Claims, claims_of
from ._json_text import read_json
from ._strategy_checks import CHECKS

__all__ = ["check_strategy_json"]

_MAX_SHOWN = 12


def check_strategy_json(text: str, file: str) -> list[Diagnostic]:
    """Findings on a strategy file of any shape.

    Args:
        text: The file's text.
        file: The name that spans carry.

    Returns:
        What contradicts the law of the stage, the model's sizes, the memory or itself, and a note of the keys that were
        understood (PD756). A key that is not understood leads to no finding.
    """
    json_text = read_json(text, file)
    found = list(json_text.findings)
    claims = claims_of(json_text)
    if not claims.degrees and not claims.numbers:
        if not found or json_text.leaves:
            found.append(
                Diagnostic(
                    "PD751",
                    "no parallel degree, GPU count or model size was understood",
                    Span(file, 1, 1, 1, 2),
                    "keys such as `tp`, `pipeline_parallel_size`, `total_gpus`, `layers`",
                )
            )
        return found
    for check in CHECKS:
        found += check(claims)
    found.append(_understood(claims))
    return list(dict.fromkeys(found))


def _understood(claims: Claims) -> Diagnostic:
    """The keys that were read, so that silence on the others is no surprise."""
    degrees = [
        f"{phase + ' ' if phase else ''}{d} {claims.degrees[phase, d][0].value:g}"
        for phase in ("", "prefill", "decode")
        for d in DIMENSIONS
        if (phase, d) in claims.degrees
    ]
    facts = [
        f"{what.replace('_', ' ')} {values[0].value:g}" for what, values in claims.numbers.items() if what != "percent"
    ]
    shown = [*degrees, *facts]
    more = f" and {len(shown) - _MAX_SHOWN} more" if len(shown) > _MAX_SHOWN else ""
    count = f"{len(claims.understood)} of {len(claims.text.leaves)} values"
    text = f"understood {count}: {', '.join(shown[:_MAX_SHOWN])}{more}"
    return Diagnostic("PD756", text, claims.text.place(claims.understood[0]))
