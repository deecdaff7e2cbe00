"""Rules on figures that a file gives: against the dimensions, the catalogue, and what any chip reaches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ...compiler.build.mesh import pools_separate
from ...compiler.spec import LinkSpec, LoadedSpec, Pack, Spec
from ...compiler.spec.catalog import CatalogEntry, accelerator, accelerator_names
from ...compiler.spec.counts import parameters
from ...compiler.spec.pack_law import scale_up_domain
from ._case import Case, Finding, count

CLAIM_TOLERANCE = 0.05
"""Share by which a claimed parameter count may differ from the dimensions' own."""

PEAK_TOLERANCE = 0.10
"""Share by which a figure may lie above the datasheet's: roundings, and GiB written as GB, which is 7 %."""

FUTURE = 4.0
"""How many times above the catalogue's best a figure of an unknown chip may lie."""

_SPARSE = (1.9, 2.1)
_BITS = (7.0, 9.0)


def claim_against_dimensions(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """A claimed parameter count is that of the dimensions."""
    model = loaded.spec.model
    claim, own = model.weights, parameters(model)
    if claim is None or abs(claim - own) <= CLAIM_TOLERANCE * own:
        return
    yield Finding(
        f"{model.name} is said to have {_billions(claim)} parameters, its dimensions make {_billions(own)}",
        ("model.weights", "model"),
        f"a claim within {CLAIM_TOLERANCE:.0%} of the dimensions, which are what is compiled",
        f"correct a dimension, or write `weights {_billions(own)}`",
    )


def _billions(number: float) -> str:
    return f"{number / 1e9:.4g} B"


def assumption_made(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """What the file leaves out is assumed, and said."""
    for made in loaded.assumptions:
        parts = made.name.split(".")
        paths = tuple(".".join(parts[:end]) for end in range(len(parts), 0, -1))
        yield Finding(
            f"assumed: {made.name} is {made.value}; {made.why}",
            (*paths, "model"),
            f"`{parts[-1]}` in the file",
            f"write `{parts[-1]}` to say so yourself",
        )


def beyond_peak(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """No figure lies above what the chip's datasheet gives, or far above what any chip has."""
    for what, path, value, peak, where in _figures(loaded):
        ratio = value / peak
        if ratio > 1 + PEAK_TOLERANCE and not (what.startswith("compute") and _within(ratio, _SPARSE)):
            yield Finding(
                f"{what} of {ratio:.3g} times {where}",
                (path, "cluster.accelerator", "cluster"),
                "a dense peak per chip, bandwidths in bytes per second, per chip and direction",
                _slip(what, ratio),
            )


def sparse_peak(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """Peaks are dense ones: the figure for structured sparsity is twice as high and not reached by a dense model."""
    for what, path, value, peak, _ in _figures(loaded):
        if what.startswith("compute") and _within(value / peak, _SPARSE):
            yield Finding(
                f"{what} of {value / 1e12:g} TFLOPS is twice the dense peak",
                (path, "cluster.accelerator", "cluster"),
                f"the dense peak, {peak / 1e12:g} TFLOPS",
                f"write {peak / 1e12:g} TFLOPS: the doubled figure holds for 2:4 sparse weights only",
            )


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


def _slip(what: str, ratio: float) -> str:
    if _within(ratio, _BITS):
        return "eight times too much: bits taken for bytes? `Gb/s` and `GB/s` are both understood"
    if what.startswith("link") and _within(ratio, _SPARSE):
        return "twice too much: both directions counted? give one direction"
    return "check unit and count: one chip, not one node"


def _figures(loaded: LoadedSpec) -> Iterator[tuple[str, str, float, float, str]]:
    """(name, field path, value, highest credible value, whose it is) of every figure that the file gives."""
    spec = loaded.spec
    chip, base = spec.cluster.accelerator, "cluster.accelerator"
    pack = spec.pack
    entry = accelerator(chip.catalog, pack) if chip.catalog else _by_name(chip.name, pack)
    known = [entry] if entry else [accelerator(n, pack) for n in accelerator_names(pack)]
    where = f"{entry.name}'s in the catalogue" if entry else f"the limit of {FUTURE:g} times the catalogue's best"
    factor = 1.0 if entry else FUTURE
    for name, value in chip.compute.items():
        kind = spec.model.dtype if name == "*" else name
        peak = factor * max(e.peak_flops(kind).flops for e in known)
        yield f"compute in {kind}", f"{base}.compute.{name}", value, peak, where
    for what, given, best in (
        ("memory", chip.memory, max(e.memory for e in known)),
        ("bandwidth", chip.bandwidth, max(e.bandwidth for e in known)),
    ):
        if given is not None:
            yield what, f"{base}.{what}", given, factor * best, where
    links = (("scale_up", [e.scale_up for e in known], factor), ("scale_out", [e.scale_out for e in known], FUTURE))
    for name, entries, times in links:
        link: LinkSpec = getattr(spec.cluster, name)
        fastest = max((e.bandwidth for e in entries if e.bandwidth), default=None)
        if link.bandwidth is not None and fastest is not None:
            whose = where if times == factor else f"the limit of {times:g} times the catalogue's"
            yield f"link {name}", f"cluster.{name}.bandwidth", link.bandwidth, times * fastest, whose


def _by_name(name: str, pack: Pack | None) -> CatalogEntry | None:
    """The catalogue's entry that a quoted name means: all of its words, in order, from the first on."""
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_").removeprefix("nvidia_")
    found = [accelerator(n, pack) for n in accelerator_names(pack) if n == words or n.startswith(f"{words}_")]
    return max(found, key=lambda e: e.peak_flops("bf16").flops) if found and words else None


def link_missing(loaded: LoadedSpec, cases: Sequence[Case]) -> Iterator[Finding]:
    """Links that the strategy uses have a bandwidth."""
    cluster = loaded.spec.cluster
    needs = [c.degrees.gpus for c in cases]
    used = (sum(needs) if pools_separate(loaded.spec) else max(needs, default=0)) if needs else 0
    up, out = _bandwidths(loaded.spec)
    domain = scale_up_domain(cluster, loaded.pack)
    # with neither the figures cannot be computed at all, which is an error of its own (PD013)
    for name, have, other, needed in (("scale_up", up, out, used > 1), ("scale_out", out, up, used > domain)):
        if needed and have is None and other is not None:
            what = f"leave the domain of {domain}" if name == "scale_out" else "exchange data"
            yield Finding(
                f"{count(used, 'GPU')} {what}, and no `link {name}` is given: the other link's figures are taken",
                ("cluster.accelerator", "cluster"),
                f"a bandwidth for `{name}`, in the file or in the catalogue",
                f"write `link {name} {{ bandwidth ... GB/s }}`",
            )


def _bandwidths(spec: Spec) -> tuple[float | None, float | None]:
    cluster = spec.cluster
    entry = accelerator(cluster.accelerator.catalog, spec.pack) if cluster.accelerator.catalog else None
    up = cluster.scale_up.bandwidth or (entry.scale_up.bandwidth if entry else None)
    return up, cluster.scale_out.bandwidth or (entry.scale_out.bandwidth if entry else None)
