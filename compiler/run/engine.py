"""What runs a graph's ranks: all in this process, or each in one of its own."""

from __future__ import annotations

from typing import Literal, Protocol

from ..ir.unrolled import Unrolled
from .executor import Executor, Fleet
from .records import Inputs
from .weights import Weights

EngineName = Literal["numpy", "torch"]


class Engine(Protocol):
    """Makes executors, and says what they run on."""

    @property
    def name(self) -> EngineName:
        """Its name."""
        ...

    @property
    def backend(self) -> str:
        """What carries data from process to process, empty where there is but one."""
        ...

    @property
    def processes(self) -> int:
        """Processes that the ranks are spread over."""
        ...

    def __call__(self, unrolled: Unrolled, weights: Weights, fleet: Fleet, inputs: Inputs) -> Executor:
        """An executor for one graph."""
        ...


class NumpyEngine:
    """All ranks in this process, one store each."""

    name: EngineName = "numpy"
    backend = ""
    processes = 1

    def __call__(self, unrolled: Unrolled, weights: Weights, fleet: Fleet, inputs: Inputs) -> Executor:
        """An executor for one graph."""
        return Executor(unrolled, weights, fleet, inputs)
