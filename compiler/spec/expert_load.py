"""A measured load of the experts: how the tokens of a deployment fall on them, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ExpertLoad:
    """Loads of the experts of some layers.

    Attributes:
        name: Name of the file.
        layers: Layers with a load, ascending.
        shares: [layers, experts] share of a layer's routed tokens that go to each expert; every row sums to 1.
    """

    name: str
    layers: tuple[int, ...]
    shares: NDArray[np.float64]
