"""The planner: the best strategy for a deployment condition, exactly and over arrays."""

from .result import OBJECTIVES, Deployment, Miss, Numbers, Objective, PhaseCounts, Plan
from .search import find_plan
from .space import Bounds, Law
from .tabulate import Progress

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
