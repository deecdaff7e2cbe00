"""Trips through the pipeline: micro-batches and their chunks."""

from __future__ import annotations

from ..ir.graph import Item
from ..spec import Spec
from ..spec.strategy import Phase, StrategySpec
from .mesh import pools_separate


def replica_batch(spec: Spec, strategy: StrategySpec) -> int:
    """Sequences in flight on the fullest DP replica."""
    batch = spec.workload.batch or 1
    return -(-batch // strategy.degree("dp"))


def microbatch_sizes(batch: int, count: int) -> list[int]:
    """Sequences of each micro-batch, as even as possible, the larger ones first."""
    base, rest = divmod(batch, count)
    return [base + (i < rest) for i in range(count)]


def build_items(spec: Spec, phase: Phase) -> tuple[Item, ...]:
    """Trips through the pipeline of a phase's DAG: those of the whole batch, or of the one micro-batch of prompts.

    Where prompts share the GPUs' time with decodes (``mode mixed``), they arrive one after another and not as a
    batch: the prefill DAG is that of one micro-batch, the first of the batch.
    """
    items = batch_items(spec, phase)
    if phase == "prefill" and spec.workload.mode == "mixed":
        return tuple(item for item in items if item.microbatch == 0)
    return items


def batch_items(spec: Spec, phase: Phase) -> tuple[Item, ...]:
    """Micro-batches of the whole batch in the order they enter the pipeline.

    Prefill: a micro-batch of more than ``chunk`` new tokens runs as successive chunks; all its sequences advance
    together by ``chunk // sequences`` tokens. Decode: one new token per sequence at a context of ``input + output //
    2`` tokens, the middle of the generation.
    """
    strategy = spec.strategy(phase)
    assert strategy is not None
    sizes = microbatch_sizes(replica_batch(spec, strategy), strategy.microbatches)
    if phase == "decode":
        past = decode_context(spec) - 1
        return tuple(Item(i, 0, size, 1, past) for i, size in enumerate(sizes))
    items: list[Item] = []
    for index, size in enumerate(sizes):
        items.extend(_chunks(index, size, spec.workload.input, strategy.chunk))
    return tuple(items)


def decode_context(spec: Spec) -> int:
    """Tokens per sequence after the first costed decode step: the prompt and half of the output."""
    return spec.workload.input + max(1, spec.workload.output // 2)


def cache_tokens(spec: Spec, phase: Phase) -> int:
    """Tokens per sequence that a phase's KV cache must hold: a prefill pool of its own keeps only the prompt."""
    alone = phase == "prefill" and pools_separate(spec)
    return spec.workload.input + (0 if alone else spec.workload.output)


def cached_sequences(spec: Spec, phase: Phase) -> tuple[int, ...]:
    """Sequences of each micro-batch whose caches lie on a phase's GPUs at once.

    Those of the whole batch; but a prefill pool of its own that prompts reach one micro-batch after another
    (``mode mixed``) holds two of them: the one that it works on and the one before, which is being sent.
    """
    strategy = spec.strategy(phase)
    assert strategy is not None
    sizes = microbatch_sizes(replica_batch(spec, strategy), strategy.microbatches)
    passing = phase == "prefill" and spec.workload.mode == "mixed" and pools_separate(spec)
    return (sizes[0],) * 2 if passing else tuple(sizes)


def _chunks(index: int, sequences: int, tokens: int, chunk: int | None) -> list[Item]:
    step = tokens if chunk is None or sequences * tokens <= chunk else max(1, chunk // sequences)
    starts = range(0, tokens, step)
    return [
        Item(index, number, sequences, min(step, tokens - past), past, past == 0, past + step >= tokens)
        for number, past in enumerate(starts)
    ]
