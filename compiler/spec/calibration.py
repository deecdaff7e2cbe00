"""Fitted figures of the cost model: what kernels and collectives reach of a chip's datasheet peaks.

A :class:`Calibration` holds, per operator class and variant (usually the number format), a small set of physical
parameters, how far they are off on measured rows that they were not fitted on, and the source of those rows. The
functions that use the parameters are in :mod:`paradag.compiler.cost`; the file formats are in docs/calibration.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = [
    "CLASSES",
    "Calibration",
    "CollectiveParameters",
    "DecodeParameters",
    "ExchangeParameters",
    "ExpertParameters",
    "Fit",
    "GemmParameters",
    "LaunchParameters",
    "Parameters",
    "PrefillParameters",
    "Residual",
    "StreamingParameters",
]


@dataclass(frozen=True)
class Parameters:
    """Base of the parameter sets. Every field is a number: seconds where the name ends in ``_s``, else a ratio."""


@dataclass(frozen=True)
class GemmParameters(Parameters):
    """A matrix product ``[m, k] x [k, n]``; used by :func:`paradag.compiler.cost.gemm_time`.

    Attributes:
        latency_s: Seconds of an empty product, launch from a captured graph included.
        compute_efficiency: Share of the dense peak inside a full wave of tiles.
        bandwidth_efficiency: Share of the memory bandwidth that weights and activations stream at.
        tile_penalty: Extra time of a 64 x 64 tile over a very large one, as a share of twice the latter.
        step_s: Seconds per element of k that the loop of one tile takes at least.
        fill: Elements of k that a tile's start and its results take, besides those that it sums.
        lost: Share of the units' idle time in the last wave that is lost: 1 of tiles dealt once, less where persistent
            kernels go on with the next ones.
        splits: Most parts that k is cut into, so that few tiles still keep all units busy; 1 where kernels do not.
        split_s: Seconds that cutting k over several tiles adds.
        small_rows: Rows of the activations above which no tile is smaller than 128 x 128 (kernels chosen by m).
        sustained: Rate of long products over that of short ones (power limit), reached by half at 0.5 ms.
        overlap: Exponent of the smooth maximum of compute and memory: 1 adds them, large values take the larger.
        prepare: Passes over the activations before the product (quantization), in units of one read of 2 bytes and
            one write of 1 byte per element at the full memory bandwidth.
        row_s: Seconds of those passes per row of the activations.
        cache_gain: Bandwidth of the last-level cache over that of the memory.
        cache_share: Share of that cache that operands of a repeated product stay in; in fits only.
        issue_s: Seconds that the host needs to issue the product where no graph was captured; a product takes at
            least this long then.
    """

    latency_s: float
    compute_efficiency: float
    bandwidth_efficiency: float
    tile_penalty: float = 0.0
    step_s: float = 0.0
    split_s: float = 2e-6
    overlap: float = 3.0
    prepare: float = 0.0
    row_s: float = 0.0
    cache_gain: float = 3.0
    issue_s: float = 0.0
    fill: float = 0.0
    lost: float = 1.0
    splits: float = 8.0
    small_rows: float = 1e8
    sustained: float = 1.0
    cache_share: float = 1.0


@dataclass(frozen=True)
class PrefillParameters(Parameters):
    """Attention of many new tokens; used by :func:`paradag.compiler.cost.prefill_attention_time`.

    Attributes:
        latency_s: Seconds of an empty call.
        compute_efficiency: Share of the dense peak that the two products reach.
        softmax: FLOPs at that rate that one (query, key) pair costs besides its products.
        bandwidth_efficiency: Share of the memory bandwidth.
        tail: Share of the longest tile that runs after all others.
        prepare: Passes over queries and results besides one (layout, rotation), at the full memory bandwidth.
        prepare_cache: Passes over the keys and values besides one (cache write, conversion from fp8), likewise.
        window_pad: Tokens beyond a sliding window that are computed and masked.
        overlap: Exponent of the smooth maximum of compute and memory.
        query_tile: New tokens of a sequence are padded to a multiple of this.
        packed: 1 where a tile holds the query heads of a KV head together, so that fewer tokens fill it; else 0.
        head_tile: Heads are padded to a power of two of features, not below this; 0 leaves them.
        fill: Pairs that one query costs besides those that it sees (start and end of a tile, masks).
        cache_gain: Bandwidth of the last-level cache over that of the memory.
        cache_share: Share of that cache that operands of a repeated call stay in; in fits only.
    """

    latency_s: float
    compute_efficiency: float
    bandwidth_efficiency: float
    softmax: float = 100.0
    tail: float = 0.5
    prepare: float = 1.0
    prepare_cache: float = 1.0
    window_pad: float = 128.0
    overlap: float = 3.0
    query_tile: float = 128.0
    packed: float = 0.0
    head_tile: float = 0.0
    fill: float = 0.0
    cache_gain: float = 3.0
    cache_share: float = 1.0


@dataclass(frozen=True)
class DecodeParameters(Parameters):
    """Attention of one new token over a cache; used by :func:`paradag.compiler.cost.decode_attention_time`.

    Attributes:
        latency_s: Seconds of an empty call.
        bandwidth_efficiency: Share of the memory bandwidth with every unit busy.
        compute_efficiency: Share of the dense peak.
        unit_gain: Bandwidth that one piece of work reaches alone, over the even share of its place in a unit.
        chunk: Tokens of a cache that are not cut over several places.
        occupancy: Pieces of work that one unit holds at a time; caches are cut until all places are taken.
        lost: Share of the idle time in the last wave of pieces that is lost.
        softmax: FLOPs at the compute rate that one (query, key) pair costs besides its products.
        sequence_s: Seconds per sequence and KV head (scheduling, merging).
        overlap: Exponent of the smooth maximum of compute and memory.
        row_tile: Query heads of one KV head are padded to a multiple of this (the rows of a tensor-core product).
        token_tile: Tokens that the arithmetic works on at least, masked where the context is shorter.
        cache_gain: Bandwidth of the last-level cache over that of the memory.
        cache_share: Share of that cache that operands of a repeated call stay in; in fits only.
    """

    latency_s: float
    bandwidth_efficiency: float
    compute_efficiency: float
    unit_gain: float = 2.0
    chunk: float = 256.0
    softmax: float = 100.0
    sequence_s: float = 1e-8
    overlap: float = 3.0
    row_tile: float = 16.0
    token_tile: float = 64.0
    cache_gain: float = 3.0
    occupancy: float = 1.0
    lost: float = 1.0
    cache_share: float = 1.0


@dataclass(frozen=True)
class ExpertParameters(Parameters):
    """The expert FFN, a grouped product; used by :func:`paradag.compiler.cost.experts_time`.

    Attributes:
        latency_s: Seconds of an empty call (sorting, two products, activation, weighted sum).
        compute_efficiency: Share of the dense peak inside full tiles.
        bandwidth_efficiency: Share of the memory bandwidth that weights of the visited experts stream at.
        row_tile: Rows of one expert are padded to a multiple of this (in the mean, by half of it).
        prepare: Passes over the rows of local experts besides the products (permutation, quantization), in units of
            one read and one write of 2 bytes per element at the full memory bandwidth.
        prepare_all: The same over all rows that the kernel is handed, those of other ranks' experts included.
        others: Rows that the products work on for each row of another rank's expert that the kernel is handed.
        expert_s: Seconds per local expert (descriptors, sorting).
        tail: Share of the heaviest expert's time on one column of tiles that comes on top.
        overlap: Exponent of the smooth maximum of compute and memory.
        cache_gain: Bandwidth of the last-level cache over that of the memory.
        cache_share: Share of that cache that operands of a repeated call stay in; in fits only.
    """

    latency_s: float
    compute_efficiency: float
    bandwidth_efficiency: float
    row_tile: float = 64.0
    prepare: float = 2.0
    prepare_all: float = 0.0
    expert_s: float = 1e-8
    tail: float = 0.5
    overlap: float = 3.0
    others: float = 0.0
    cache_gain: float = 3.0
    cache_share: float = 1.0


@dataclass(frozen=True)
class StreamingParameters(Parameters):
    """Norms, additions, activations, look-ups; used by :func:`paradag.compiler.cost.streaming_time`.

    Attributes:
        latency_s: Seconds of an empty kernel replayed from a captured graph.
        bandwidth_efficiency: Share of the memory bandwidth.
    """

    latency_s: float
    bandwidth_efficiency: float


@dataclass(frozen=True)
class LaunchParameters(Parameters):
    """What the host costs where launches are not replayed from a captured graph.

    Attributes:
        issue_s: Seconds that the host needs to issue one kernel. The device works meanwhile, so a kernel takes at
            least this long.
    """

    issue_s: float


@dataclass(frozen=True)
class CollectiveParameters(Parameters):
    """One collective inside a scale-up domain; used by :func:`paradag.compiler.cost.collective_time`.

    A pipelined ring takes ``latency_s + hop_s * doublings + b + sqrt(pipeline_s * b)`` with ``b`` the wire bytes over
    the bandwidth reached. An all-reduce may also be done by a one-shot or two-shot kernel; the fastest is taken.

    Attributes:
        latency_s: Seconds of an empty collective of two ranks.
        hop_s: Seconds per further doubling of the group.
        efficiency: Share of the link's bandwidth that a large message reaches; over 1 where the switch reduces.
        pipeline_s: Seconds per step of the pipeline that a message is cut into.
        contention: Exponent with which the bandwidth falls with every rank beyond two: 0 on a switch, 1 on a bus.
        direct_latency_s: All-reduce: seconds of an empty one-shot kernel; 0 where there is none.
        direct_hop_s: Seconds per further doubling of the group in a one-shot kernel.
        direct_efficiency: Share of the link's bandwidth that one-shot and two-shot kernels reach.
        second_s: Seconds that the second step of a two-shot kernel adds.
    """

    latency_s: float
    hop_s: float
    efficiency: float
    pipeline_s: float = 1e-5
    contention: float = 0.0
    direct_latency_s: float = 0.0
    direct_hop_s: float = 0.0
    direct_efficiency: float = 0.8
    second_s: float = 2e-6


@dataclass(frozen=True)
class ExchangeParameters(Parameters):
    """Expert dispatch or combine; used by :func:`paradag.compiler.cost.exchange_time`.

    Attributes:
        latency_s: Seconds of an empty exchange in one domain.
        efficiency: Share of the scale-up link's bandwidth.
        network_latency_s: Seconds that leaving the domain adds.
        network_efficiency: Share of the scale-out link's bandwidth.
        overlap: Exponent of the smooth maximum of both links.
    """

    latency_s: float
    efficiency: float
    network_latency_s: float = 2e-5
    network_efficiency: float = 0.8
    overlap: float = 2.0


CLASSES: Mapping[str, type[Parameters]] = {
    "gemm": GemmParameters,
    "prefill": PrefillParameters,
    "decode": DecodeParameters,
    "decode_mha": DecodeParameters,
    "mla_prefill": PrefillParameters,
    "mla_decode": DecodeParameters,
    "experts": ExpertParameters,
    "streaming": StreamingParameters,
    "launch": LaunchParameters,
    "all_reduce": CollectiveParameters,
    "all_gather": CollectiveParameters,
    "reduce_scatter": CollectiveParameters,
    "all_to_all": CollectiveParameters,
    "p2p": CollectiveParameters,
    "dispatch": ExchangeParameters,
    "combine": ExchangeParameters,
}
"""Parameter sets by operator class, as calibration files name them."""


@dataclass(frozen=True)
class Residual:
    """Errors on measured rows that the fit has not seen, as shares: ``predicted / measured - 1``.

    Attributes:
        rows: How many rows.
        median: Median of the absolute values.
        mean: Mean of the absolute values.
        bias: Median of the signed values.
    """

    rows: int
    median: float
    mean: float
    bias: float


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True)
class Fit:
    """One parameter set, how good it is and where it comes from."""

    parameters: Parameters
    residual: Residual | None
    source: str


@dataclass(frozen=True)
class Calibration:
    """All parameter sets of a chip under one engine.

    Attributes:
        chip: Catalogue name, or the name of a user's chip.
        engine: Whose kernels: ``vllm``, ``trtllm``, ``sglang``, or another name.
        fits: By (operator class, variant).
        units: Streaming multiprocessors, compute units or cores that tiles are dealt to.
        origins: Where inherited parameter sets come from.
    """

    chip: str
    engine: str
    fits: Mapping[tuple[str, str], Fit]
    units: int = 132
    origins: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def gemm(self, variant: str) -> GemmParameters:
        return self._get("gemm", variant, GemmParameters)

    def prefill(self, variant: str, *, mla: bool = False) -> PrefillParameters:
        return self._get("mla_prefill" if mla else "prefill", variant, PrefillParameters)

    def decode(self, variant: str, *, mla: bool = False, mha: bool = False) -> DecodeParameters:
        kind = "mla_decode" if mla else "decode_mha" if mha else "decode"
        return self._get(kind, variant, DecodeParameters)

    def experts(self, variant: str) -> ExpertParameters:
        return self._get("experts", variant, ExpertParameters)

    @property
    def streaming(self) -> StreamingParameters:
        return self._get("streaming", "any", StreamingParameters)

    @property
    def launch(self) -> LaunchParameters:
        return self._get("launch", "any", LaunchParameters)

    def collective(self, op: str) -> CollectiveParameters:
        return self._get(op, "any", CollectiveParameters)

    def exchange(self, op: str, variant: str) -> ExchangeParameters:
        return self._get(op, variant, ExchangeParameters)

    def _get(self, kind: str, variant: str, cls: type[P]) -> P:
        """Raises KeyError where there is none; a calibration that was completed by inheritance has them all."""
        found = self.fits[kind, variant].parameters
        if not isinstance(found, cls):
            raise TypeError(f"{kind} holds {type(found).__name__}")
        return found
