"""The fixed order of the four lowering passes."""

from __future__ import annotations

from .ep import LowerEp
from .pp import LowerPp
from .sp import LowerSp
from .tp import LowerTp

LoweringPass = LowerPp | LowerSp | LowerEp | LowerTp


def lowering_sequence(stages: tuple[int, ...]) -> tuple[LoweringPass, ...]:
    """PP, SP, EP, TP for a pipeline with so many layers in each stage."""
    return LowerPp(stages), LowerSp(), LowerEp(), LowerTp()
