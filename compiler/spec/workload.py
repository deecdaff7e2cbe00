"""The work: sequences in flight, their lengths and what is required of the service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ._base import SpecModel
from .model import MAX_SIZE


class Requirements(SpecModel):
    """Service-level requirements; None where the file asks for nothing."""

    ttft: float | None = Field(default=None, gt=0)
    """Seconds, at most."""
    tpot: float | None = Field(default=None, gt=0)
    """Seconds, at most."""
    throughput: float | None = Field(default=None, gt=0)
    """Generated tokens per second over all replicas, at least."""
    throughput_per_gpu: float | None = Field(default=None, gt=0)
    """Generated tokens per second and GPU, at least."""


class WorkloadSpec(SpecModel):
    """``batch`` counts sequences in flight over all DP replicas."""

    batch: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    input: int = Field(ge=1, le=MAX_SIZE)
    """Prompt tokens per sequence."""
    output: int = Field(default=1, ge=1, le=MAX_SIZE)
    """Generated tokens per sequence."""
    sequence: tuple[int, int] | None = None
    """Shortest and longest sequence, where the file gives a range."""
    rate: float | None = Field(default=None, gt=0)
    """Requests per second."""
    mode: Literal["both", "prefill", "decode", "mixed"] = "both"
    require: Requirements = Requirements()
