"""The whole request."""

from __future__ import annotations

from ._base import SpecModel
from .cluster import ClusterSpec
from .model import ModelSpec
from .strategy import Phase, StrategySpec
from .workload import WorkloadSpec


class Spec(SpecModel):
    """Model, cluster, workload and at most one strategy per phase."""

    model: ModelSpec
    cluster: ClusterSpec
    workload: WorkloadSpec
    strategies: tuple[StrategySpec, ...] = ()
    """Prefill first, at most one per phase."""

    def strategy(self, phase: Phase) -> StrategySpec | None:
        return next((s for s in self.strategies if s.phase == phase), None)
