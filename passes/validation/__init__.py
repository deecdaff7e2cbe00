"""Validation: legality of a strategy before anything is built, and of a graph after every pass."""

from ._stages import stage_layers
from .erasure import erase
from .strategy import PHASE_RULES, SPEC_RULES, check_spec
from .verify import verify

__all__ = ["PHASE_RULES", "SPEC_RULES", "check_spec", "erase", "stage_layers", "verify"]
