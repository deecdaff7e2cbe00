"""The knowledge pack that a plan was made under: what it replaces, with its places."""

from __future__ import annotations

from ...spec.pack import Pack
from ._format import table


def pack_rules(pack: Pack | None) -> dict[str, str]:
    """What the pack says at each of its places, ``pack.toml:7``."""
    if pack is None:
        return {}
    told = {}
    for key, formula in pack.law.formulas():
        span = pack.law.span(key)
        if span is not None:
            told[f"{span.file}:{span.line}"] = f"GPU-count law: {key} = `{formula.text}`"
    for constraint in pack.constraints:
        told[constraint.cite] = f"{constraint.name}: {constraint.message} (`{constraint.formula.text}`)"
    return told


def pack_lines(pack: Pack | None) -> list[str]:
    """The pack's law and constraints as a table; nothing without a pack."""
    if pack is None:
        return []
    rows = [*pack_rules(pack).items()]
    rows += [(pack.path, f"{code} is {severity or 'off'}") for code, severity in sorted(pack.severities.items())]
    rows += [(pack.path, f"{name} = {value:g}") for name, value in sorted(pack.values.items())]
    if not rows:
        return [f"The knowledge pack {pack.path} replaces no rule.", ""]
    return [
        f"The knowledge pack {pack.path} holds in place of the built-in rules:",
        "",
        *table(("place", "rule"), rows),
    ]
