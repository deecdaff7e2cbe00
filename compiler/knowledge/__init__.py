"""The knowledge base as data: every rule with its header, its text and an example that breaks it.

Packs that replace parts of it are read by :mod:`.pack`, which is imported on its own: rules alone need less.
"""

from ._rules import Applies, Example, FixKind, MalformedRule, Rule, Stage, nearest_codes, rules

__all__ = [
    "Applies",
    "Example",
    "FixKind",
    "MalformedRule",
    "Rule",
    "Stage",
    "nearest_codes",
    "rules",
]
