"""The machines: accelerator, nodes and links. Bandwidths are bytes per second, per GPU and direction."""

from __future__ import annotations

from pydantic import Field

from ._base import SpecModel


class LinkSpec(SpecModel):
    """A link between GPUs (or to the host), seen from one GPU in one direction."""

    bandwidth: float | None = Field(default=None, gt=0)
    """Bytes per second; None takes the accelerator's."""
    latency: float | None = Field(default=None, ge=0)
    """Seconds per hop; None takes the default."""
    domain: int | None = Field(default=None, ge=1)
    """GPUs that the link joins (scale_up only); None means the accelerator's domain or one node."""


class AcceleratorSpec(SpecModel):
    """A chip: a catalogue entry by name, and whatever the file overrides.

    ``catalog`` is the catalogue's entry name or None for a chip that the file describes itself.
    """

    name: str
    catalog: str | None = None
    compute: dict[str, float] = Field(default_factory=dict)
    """Dense peak in FLOP/s per dtype name; the key ``"*"`` is a figure given without a dtype."""
    compute_efficiency: float | None = Field(default=None, gt=0, le=1)
    memory: float | None = Field(default=None, gt=0)
    """Bytes."""
    bandwidth: float | None = Field(default=None, gt=0)
    """HBM bytes per second."""
    bandwidth_efficiency: float | None = Field(default=None, gt=0, le=1)


class ClusterSpec(SpecModel):
    """``nodes`` machines of ``gpus_per_node`` GPUs; ``nodes`` None means as many as wanted."""

    accelerator: AcceleratorSpec
    nodes: int | None = Field(default=None, ge=1, le=1_000_000)
    gpus_per_node: int = Field(ge=1, le=100_000)
    scale_up: LinkSpec = LinkSpec()
    scale_out: LinkSpec = LinkSpec()
    host: LinkSpec = LinkSpec()

    @property
    def gpus(self) -> int | None:
        return None if self.nodes is None else self.nodes * self.gpus_per_node
