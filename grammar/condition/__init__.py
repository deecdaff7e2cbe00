"""Deployment condition files: Markdown, YAML or JSON to a spec, with every line of the file accounted for."""

from ._load import ConditionError, is_condition, load_condition_text

__all__ = ["ConditionError", "is_condition", "load_condition_text"]
