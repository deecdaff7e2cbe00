"""The planner: the best strategy for a deployment condition, exactly and over arrays."""

from .question import Progress
from .result import OBJECTIVES, Deployment, Miss, Numbers, Objective, PhaseCounts, Plan
from .search import find_plan
from .space import Bounds, Law

__all__ = [
    "OBJECTIVES",
    "Bounds",
    "Deployment",
    "Law",
    "Miss",
    "Numbers",
    "Objective",
    "PhaseCounts",
    "Plan",
    "Progress",
    "find_plan",
]
