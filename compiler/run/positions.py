"""The constants that nodes declare: token positions, and the positions of the rows of the KV cache.

The tokens of a chunk are laid out in the graph's token order and cut into ceiling chunks; whoever computes a token's
key keeps it. A cut context is therefore rank-major, and on each rank the chunks of the prompt follow one another: the
positions of its rows are no ceiling chunk of anything, they are told row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..ir.graph import Block, Graph, Param
from ..ir.mesh import Mesh
from ..ir.token_order import token_positions
from ..ir.types import Extent, chunk_bounds
from .shards import held_by
from .store import ExecutionFault

Ints = NDArray[np.int64]


class Positions:
    """Positions of new and of cached tokens, for one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = str(graph.meta.get("token_order", "contiguous"))
        self.new = lru_cache(maxsize=None)(self._new)
        self.history = lru_cache(maxsize=None)(self._history)

    def _new(self, item: int, step: int) -> Ints:
        """Positions of the new tokens of a sequence, in the order in which they are laid out."""
        it = self.graph.items[item]
        return it.past + step + token_positions(self.order, it.new, self.graph.mesh.degree("sp"))

    def last(self, item: int, step: int) -> int:
        """Position of the last token so far."""
        it = self.graph.items[item]
        return it.past + it.new + step - 1

    def _history(self, item: int, step: int) -> tuple[Ints, ...]:
        """What was appended to the cache until this step, append by append."""
        if self.graph.phase == "decode":
            before = np.arange(self.graph.items[item].past, dtype=np.int64)
            return (before, *(self.new(item, s) for s in range(step + 1)))
        microbatch = self.graph.items[item].microbatch
        return tuple(self.new(i, 0) for i in range(item + 1) if self.graph.items[i].microbatch == microbatch)

    def cached(self, axes: Sequence[str], at: Mapping[str, int], item: int, step: int) -> Ints:
        """Positions of the rows that the rank at ``at`` holds of a cache whose context is cut by ``axes``."""
        return np.concatenate([_own(rows, axes, at, self.graph.mesh) for rows in self.history(item, step)])

    def keys(self, block: Block, param: Param, at: Mapping[str, int], item: int, step: int) -> Ints:
        """Positions of the keys that a node sees: the rows of all ranks whose shares were gathered, rank after rank.

        Raises:
            ExecutionFault: the constant is cut as the cache cannot be.
        """
        axes = cache_axes(block)
        (mine,) = param.type.placement.shards
        at = held_by(mine, param.type.placement.shift_of(0), at, self.graph.mesh)
        if axes[: len(mine)] != mine:
            raise ExecutionFault(f"keys cut by {mine} of a cache cut by {axes} in {block.name}")
        gathered = axes[len(mine) :]
        mesh = self.graph.mesh
        rows = [
            self.cached(axes, {**at, **dict(zip(gathered, others, strict=True))}, item, step)
            for others in product(*(range(mesh.size((a,))) for a in gathered))
        ]
        keys = np.concatenate(rows)
        size = param.type.dims[0].size
        if isinstance(size, Extent) and size.kind == "window":
            seen = int(size.value({"context": len(keys), "new": self.graph.items[item].new}, mesh))
            keys = keys[len(keys) - seen :]
        return keys


def cache_axes(block: Block) -> tuple[str, ...]:
    """Axes that cut the context of the block's KV cache."""
    written = next((n for n in block.nodes if n.op == "kv_write"), None)
    return written.outputs[0].type.axes_of("context") if written else ()


def _own(rows: Ints, axes: Sequence[str], at: Mapping[str, int], mesh: Mesh) -> Ints:
    low, high = chunk_bounds(len(rows), ((mesh.size((a,)), at[a]) for a in axes))
    return rows[low:high]
