"""Micro-batches in chunks: every chunk of every distinct micro-batch is a row of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rows import distinct_rows
from .space import Candidates

Ints = NDArray[np.int64]

_FIRST, _BETWEEN, _LAST = range(3)


@dataclass(frozen=True)
class Chunks:
    """The chunks of the micro-batches that differ. But for their context, those between first and last are alike.

    Attributes:
        prompt: Tokens of a prompt.
        layout: [micro-batches] number of the layout.
        size: [micro-batches] sequences.
        step: [micro-batches] new tokens per sequence of all chunks but the last.
        chunks: [micro-batches] how many there are.
        start: [micro-batches] row of the first.
        which: [2, strategies] the larger and the smaller micro-batch of each strategy.
        micro: [rows] the chunk's micro-batch.
        past: [rows] tokens per sequence before it.
        alike: [rows] which of the chunks that differ by more than the context it is.
        alike_micro: [alike] the micro-batch of each of those.
        alike_place: [alike] whether it is the first, the last, or between.
    """

    prompt: int
    layout: Ints
    size: Ints
    step: Ints
    chunks: Ints
    start: Ints
    which: Ints
    micro: Ints
    past: Ints
    alike: Ints
    alike_micro: Ints
    alike_place: Ints

    def rows(self) -> tuple[Ints, ...]:
        """(layout, batch, new, past) of every chunk."""
        step, micro = self.step, self.micro
        return self.layout[micro], self.size[micro], np.minimum(step[micro], self.prompt - self.past), self.past

    def alike_rows(self) -> tuple[Ints, ...]:
        """(layout, batch, new, first, last) of the chunks that differ by more than their context."""
        some, last = self.alike_micro, self.alike_place == _LAST
        rest = self.prompt - (self.chunks[some] - 1) * self.step[some]
        new = np.where(last, rest, np.minimum(self.step[some], self.prompt))
        only = self.chunks[some] == 1
        masks = self.alike_place == _FIRST, last | only
        return self.layout[some], self.size[some], new, *(mask.astype(np.int64) for mask in masks)


def chunks_of(candidates: Candidates, prompt: int) -> Chunks:
    """The chunks of strategies whose prompts of ``prompt`` tokens enter prefill in chunks."""
    sizes = np.concatenate([candidates.larger, candidates.smaller])
    steps = np.concatenate([candidates.steps(s, prompt) for s in (candidates.larger, candidates.smaller)])
    (layout, size, step), which = distinct_rows(np.concatenate([candidates.layout] * 2), sizes, steps)
    chunks = -(-prompt // step)
    start = np.cumsum(chunks) - chunks
    micro = np.repeat(np.arange(len(step)), chunks)
    number = np.arange(len(micro)) - start[micro]
    place = np.where(number == 0, _FIRST, np.where(number == chunks[micro] - 1, _LAST, _BETWEEN))
    (alike_micro, alike_place), alike = distinct_rows(micro, place)
    return Chunks(
        prompt, layout, size, step, chunks, start, which.reshape(2, len(candidates)), micro, number * step[micro],
        alike, alike_micro, alike_place,
    )  # fmt: skip
