"""What one virtual rank holds: its weights, its activations, its KV cache and the messages sent to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

KV_OPS = frozenset({"kv_write", "kv_read", "kv_send", "kv_recv"})
"""Operators that may touch the KV cache."""


class ExecutionFault(ValueError):
    """The DAG asks for something that a rank does not have, or gives something that it must not."""


class Ref(NamedTuple):
    """One value at one place of the iteration space.

    ``layer`` is -1 outside layers; ``step`` is -1 for what was there before the first step.
    """

    block: str
    value: str
    layer: int
    item: int
    step: int

    def __str__(self) -> str:
        where = f"layer {self.layer}, " if self.layer >= 0 else ""
        return f"%{self.value} of {self.block} ({where}item {self.item}, step {self.step})"


@dataclass
class Store:
    """The memory of one rank. Nothing in it is shared: whatever another rank made arrives through :meth:`deliver`.

    Attributes:
        device: Number of the GPU.
        weights: Its own shards of weights, by (layer, node, parameter).
    """

    device: int
    weights: dict[tuple[int, str, str], np.ndarray] = field(default_factory=dict)
    _values: dict[Ref, np.ndarray] = field(default_factory=dict)
    _cache: dict[Ref, np.ndarray] = field(default_factory=dict)
    _mail: dict[Ref, np.ndarray] = field(default_factory=dict)
    _written: set[tuple[str, int, int, int]] = field(default_factory=set)

    def put(self, ref: Ref, value: np.ndarray, op: str) -> None:
        """Keep a result; those of the KV operators that make a version go to the cache.

        Raises:
            ExecutionFault: it is there already, or another write filled the same slots of the cache.
        """
        held = self._cache if op in ("kv_write", "kv_recv") else self._values
        if op == "kv_write":
            slots = (ref.block, ref.layer, ref.item, ref.step)
            if slots in self._written:
                raise ExecutionFault(f"rank {self.device} writes {ref} into slots of the KV cache that are taken")
            self._written.add(slots)
        if ref in held:
            raise ExecutionFault(f"rank {self.device} computes {ref} twice")
        # Whoever wrote into an operand would change what other nodes see.
        value.setflags(write=False)
        held[ref] = value

    def get(self, ref: Ref, op: str) -> np.ndarray:
        """An operand of an operator.

        Raises:
            ExecutionFault: the rank does not hold it, or it lies in the KV cache and the operator may not touch that.
        """
        if ref in self._cache:
            if op not in KV_OPS:
                raise ExecutionFault(f"{op} on rank {self.device} touches the KV cache: {ref}")
            return self._cache[ref]
        if ref not in self._values:
            raise ExecutionFault(f"rank {self.device} does not hold {ref}, which {op} takes")
        return self._values[ref]

    def cached(self, ref: Ref) -> np.ndarray | None:
        """A version in the cache, None where there is none."""
        return self._cache.get(ref)

    @property
    def versions(self) -> dict[Ref, np.ndarray]:
        """All versions in the cache."""
        return dict(self._cache)

    def deliver(self, ref: Ref, value: np.ndarray) -> None:
        """A message from another rank arrives."""
        value.setflags(write=False)
        self._mail[ref] = value

    def receive(self, ref: Ref) -> np.ndarray:
        """Take a message.

        Raises:
            ExecutionFault: there is none.
        """
        if ref not in self._mail:
            raise ExecutionFault(f"rank {self.device} waits for {ref}, which nobody sent to it")
        return self._mail.pop(ref)

    @property
    def unread(self) -> list[Ref]:
        """Messages that nobody took."""
        return list(self._mail)

    def free(self, refs: Iterable[Ref]) -> None:
        """Forget activations that nobody needs any more."""
        for ref in refs:
            self._values.pop(ref, None)
