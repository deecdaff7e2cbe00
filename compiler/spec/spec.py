"""The whole request."""

from __future__ import annotations

from pydantic import Field, InstanceOf

from ._base import SpecModel
from .cluster import ClusterSpec
from .model import ModelSpec
from .pack import Pack
from .strategy import Phase, StrategySpec
from .workload import WorkloadSpec


class Spec(SpecModel):
    """Model, cluster, workload and at most one strategy per phase."""

    model: ModelSpec
    cluster: ClusterSpec
    workload: WorkloadSpec
    strategies: tuple[StrategySpec, ...] = ()
    """Prefill first, at most one per phase."""
    pack: InstanceOf[Pack] | None = Field(default=None, exclude=True, repr=False)
    """The knowledge that it is judged by; None is the knowledge base alone."""

    def strategy(self, phase: Phase) -> StrategySpec | None:
        return next((s for s in self.strategies if s.phase == phase), None)
