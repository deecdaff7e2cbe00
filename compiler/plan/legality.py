"""The rules of legality over columns: the same verdicts as `check_spec`, for many strategies at once.

Each predicate is one rule of :mod:`paradag.passes.validation`; the tests compare the two on random strategies.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...passes.validation import BLOCK_BOTH_WAYS, MAX_ITEMS, MAX_RING
from ..spec import DTYPES, ModelSpec
from ..spec.strategy import Phase
from .layouts import RING, ULYSSES, Layouts

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def layout_faults(layouts: Layouts, model: ModelSpec, phase: Phase, prompt: int) -> dict[str, Bools]:
    """Rule code to the layouts that break it, in the order in which `check_spec` tells them.

    A rule that another makes meaningless is not asked, as there.
    """
    attention, moe = model.attention, model.moe
    tp, etp = layouts.tp, layouts.etp
    law = (layouts.ranks % (layouts.sp * tp) != 0) | (layouts.ranks % (layouts.ep * etp) != 0)
    heads = attention.heads % tp != 0
    kv = np.zeros_like(heads)
    if attention.kind != "mla":
        kv = (attention.kv_heads % tp != 0) & (tp % attention.kv_heads != 0) & ~heads
    no = np.zeros_like(heads)
    sp_kind = (layouts.kind == RING) & (layouts.sp > MAX_RING)
    sp_kind |= (layouts.kind == ULYSSES) & ~_ulysses_fits(layouts, model) & ~heads & ~kv
    ffn, block = no.copy(), no.copy()
    for width, dtype, degree in _widths(layouts, model):
        ffn |= width % degree != 0
        block |= _cuts_block(width, dtype, degree)
    for width, dtype, degree in _projections(layouts, model):
        block |= _cuts_block(width, dtype, degree)
    slots = moe.experts % layouts.ep != 0 if moe is not None else no
    usual, inside = layouts.nesting(model)
    # A grid of whole numbers has no fault but the last: a Megatron stream without a TP group to cut it over.
    nothing = layouts.megatron & (tp == 1) if phase == "prefill" else no
    tokens = (layouts.sp > prompt) & (layouts.sp > 1) if phase == "prefill" else no
    return {
        "PD209": nothing,
        "PD205": law,
        "PD211": heads,
        "PD212": kv,
        "PD224": sp_kind,
        "PD213": ffn,
        "PD214": block,
        "PD215": slots,
        "PD206": ~usual & ~inside & ~law & ~kv,
        "PD217": tokens,
    }


def schedule_faults(
    layouts: Layouts, model: ModelSpec, phase: Phase, prompt: int, columns: Mapping[str, Ints]
) -> dict[str, Bools]:
    """Rule code to the strategies that break it, for what is not a matter of the layout alone.

    Args:
        layouts: Layout of each strategy.
        model: What is run.
        phase: prefill or decode.
        prompt: Prompt tokens per sequence.
        columns: ``pp``, ``batch`` (sequences of a replica), ``microbatches`` and ``chunk`` (0 for none).
    """
    pp, batch, microbatches, chunk = (columns[n] for n in ("pp", "batch", "microbatches", "chunk"))
    stages = pp > model.layers.count
    few = batch < microbatches
    size = -(-batch // np.maximum(1, microbatches))
    step = np.where((chunk == 0) | (size * prompt <= chunk), prompt, np.maximum(1, chunk // np.maximum(1, size)))
    no = np.zeros(len(pp), dtype=bool)
    small = (chunk > 0) & (chunk < size) & ~few if phase == "prefill" else no
    shards = (step < layouts.sp) & (layouts.sp > 1) & (layouts.sp <= prompt) if phase == "prefill" else no
    trips = microbatches * (-(-prompt // step) if phase == "prefill" else 1)
    return {
        "PD216": stages,
        "PD217": shards,
        "PD218": few,
        "PD220": small,
        "PD306": (trips > MAX_ITEMS) & ~few & ~small,
    }


def _ulysses_fits(layouts: Layouts, model: ModelSpec) -> Bools:
    """Whether SP can share out the heads that TP leaves to a rank."""
    attention, sp = model.attention, layouts.sp
    even = (attention.heads // layouts.tp) % sp == 0
    if attention.kind == "mla":
        return np.asarray(even)
    left = attention.kv_heads // layouts.tp
    return np.asarray(even & ((left % sp == 0) | (sp % np.maximum(left, 1) == 0)))


def _cuts_block(width: int, dtype: str, degree: Ints) -> Bools:
    block = DTYPES[dtype].block
    if block == 1:
        return np.zeros(len(degree), dtype=bool)
    return np.asarray((degree > 1) & (width % degree == 0) & ((width // degree) % block != 0))


def _widths(layouts: Layouts, model: ModelSpec) -> list[tuple[int, str, Ints]]:
    """(width, dtype, degree) of every FFN that is cut."""
    with_experts = sum(model.is_moe_layer(i) for i in range(model.layers.count))
    found: list[tuple[int, str, Ints]] = []
    if model.ffn is not None and with_experts < model.layers.count:
        found.append((model.ffn, model.dtype, layouts.tp))
    if model.moe is not None and with_experts:
        found.append((model.moe.ffn, model.expert_dtype, layouts.etp))
        if model.moe.shared:
            found.append((model.moe.shared * model.moe.ffn, model.expert_dtype, layouts.tp))
    return found


def _projections(layouts: Layouts, model: ModelSpec) -> list[tuple[int, str, Ints]]:
    """(width, dtype, degree) of every quantized projection that TP cuts."""
    a, dtype = model.attention, model.projection_dtype
    found: list[tuple[int, str, Ints]] = [
        (a.heads * ((a.v_dim or 0) if a.kind == "mla" else a.head_dim), dtype, layouts.tp)
    ]
    if dtype in BLOCK_BOTH_WAYS:
        found.append((a.heads * a.head_dim, dtype, layouts.tp))
        if a.kind != "mla":
            found.append((a.kv_heads * a.head_dim, dtype, np.minimum(layouts.tp, a.kv_heads)))
    return found
