"""The catalogues of accelerators and models: data in TOML, typed on the way out.

Accelerator figures are vendor peaks for dense operands. What kernels reach of them is fitted on measurements and lies
in calibration.json (:mod:`.inheritance`); for what was never measured the assumptions in :data:`DEFAULTS` stand in,
and whoever uses one must say so.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..diagnostics import Diagnostic, DiagnosticError
from .dtypes import DTYPES
from .model import ModelSpec

if TYPE_CHECKING:
    from .pack import Pack

__all__ = [
    "DEFAULTS",
    "CatalogEntry",
    "CatalogLink",
    "Defaults",
    "PeakFlops",
    "accelerator",
    "accelerator_names",
    "accelerator_rows",
    "catalogue",
    "model",
    "model_names",
]


@dataclass(frozen=True)
class Defaults:
    """Assumptions for what no datasheet says and nobody measured."""

    network_efficiency: float = 0.80
    """Share of a scale-out link's bandwidth that a large message reaches."""
    scale_up_latency_s: float = 2e-6
    scale_out_latency_s: float = 6e-6
    host_latency_s: float = 5e-6


DEFAULTS = Defaults()


@dataclass(frozen=True)
class CatalogLink:
    """A link as one chip sees it, in one direction."""

    name: str
    bandwidth: float | None
    """Bytes per second; None where no source gives a figure."""
    latency: float
    """Seconds per hop."""
    domain: int | None = None
    """Chips that the link can join at most; None for no bound of its own."""


@dataclass(frozen=True)
class PeakFlops:
    """A compute peak and the format whose unit really does the arithmetic."""

    flops: float
    """Dense FLOP/s."""
    dtype: str
    note: str | None = None
    """Why ``dtype`` is not the format that was asked for; an assumption to print."""


class _Peaks(dict[str, float]):
    """Peaks by format that nobody changes. They travel to other processes, which a mapping proxy does not."""

    def __setitem__(self, key: str, value: float) -> None:
        raise TypeError("the peaks of a catalogued accelerator are fixed")

    def __reduce__(self) -> tuple[type[_Peaks], tuple[dict[str, float]]]:
        return _Peaks, (dict(self),)


@dataclass(frozen=True)
class CatalogEntry:
    """One accelerator: datasheet figures and links. :func:`.inheritance.calibrated` has what kernels reach of them."""

    name: str
    vendor: str
    architecture: str
    compute_capability: str
    peaks: Mapping[str, float]
    """Dense FLOP/s by operand format, for formats that the chip multiplies natively."""
    memory: float
    """Bytes."""
    bandwidth: float
    """HBM bytes per second."""
    gpus_per_node: int
    scale_up: CatalogLink
    scale_out: CatalogLink
    """The chip's share of the node's network cards."""
    host: CatalogLink
    confidence: str
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()
    units: int | None = None
    """Streaming multiprocessors or compute units, which tiles of a product are dealt to; None where sources differ."""
    network_efficiency: float = DEFAULTS.network_efficiency

    def peak_flops(self, dtype: str) -> PeakFlops:
        """Dense peak for operands stored as ``dtype``.

        A format without a unit of its own is widened to bf16 before it is multiplied (weight-only quantization), and so
        is one whose unit is slower than the bf16 unit: the weights stay small in memory, the arithmetic is bf16.

        Raises:
            DiagnosticError: PD016, where ``dtype`` is no format that paradag knows.
        """
        if dtype not in DTYPES:
            raise _unknown("dtype", dtype, DTYPES)
        bf16 = self.peaks["bf16"]
        own = self.peaks.get(dtype)
        if own is not None and own >= bf16:
            return PeakFlops(own, dtype)
        if dtype == "fp32":
            why = "no fp32 peak in the catalogue: bf16 peak taken, which is optimistic"
        elif own is not None:
            why = f"the {dtype} unit is slower than bf16: {dtype} in memory, arithmetic in bf16"
        else:
            why = f"no native {dtype} peak: {dtype} in memory, arithmetic in bf16"
        return PeakFlops(bf16, "bf16", f"{self.name}: {why}")


def accelerator_names(pack: Pack | None = None) -> tuple[str, ...]:
    """Names of all catalogued accelerators, in the catalogue's order; a knowledge pack may know more."""
    return tuple(pack.accelerators if pack else _accelerators())


def accelerator(name: str, pack: Pack | None = None) -> CatalogEntry:
    """The catalogue entry called ``name``, as a knowledge pack has it where one is given.

    Raises:
        DiagnosticError: PD016 with the nearest names, where there is none.
    """
    entries = pack.accelerators if pack else _accelerators()
    if name not in entries:
        raise _unknown("accelerator", name, entries)
    return entries[name]


def model_names() -> tuple[str, ...]:
    """Names of all catalogued models, in the catalogue's order."""
    return tuple(_models())


def model(name: str) -> ModelSpec:
    """The catalogued model called ``name``.

    Raises:
        DiagnosticError: PD016 with the nearest names, where there is none.
    """
    models = _models()
    if name not in models:
        raise _unknown("model", name, models)
    return models[name]


def _unknown(what: str, name: str, known: Iterable[str]) -> DiagnosticError:
    known = list(known)
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    nearest = f"did you mean {' or '.join(near)}? " if near else ""
    listing = f"`paradag {what}s` lists all" if what != "dtype" else f"known: {', '.join(known)}"
    return DiagnosticError([Diagnostic("PD016", f"no {what} is called {name!r}", help=nearest + listing)])


def _read_toml(file: str) -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath(file).read_text(encoding="utf-8"))


def accelerator_rows() -> dict[str, dict[str, Any]]:
    """The catalogue as its file has it, in the units of its keys; a fresh copy."""
    return _read_toml("accelerators.toml")


def catalogue(rows: Mapping[str, Mapping[str, Any]], defaults: Defaults = DEFAULTS) -> Mapping[str, CatalogEntry]:
    """Entries from rows such as those of :func:`accelerator_rows`, all keys right and present.

    Args:
        rows: Tables by name.
        defaults: What stands in for efficiencies and latencies that a row does not have.
    """
    return MappingProxyType({name: _entry(name, dict(row), defaults) for name, row in rows.items()})


@cache
def _accelerators() -> Mapping[str, CatalogEntry]:
    return catalogue(accelerator_rows())


@cache
def _models() -> Mapping[str, ModelSpec]:
    return MappingProxyType({name: ModelSpec.model_validate(row) for name, row in _read_toml("models.toml").items()})


def _entry(name: str, row: dict[str, Any], defaults: Defaults) -> CatalogEntry:
    """An entry from its TOML table; units go from the keys' (10^12, 10^9) to FLOP/s, bytes and bytes per second."""
    peaks = {dtype: tflops * 1e12 for dtype, tflops in row.pop("tflops").items()}
    if (fp4 := peaks.pop("fp4", None)) is not None:
        # one unit multiplies both block formats; they differ in scales only
        peaks |= {"nvfp4": fp4, "mxfp4": fp4}
    up = row.pop("scale_up")
    row = {"network_efficiency": defaults.network_efficiency} | row
    return CatalogEntry(
        name=name,
        peaks=_Peaks(peaks),
        memory=row.pop("memory_gb") * 1e9,
        bandwidth=row.pop("memory_gb_per_s") * 1e9,
        scale_up=CatalogLink(up["name"], up["gb_per_s"] * 1e9, defaults.scale_up_latency_s, up["domain"]),
        scale_out=CatalogLink("network", _giga(row.pop("scale_out_gb_per_s", None)), defaults.scale_out_latency_s),
        host=CatalogLink("host", _giga(row.pop("host_gb_per_s", None)), defaults.host_latency_s),
        sources=tuple(row.pop("sources")),
        notes=tuple(row.pop("notes", ())),
        **row,
    )


def _giga(value: float | None) -> float | None:
    return None if value is None else value * 1e9
