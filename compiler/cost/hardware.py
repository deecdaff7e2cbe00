"""The cluster as numbers that the cost model uses: what the file says, else the catalogue, else stated defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..diagnostics import Diagnostic, DiagnosticError
from ..spec import Assumption, ClusterSpec, LinkSpec, Pack
from ..spec.catalog import DEFAULTS, CatalogEntry, CatalogLink, Defaults, accelerator


@dataclass(frozen=True)
class Link:
    """A link as one GPU sees it.

    Attributes:
        bandwidth: Bytes per second and direction that a large message reaches.
        latency: Seconds per hop.
    """

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Hardware:
    """One GPU and its links.

    Attributes:
        name: Accelerator.
        peaks: Dense FLOP/s per dtype, before efficiency.
        compute_efficiency: Share of the peak that a GEMM reaches.
        memory: Bytes per GPU.
        bandwidth: HBM bytes per second, before efficiency.
        bandwidth_efficiency: Share of it that a streaming kernel reaches.
        launch: Seconds per kernel.
        scale_up: Link inside the domain.
        scale_out: Link between domains.
        domain: GPUs of a scale-up domain.
        notes: Why a dtype is computed in another one, per dtype.
    """

    name: str
    peaks: Mapping[str, float]
    compute_efficiency: float
    memory: float
    bandwidth: float
    bandwidth_efficiency: float
    launch: float
    scale_up: Link
    scale_out: Link
    domain: int
    notes: Mapping[str, str] = field(default_factory=dict)

    def flops(self, dtype: str) -> float:
        """FLOP/s that a GEMM on operands of ``dtype`` reaches."""
        return self.peaks[dtype] * self.compute_efficiency

    @property
    def hbm(self) -> float:
        """Bytes per second that a streaming kernel reaches."""
        return self.bandwidth * self.bandwidth_efficiency


_QUANTIZED_TO_BF16 = ("fp8", "int8", "int4", "nvfp4", "mxfp4")


def resolve_hardware(
    cluster: ClusterSpec, dtype: str = "bf16", pack: Pack | None = None
) -> tuple[Hardware, list[Assumption]]:
    """Hardware figures of a cluster and every assumption that they rest on.

    Args:
        cluster: What the file says.
        dtype: The model's dtype: a compute figure given without a dtype is taken for this one.
        pack: Knowledge pack with accelerators, defaults and the memory to keep free.

    Raises:
        DiagnosticError: a needed figure is neither in the file nor in the catalogue (PD013).
    """
    chip = cluster.accelerator
    entry = accelerator(chip.catalog, pack) if chip.catalog else None
    defaults = pack.defaults if pack else DEFAULTS
    made: list[Assumption] = []
    peaks, notes = _peaks(cluster, entry, dtype, made)
    memory = chip.memory or (entry.memory if entry else None)
    bandwidth = chip.bandwidth or (entry.bandwidth if entry else None)
    if memory is None or bandwidth is None:
        raise _missing(chip.name, "memory" if memory is None else "bandwidth")
    reference: CatalogEntry | Defaults = entry or defaults
    efficiency = _given(made, "compute efficiency", chip.compute_efficiency, reference.compute_efficiency)
    streaming = _given(made, "bandwidth efficiency", chip.bandwidth_efficiency, reference.bandwidth_efficiency)
    network = reference.network_efficiency
    made.append(
        Assumption("network efficiency", f"{network:.0%}", "share of a link's bandwidth that a large message gets")
    )
    launch = reference.launch_overhead_s
    made.append(
        Assumption("launch overhead", f"{launch * 1e6:g} us per kernel", "launches replayed from a captured graph")
    )
    domain = cluster.scale_up.domain or _domain(cluster, entry)
    up = _link(
        "scale_up", cluster.scale_up, entry.scale_up if entry else None, defaults.scale_up_latency_s, network, made
    )
    out = _link(
        "scale_out", cluster.scale_out, entry.scale_out if entry else None, defaults.scale_out_latency_s, network, made
    )
    if up is None and out is None:
        if cluster.gpus != 1:
            raise _missing(chip.name, "link scale_up bandwidth")
        up = out = Link(bandwidth * streaming, 0.0)
    elif up is None or out is None:
        known, missing = ("scale_out", "scale_up") if up is None else ("scale_up", "scale_out")
        made.append(
            Assumption(f"{missing} link", f"as {known}", "neither the file nor the catalogue gives a bandwidth")
        )
    if pack is not None:
        memory, made = _by_pack(pack, chip.catalog, memory, made)
    hardware = Hardware(
        chip.name, peaks, efficiency, memory, bandwidth, streaming, launch,
        up or out, out or up, domain, notes,  # type: ignore[arg-type]
    )  # fmt: skip
    return hardware, made


def _peaks(
    cluster: ClusterSpec, entry: CatalogEntry | None, dtype: str, made: list[Assumption]
) -> tuple[dict[str, float], dict[str, str]]:
    chip = cluster.accelerator
    given = dict(chip.compute)
    unnamed = given.pop("*", None)
    if unnamed is not None:
        made.append(Assumption("compute peak dtype", dtype, "the compute figure names no dtype: taken as the model's"))
        given.setdefault(dtype, unnamed)
    peaks: dict[str, float] = {}
    notes: dict[str, str] = {}
    widest = given.get("bf16") or given.get("fp16")
    for name in ("bf16", "fp16", "fp32", *_QUANTIZED_TO_BF16):
        if name in given:
            peaks[name] = given[name]
        elif entry is not None:
            peak = entry.peak_flops(name)
            peaks[name] = peak.flops
            if peak.note:
                notes[name] = peak.note
        elif widest is not None:
            peaks[name] = widest
            notes[name] = f"no {name} peak given: arithmetic in bf16"
        elif given:
            # Only a quantized figure is known. Tensor units of every catalogued chip double per halved width.
            quantized, peak_flops = next(iter(given.items()))
            peaks[name] = peak_flops / 2 if name in ("bf16", "fp16", "fp32") else peak_flops
            notes[name] = f"no {name} peak given: derived from {quantized}" + (
                " / 2" if peaks[name] < peak_flops else ""
            )
    if not peaks:
        raise _missing(chip.name, "compute")
    return peaks, notes


def _domain(cluster: ClusterSpec, entry: CatalogEntry | None) -> int:
    """GPUs of a scale-up domain: a rack where the chip's links reach over nodes, else one node."""
    if entry is not None and entry.scale_up.domain and entry.scale_up.domain > entry.gpus_per_node:
        return max(entry.scale_up.domain, 1)
    return cluster.gpus_per_node


def _by_pack(pack: Pack, catalog: str | None, memory: float, made: list[Assumption]) -> tuple[float, list[Assumption]]:
    """The memory that the pack leaves to use, and the assumptions with the place in the pack that they come from."""
    cited = []
    for a in made:
        value = pack.cite(f"values.{_VALUE_OF.get(a.name, '')}")
        chip = pack.cite(f"accelerators.{catalog}") if a.name in _CHIP_FIGURES else None
        where = chip or value
        cited.append(Assumption(a.name, a.value, f"{a.why}; {where} says so") if where else a)
    reserve = pack.value("memory_reserve", 0.0)
    if reserve:
        cited.append(Assumption("memory reserve", f"{reserve:.0%}", f"{pack.cite('values.memory_reserve')} says so"))
    return memory * (1 - reserve), cited


_VALUE_OF = {
    "compute efficiency": "compute_efficiency",
    "bandwidth efficiency": "bandwidth_efficiency",
    "network efficiency": "network_efficiency",
    "launch overhead": "launch_overhead_s",
    "scale_up latency": "scale_up_latency_s",
    "scale_out latency": "scale_out_latency_s",
}
"""Names of assumptions to the pack's values that stand in."""

_CHIP_FIGURES = frozenset({"scale_up bandwidth", "scale_out bandwidth"})


def _given(made: list[Assumption], name: str, own: float | None, value: float) -> float:
    if own is not None:
        return own
    made.append(Assumption(name, f"{value:.0%}", "the file gives none"))
    return value


def _link(
    name: str,
    given: LinkSpec,
    catalogued: CatalogLink | None,
    default_latency: float,
    efficiency: float,
    made: list[Assumption],
) -> Link | None:
    bandwidth = given.bandwidth or (catalogued.bandwidth if catalogued else None)
    if bandwidth is None:
        return None
    latency = given.latency
    if latency is None:
        latency = catalogued.latency if catalogued else default_latency
        made.append(Assumption(f"{name} latency", f"{latency * 1e6:g} us", "the file gives none"))
    if given.bandwidth is None:
        made.append(
            Assumption(f"{name} bandwidth", f"{bandwidth / 1e9:g} GB/s", "from the accelerator's catalogue entry")
        )
    return Link(bandwidth * efficiency, latency)


def _missing(name: str, what: str) -> DiagnosticError:
    return DiagnosticError(
        [
            Diagnostic(
                "PD013",
                f"accelerator {name!r}: no {what} given, and it is not in the catalogue",
                expected=f"`{what}` in the accelerator or cluster block",
                help="add the figure, or name a catalogued accelerator (`paradag accelerators`)",
            )
        ]
    )
