"""The one way out of a rank's process: arrays over ``torch.distributed``.

Collectives block. Messages between two ranks arrive in the order in which they were sent; sending does not wait for
the receiver, so a rank that follows the one global order of calls never waits for one that waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

Group = tuple[int, ...]
"""Processes of a group, ascending: the order in which torch numbers them."""

_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class Wire:
    """A process's membership in the world of all ranks.

    Args:
        process: Its number.
        processes: How many there are.
        folder: An empty folder that all of them share.
        timeout_s: How long a process waits for the others before it gives up, in seconds.
    """

    def __init__(self, process: int, processes: int, folder: Path, timeout_s: float) -> None:
        self.process = process
        self.backend = "nccl" if _enough_gpus(processes) else "gloo"
        self._place = torch.device("cuda", process) if self.backend == "nccl" else torch.device("cpu")
        if self.backend == "nccl":
            torch.cuda.set_device(self._place)
        store = dist.FileStore(str(folder / "rendezvous"), processes)
        dist.init_process_group(
            self.backend, store=store, rank=process, world_size=processes, timeout=timedelta(seconds=timeout_s)
        )
        self._groups: dict[Group, Any] = {}
        self._lanes: dict[tuple[int, int], Any] = {}
        self._sending: list[tuple[Any, torch.Tensor]] = []

    def make_groups(self, groups: Iterable[Group], lanes: Iterable[tuple[int, int]]) -> None:
        """Make process groups; every process calls this with the same groups, in the same order.

        Args:
            groups: Groups for collectives.
            lanes: (from, to) of messages. NCCL runs what two GPUs exchange on one stream, where a send waits for its
                receive: there each direction gets a stream of its own.
        """
        for group in groups:
            self._groups[group] = dist.new_group(list(group))
        for lane in lanes if self.backend == "nccl" else ():
            self._lanes[lane] = dist.new_group(sorted(lane))

    # --- collectives --------------------------------------------------------------------------------------------------

    def all_reduce(self, array: np.ndarray, reduction: str, group: Group) -> np.ndarray:
        """The reduction of all members' arrays, of one shape."""
        tensor = self._out(array)
        dist.all_reduce(tensor, op=_REDUCTIONS[reduction], group=self._groups[group])
        return self._in(tensor)

    def all_gather(self, array: np.ndarray, lengths: Sequence[int], group: Group) -> list[np.ndarray]:
        """Everybody's flat array, by member; padded to the longest for the way, which gloo wants equal."""
        longest = max(lengths)
        padded = self._out(np.concatenate([array, np.zeros(longest - len(array), dtype=array.dtype)]))
        taken = [torch.empty_like(padded) for _ in group]
        dist.all_gather(taken, padded, group=self._groups[group])
        return [self._in(t)[:length] for t, length in zip(taken, lengths, strict=True)]

    def reduce_scatter(self, parts: Sequence[np.ndarray], reduction: str, group: Group) -> np.ndarray:
        """The reduction of the flat parts that all members have for this one; padded to the longest."""
        longest, mine = max(len(p) for p in parts), len(parts[group.index(self.process)])
        padded = [self._out(np.concatenate([p, np.zeros(longest - len(p), dtype=p.dtype)])) for p in parts]
        taken = torch.empty_like(padded[0])
        dist.reduce_scatter(taken, padded, op=_REDUCTIONS[reduction], group=self._groups[group])
        return self._in(taken)[:mine]

    def all_to_all(self, parts: Sequence[np.ndarray], lengths: Sequence[int], group: Group) -> list[np.ndarray]:
        """The flat parts that the members have for this one, by member.

        Args:
            parts: Flat parts for each member.
            lengths: Elements that each member has for this one.
            group: The members.
        """
        sent = self._out(np.concatenate(parts))
        taken = torch.empty(sum(lengths), dtype=sent.dtype, device=self._place)
        dist.all_to_all_single(taken, sent, list(lengths), [len(p) for p in parts], group=self._groups[group])
        ends = np.cumsum([0, *lengths])
        flat = self._in(taken)
        return [flat[low:high] for low, high in pairwise(ends)]

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, array: np.ndarray, process: int) -> None:
        """Send a message and go on."""
        tensor = self._out(array)
        lane = self._lanes.get((self.process, process))
        # the tensor must live until it has arrived
        self._sending.append((dist.isend(tensor, process, group=lane), tensor))

    def receive(self, shape: tuple[int, ...], kind: np.dtype[Any], process: int) -> np.ndarray:
        """Wait for the next message of a process."""
        tensor = torch.from_numpy(np.empty(shape, dtype=kind)).to(self._place)
        dist.recv(tensor, process, group=self._lanes.get((process, self.process)))
        return self._in(tensor)

    def flush(self) -> None:
        """Wait until all that was sent has been received."""
        for work, _ in self._sending:
            work.wait()
        self._sending.clear()

    def close(self) -> None:
        """Leave."""
        with suppress(RuntimeError):
            dist.destroy_process_group()

    # --- arrays and tensors -------------------------------------------------------------------------------------------

    def _out(self, array: np.ndarray) -> torch.Tensor:
        # a copy: arrays of a store are read-only, and torch writes into what it reduces
        return torch.from_numpy(np.array(array, order="C")).to(self._place)

    def _in(self, tensor: torch.Tensor) -> np.ndarray:
        array: np.ndarray = tensor.cpu().numpy()
        return array


def _enough_gpus(processes: int) -> bool:
    return bool(dist.is_nccl_available()) and torch.cuda.is_available() and torch.cuda.device_count() >= processes
