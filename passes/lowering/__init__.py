"""Lowering: PP, SP, EP, TP, in this order, each giving nodes its axis and letting placements demand the collectives."""

from .ep import LowerEp
from .pp import LowerPp
from .resolve import resolve
from .sequence import LoweringPass, lower_at_once, lowering_sequence
from .sp import LowerSp
from .tp import LowerTp

__all__ = ["LowerEp", "LowerPp", "LowerSp", "LowerTp", "LoweringPass", "lower_at_once", "lowering_sequence", "resolve"]
