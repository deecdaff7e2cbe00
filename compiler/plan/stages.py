"""The stages of a pipeline by what they hold, and what of its messages leaves a scale-up domain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...passes.validation import balanced
from ..spec import ModelSpec

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Stages:
    """The stages of one pipeline: of those between the first and the last, few differ.

    Attributes:
        counts: [parts, kinds] how often a stage has each part of a layer: the first, those between, the last.
        kind: [pp] kind of each stage.
    """

    counts: Ints
    kind: Ints

    @property
    def several(self) -> bool:
        return len(self.kind) > 1

    def summed(self, parts: Floats) -> Floats:
        """[kinds, rows] sums over the parts of a stage, of [parts, rows]."""
        return np.asarray(self.counts.T.astype(np.float64) @ parts)

    def present(self, kind: int) -> tuple[int, ...]:
        """The parts that a stage of that kind has."""
        return tuple(np.flatnonzero(self.counts[:, kind]).tolist())


def stages_of(members: Ints, sizes: Sequence[int]) -> Stages:
    """The stages of a pipeline.

    Args:
        members: [parts, layers] 1 where the layer has the part.
        sizes: Layers of each stage.
    """
    counts = np.add.reduceat(members, np.cumsum([0, *sizes[:-1]]), axis=1)
    between: dict[tuple[int, ...], int] = {}
    middle = [between.setdefault(tuple(c), 1 + len(between)) for c in counts.T[1:-1].tolist()]
    if len(sizes) == 1:
        return Stages(counts, np.zeros(1, dtype=np.int64))
    kind = np.array([0, *middle, 1 + len(between)], dtype=np.int64)
    first_of = [0, *(1 + middle.index(number) for number in between.values()), len(sizes) - 1]
    return Stages(counts[:, first_of], kind)


def crossings(ranks: Ints, first_rank: Ints, pp: int, domain: int) -> Bools:
    """[rows, pp]: whether the message of each stage to the next, and last the token return, leaves its domain.

    Stage s holds the ranks from ``first_rank + s * ranks`` on, and each sends to its partner so many ranks further.
    Some pair is parted iff a domain begins behind the first sender and not behind the last receiver.

    Args:
        ranks: [rows] ranks of a stage.
        first_rank: [rows] number of the first GPU.
        pp: Stages, at least two.
        domain: GPUs of a scale-up domain.
    """
    senders = np.append(np.arange(pp - 1), 0)
    ends = np.append(np.arange(2, pp + 1), pp)
    first = first_rank[:, None] + ranks[:, None] * senders
    last = first_rank[:, None] + ranks[:, None] * ends - 1
    return np.asarray(first // domain != last // domain)


class Pipelines:
    """The pipelines of one model, by their number of stages.

    Args:
        model: What is cut.
        members: [parts, layers] 1 where the layer has the part.
    """

    def __init__(self, model: ModelSpec, members: Ints) -> None:
        self.model, self.members = model, members
        self._known: dict[int, Stages] = {}

    def __getitem__(self, pp: int) -> Stages:
        if pp not in self._known:
            self._known[pp] = stages_of(self.members, balanced(self.model, pp))
        return self._known[pp]


def by_stages(pp: Ints, cells: int) -> Iterator[tuple[int, Ints]]:
    """Numbers of stages, and the rows that have them, so few at once that tables of ``cells`` per row stay in cache."""
    if not len(pp):
        return
    order = np.argsort(pp, kind="stable")
    values, starts = np.unique(pp[order], return_index=True)
    step = max(256, ROWS_IN_CACHE // cells)
    for count, rows in zip(values.tolist(), np.split(order, starts[1:]), strict=True):
        for low in range(0, len(rows), step):
            yield count, rows[low : low + step]


ROWS_IN_CACHE = 1 << 16
"""Rows of one column that are worked on together."""
