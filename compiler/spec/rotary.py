"""Rotary position embedding: how fast each pair of features turns, which features form a pair."""

from __future__ import annotations

from math import log
from typing import Annotated, Literal

from pydantic import Field

from ._base import SpecModel

ROTARY_THETA = 10000.0
"""Base of the wavelengths where a model names none (RoFormer, arXiv 2104.09864)."""

MAX_LENGTH = 2**31 - 1


class YarnSpec(SpecModel):
    """YaRN (arXiv 2309.00071): slow pairs are stretched by ``factor``, fast ones kept, those between blended."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(ge=1, le=1e6)
    original: int = Field(ge=1, le=MAX_LENGTH)
    """Context length, in tokens, of the training before the stretch."""
    beta_fast: float = Field(default=32.0, gt=0, le=1e9)
    """Pairs that turn at least so often within ``original`` are kept."""
    beta_slow: float = Field(default=1.0, gt=0, le=1e9)
    """Pairs that turn at most so often are stretched fully."""
    mscale: float | None = Field(default=None, gt=0, le=1e3)
    mscale_all_dim: float | None = Field(default=None, gt=0, le=1e3)
    attention_factor: float | None = Field(default=None, gt=0, le=1e6)
    """Factor on the turned features; by default it follows from ``factor`` and the two ``mscale``."""
    truncate: bool = True
    """Whether the blend begins and ends at whole pairs."""

    @property
    def amplitude(self) -> float:
        """Factor on the turned features of queries and keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    @property
    def latent_score_factor(self) -> float:
        """Further factor on the scores of latent attention (DeepSeek-V3): squared, for queries and for keys."""
        return self._temperature(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _temperature(self, weight: float) -> float:
        return 0.1 * weight * log(self.factor) + 1.0


class Llama3Spec(SpecModel):
    """Llama 3.1 (arXiv 2407.21783): wavelengths beyond ``original / low_freq`` are stretched by ``factor``.

    Those within ``original / high_freq`` are kept, those between blended.
    """

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(ge=1, le=1e6)
    original: int = Field(ge=1, le=MAX_LENGTH)
    """Context length, in tokens, of the training before the stretch."""
    low_freq: float = Field(default=1.0, gt=0, le=1e6)
    high_freq: float = Field(default=4.0, gt=0, le=1e6)


class LinearSpec(SpecModel):
    """Position interpolation (arXiv 2306.15595): all positions divided by ``factor``."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(ge=1, le=1e6)


ScalingSpec = Annotated[YarnSpec | Llama3Spec | LinearSpec, Field(discriminator="kind")]


class RotarySpec(SpecModel):
    """Rotary embedding of queries and keys."""

    theta: float = Field(default=ROTARY_THETA, gt=1, le=1e15)
    style: Literal["half", "interleaved"] = "half"
    """Pairs are (i, i + width / 2), or (2i, 2i + 1)."""
    dim: int | None = Field(default=None, ge=2, le=MAX_LENGTH)
    """The first so many features of each head turn; None: all. Latent attention turns its ``rope_dim``."""
    scaling: ScalingSpec | None = None
