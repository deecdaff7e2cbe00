"""Validation: legality of a strategy before anything is built, and of a graph after every pass."""

from ._graph_rules import GRAPH_RULES
from ._stages import stage_layers
from .erasure import erase
from .flat import FLAT_RULES, check_flat, check_transfers
from .repair import repair
from .strategy import PHASE_RULES, SPEC_RULES, check_spec
from .verify import verify

__all__ = [
    "FLAT_RULES",
    "GRAPH_RULES",
    "PHASE_RULES",
    "SPEC_RULES",
    "check_flat",
    "check_spec",
    "check_transfers",
    "erase",
    "repair",
    "stage_layers",
    "verify",
]
