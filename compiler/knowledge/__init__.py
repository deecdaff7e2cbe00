"""The knowledge base as data: every rule with its header, its text and an example that breaks it."""

from ._rules import Applies, Example, FixKind, MalformedRule, Rule, Stage, nearest_codes, rules

__all__ = ["Applies", "Example", "FixKind", "MalformedRule", "Rule", "Stage", "nearest_codes", "rules"]
