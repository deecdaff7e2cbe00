"""Layers per pipeline stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from ...compiler.spec import ACTIVATION_DTYPE, ModelSpec, Spec, dtype
from ...compiler.spec.counts import attention_parameters, embedding_parameters, layer_parameters
from ...compiler.spec.stage_law import balanced_stages
from ...compiler.spec.strategy import Phase


def stage_layers(spec: Spec, phase: Phase) -> tuple[int, ...]:
    """Layers of each pipeline stage: as the strategy lists them, else balanced.

    Balanced counts differ by one at most; weight bytes (embedding and LM head counted) decide who takes the remainder.
    Bytes do not depend on the phase, so that equal layouts of both phases share their weights.

    Args:
        spec: Legal spec.
        phase: prefill or decode.

    Raises:
        KeyError: the phase has no strategy.
    """
    strategy = spec.strategy(phase)
    if strategy is None:
        raise KeyError(phase)
    term = strategy.term("pp")
    return term.layers if term is not None and term.layers else balanced(spec.model, strategy.degree("pp"))


@lru_cache(maxsize=4096)
def balanced(model: ModelSpec, stages: int) -> tuple[int, ...]:
    """The balanced split of the model's layers over ``stages``, at most one per layer."""
    table = _table_bytes(model)
    return balanced_stages(_layer_bytes(model), stages, first=table, last=table)


def heaviest(model: ModelSpec, split: Sequence[int]) -> int:
    """Weight bytes of the heaviest stage of a split."""
    sums = list(accumulate(_layer_bytes(model), initial=0))
    ends = list(accumulate(split))
    loads = [sums[end] - sums[end - n] for n, end in zip(split, ends, strict=True)]
    loads[0] += _table_bytes(model)
    loads[-1] += _table_bytes(model)
    return max(loads)


def _table_bytes(model: ModelSpec) -> int:
    """Bytes of the embedding, and of the LM head, which the last stage holds even where the two are tied."""
    return int(embedding_parameters(model) * dtype(ACTIVATION_DTYPE).bytes)


def _layer_bytes(model: ModelSpec) -> list[int]:
    """Weight bytes of each layer; the few unquantized ones (norms, router) count as the FFN's format."""
    attention = attention_parameters(model)
    kinds: dict[bool, int] = {}
    for layer in range(model.layers.count):
        is_moe = model.is_moe_layer(layer)
        if is_moe not in kinds:
            ffn = layer_parameters(model, layer) - attention
            kind = model.expert_dtype if is_moe else model.dtype
            kinds[is_moe] = int(attention * dtype(model.projection_dtype).bytes + ffn * dtype(kind).bytes)
    return [kinds[model.is_moe_layer(layer)] for layer in range(model.layers.count)]
