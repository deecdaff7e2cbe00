"""The cluster as numbers that the cost model uses: what the file says, else the catalogue, else stated defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..diagnostics import Diagnostic, DiagnosticError
from ..spec import Assumption, ClusterSpec, LinkSpec, Pack
from ..spec.calibration import Calibration
from ..spec.catalog import DEFAULTS, CatalogEntry, CatalogLink, Defaults, accelerator
from ..spec.inheritance import Library, calibrated, shipped


@dataclass(frozen=True)
class Link:
    """A link as one GPU sees it.

    Attributes:
        bandwidth: Bytes per second and direction that a large message reaches.
        latency: Seconds per hop.
        peak: Bytes per second and direction, datasheet.
        stated_latency: Whether the file states the latency, so that it replaces fitted ones.
    """

    bandwidth: float
    latency: float
    peak: float
    stated_latency: bool = False


@dataclass(frozen=True)
class Hardware:
    """One GPU, its links and what kernels reach of them.

    Attributes:
        name: Accelerator.
        peaks: Dense FLOP/s per dtype, before efficiency.
        memory: Bytes per GPU.
        bandwidth: HBM bytes per second, before efficiency.
        scale_up: Link inside the domain.
        scale_out: Link between domains.
        domain: GPUs of a scale-up domain.
        calibration: Parameter sets of every operator class, complete.
        compute_efficiency: Share of the peak that the file states for every product, or None: fitted figures.
        bandwidth_efficiency: Share of the HBM bandwidth that the file states, or None: fitted figures.
        graphs: Whether launches are replayed from a captured graph.
        skew: Exponent of the power law of the expert load; 0 is uniform.
        block_scales: Whether fp8 weights carry a scale per 128 x 128 block (DeepSeek), not one per tensor or channel.
        notes: Why a dtype is computed in another one, per dtype.
    """

    name: str
    peaks: Mapping[str, float]
    memory: float
    bandwidth: float
    scale_up: Link
    scale_out: Link
    domain: int
    calibration: Calibration
    compute_efficiency: float | None = None
    bandwidth_efficiency: float | None = None
    graphs: bool = True
    skew: float = 0.0
    block_scales: bool = True
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """Multiprocessors, compute units or cores that tiles are dealt to."""
        return self.calibration.units

    def variant(self, dtype: str) -> str:
        """Which of a class's parameter sets serves weights of that format."""
        if dtype == "fp8" and self.block_scales:
            return "fp8_block"
        return "bf16" if dtype in ("fp16", "fp32") else dtype

    @property
    def launch(self) -> float:
        """Seconds of an empty kernel."""
        return self.calibration.streaming.latency_s

    @property
    def issue(self) -> float:
        """Seconds that a kernel takes at least because the host has to issue it; 0 with captured graphs."""
        return 0.0 if self.graphs else self.calibration.launch.issue_s


_QUANTIZED_TO_BF16 = ("fp8", "int8", "int4", "nvfp4", "mxfp4")


def resolve_hardware(
    cluster: ClusterSpec,
    dtype: str = "bf16",
    engine: str | None = None,
    *,
    pack: Pack | None = None,
    calibration: Library | None = None,
    graphs: bool = True,
    skew: float = 0.0,
    block_scales: bool = True,
) -> tuple[Hardware, list[Assumption]]:
    """Hardware figures of a cluster and every assumption that they rest on.

    Args:
        cluster: What the file says.
        dtype: The model's dtype: a compute figure given without a dtype is taken for this one.
        engine: Whose kernels to expect: ``vllm``, ``trtllm``, ``sglang``; None takes the chip's default.
        pack: Knowledge pack with accelerators, defaults and the memory to keep free.
        calibration: Fitted figures to use; default those that paradag ships.
        graphs: Whether launches are replayed from a captured graph.
        skew: Exponent of the power law of the expert load; 0 is uniform.
        block_scales: Whether fp8 weights carry a scale per 128 x 128 block, as legality takes them.

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
    library = shipped() if calibration is None else calibration
    fitted = calibrated(library, chip.name, entry, engine, made, dtype)
    compute = _stated("compute efficiency", chip.compute_efficiency, pack, "tile and wave effects", made)
    streaming = _stated("bandwidth efficiency", chip.bandwidth_efficiency, pack, "saturation effects", made)
    up, out = _links(cluster, entry, fitted, bandwidth, defaults, made)
    if block_scales and dtype == "fp8":
        made.append(Assumption("fp8 scales", "one per 128 x 128 block", "as legality takes them; kernels of that kind"))
    if not graphs:
        made.append(Assumption("launches", "eager", f"{fitted.launch.issue_s * 1e6:.3g} us of the host per kernel"))
    if pack is not None:
        memory, made = _by_pack(pack, chip.catalog, memory, made)
    hardware = Hardware(
        name=chip.name,
        peaks=peaks,
        memory=memory,
        bandwidth=bandwidth,
        scale_up=up,
        scale_out=out,
        domain=cluster.scale_up.domain or _domain(cluster, entry),
        calibration=fitted,
        compute_efficiency=compute,
        bandwidth_efficiency=streaming,
        graphs=graphs,
        skew=skew,
        block_scales=block_scales,
        notes=notes,
    )
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
    "scale_up latency": "scale_up_latency_s",
    "scale_out latency": "scale_out_latency_s",
}
"""Names of assumptions to the pack's values that stand in."""

_CHIP_FIGURES = frozenset({"scale_up bandwidth", "scale_out bandwidth"})


def _stated(name: str, own: float | None, pack: Pack | None, instead: str, made: list[Assumption]) -> float | None:
    """The efficiency that the file states, else the pack's; None leaves it to the fitted figures."""
    value, whose = own, "the file's"
    if own is None and pack is not None:
        value, whose = pack.values.get(_VALUE_OF[name]), "the pack's"
    if value is not None:
        why = f"{whose} figure, in place of fitted efficiencies and {instead}"
        made.append(Assumption(name, f"{value:.0%}", why))
    return value


def _links(
    cluster: ClusterSpec,
    entry: CatalogEntry | None,
    fitted: Calibration,
    memory: float,
    defaults: Defaults,
    made: list[Assumption],
) -> tuple[Link, Link]:
    """Both links; where one has no bandwidth it is taken to be the other."""
    near = fitted.collective("p2p").efficiency
    far = entry.network_efficiency if entry else defaults.network_efficiency
    given = (cluster.scale_up, cluster.scale_out)
    up = _link("scale_up", given[0], entry.scale_up if entry else None, defaults.scale_up_latency_s, near, made)
    out = _link("scale_out", given[1], entry.scale_out if entry else None, defaults.scale_out_latency_s, far, made)
    if up is None and out is None:
        if cluster.gpus != 1:
            raise _missing(cluster.accelerator.name, "link scale_up bandwidth")
        only = Link(memory, 0.0, memory)
        return only, only
    if up is None or out is None:
        known, missing = ("scale_out", "scale_up") if up is None else ("scale_up", "scale_out")
        made.append(
            Assumption(f"{missing} link", f"as {known}", "neither the file nor the catalogue gives a bandwidth")
        )
    if out is not None:
        made.append(
            Assumption("network efficiency", f"{far:.0%}", "share of a scale-out link that a large message gets")
        )
    return up or out, out or up  # type: ignore[return-value]


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
    return Link(bandwidth * efficiency, latency, bandwidth, given.latency is not None)


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
