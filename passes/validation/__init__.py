"""Validation: legality of a strategy before anything is built, and of a graph after every pass."""

from ._graph_rules import GRAPH_RULES
from ._shape_rules import BLOCK_BOTH_WAYS, MAX_RING
from ._stages import balanced, heaviest, stage_layers
from ._work_rules import MAX_ITEMS
from .erasure import erase
from .flat import FLAT_RULES, check_flat, check_transfers
from .repair import repair
from .strategy import PHASE_RULES, SPEC_RULES, check_spec
from .verify import verify

__all__ = [
    "BLOCK_BOTH_WAYS",
    "FLAT_RULES",
    "GRAPH_RULES",
    "MAX_ITEMS",
    "MAX_RING",
    "PHASE_RULES",
    "SPEC_RULES",
    "balanced",
    "check_flat",
    "check_spec",
    "check_transfers",
    "erase",
    "heaviest",
    "repair",
    "stage_layers",
    "verify",
]
