"""Serving metrics of one strategy: step tables from its lowered graphs, and the run of a benchmark on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...compiler.cost.closed_form import decode_interval
from ...compiler.cost.serving import ClosedLoop, Latencies, Scheduling, StepTable, simulate
from ...compiler.ir.graph import Graph
from ...compiler.spec.engines import Engine
from .memory import weight_bytes
from .step_times import StepTimes

Floats = NDArray[np.float64]

_FINE = 16
"""Up to so many sequences or 64ths of the budget, tables have every entry; between further ones they interpolate."""


@dataclass(frozen=True)
class Point:
    """A load on a strategy.

    Attributes:
        load: The benchmark, with the requests in flight over all replicas.
        budget: Tokens of a step with prompts, per attention-DP group; None takes the engine's default.
        host: Whether requests come through the engine's server, whose host side takes time too.
    """

    load: ClosedLoop
    budget: int | None = None
    host: bool = True


class ServingModel:
    """One strategy served by one engine: both phases' step times, and what the engine adds."""

    def __init__(self, prefill: StepTimes, decode: StepTimes, engine: Engine) -> None:
        self.prefill, self.decode, self.engine = prefill, decode, engine
        self.memory = decode.hardware.memory

    def latencies(self, points: Sequence[Point]) -> list[Latencies]:
        """Mean latencies of the requests at each point."""
        return [
            simulate(self.hosted(table, point), self.scheduling(point), self.load_of_group(point))
            for table, point in zip(self.tables(points), points, strict=True)
        ]

    def scheduling(self, point: Point) -> Scheduling:
        """How the engine fills a step of one attention-DP group at a point."""
        budget = point.budget or self.engine.default_budget(self.memory)
        return Scheduling(self.engine.policy, budget, self.engine.chunked, self._admitted(point), self.engine.lag)

    def tables(self, points: Sequence[Point]) -> list[StepTable]:
        """Step tables of all points; node costs are evaluated three times in all, whatever their number."""
        loads = [self.load_of_group(p) for p in points]
        budgets = [self.scheduling(p).budget for p in points]
        grids = [_batches(load.clients) for load in loads]
        columns = self._decode_columns(grids, [load.prompt + max(1, load.output // 2) for load in loads])
        tokens = _tokens(max(max(b, load.prompt) + load.clients for b, load in zip(budgets, loads, strict=True)))
        body = self.prefill.parts(self.prefill.groups, tokens, tokens).body
        attention = self._prompt_attention(loads, budgets)
        slowest = body.max(axis=1)
        shared = {
            "prompt_tokens": tokens.astype(np.float64),
            "body": slowest,
            "fill": float((body.sum(axis=1) - slowest)[len(tokens) // 2]),
        }
        tables = []
        for load, grid, (steps, beside), share in zip(loads, grids, columns, attention, strict=True):
            every = np.arange(load.clients + 1)
            decode = np.interp(every, grid, steps).tolist()
            added = np.where(every > 0, np.interp(every, grid, beside), 0.0).tolist()
            tables.append(StepTable(decode=decode, decode_attention=added, prompt_attention=share, **shared))
        return tables

    def hosted(self, table: StepTable, point: Point) -> StepTable:
        """A step table with what the host adds to decode steps at a point, and its least time of one with prompts."""
        # without a server no one says how the engine was driven: the measured rate of eager kernels
        issue = self.engine.issue_s if point.host else self.prefill.hardware.calibration.launch.issue_s
        table = replace(table, floor=float(self.prefill.kernels.max()) * issue)
        if not point.host:
            return table
        every = range(len(table.decode))
        host = [self.engine.step_s + self.engine.sequence_s * batch for batch in every]
        return replace(table, decode=[device + own for device, own in zip(table.decode, host, strict=True)])

    def load_of_group(self, point: Point) -> ClosedLoop:
        """The load of one attention-DP group of one replica."""
        load, engine = point.load, self.engine
        shares = self.decode.groups * self.decode.graph.mesh.dp
        load = replace(load, clients=-(-load.clients // shares))
        if not point.host:
            return load
        return replace(
            load,
            transit=engine.request_s,
            # one front end serves all groups, whose requests come as close together as this group's
            tokenize=engine.tokenize_s * shares,
        )

    def _decode_columns(self, grids: list[Floats], contexts: list[int]) -> list[tuple[Floats, Floats]]:
        """Per point and batch: seconds of a decode step, and of the part of it that a mixed step adds."""
        stages = len(self.decode.graph.stages)
        batch = np.concatenate(grids)
        context = np.repeat(contexts, [len(g) for g in grids])
        per_item = np.ceil(batch / stages)
        parts = self.decode.parts(self.decode.groups * per_item, 1, context)
        steps = decode_interval(parts.total, stages)
        beside = (parts.attention + parts.head).max(axis=1) * (batch / per_item)
        ends = np.cumsum([len(g) for g in grids])[:-1]
        return list(zip(np.split(steps, ends), np.split(beside, ends), strict=True))

    def _prompt_attention(self, loads: list[ClosedLoop], budgets: list[int]) -> list[float]:
        """Seconds of a prompt's attention per prompt token, summed over its chunks."""
        columns: list[tuple[int, int, int, int]] = []
        for number, (load, budget) in enumerate(zip(loads, budgets, strict=True)):
            chunk = min(load.prompt, budget) if self.engine.chunked else load.prompt
            together = max(1, min(budget // load.prompt, load.clients))
            for past in range(0, load.prompt, chunk):
                columns.append((number, together, min(chunk, load.prompt - past), past))
        owner, together_, new, past_ = (np.array(c) for c in zip(*columns, strict=True))
        times = self.prefill.parts(self.prefill.groups * together_, new, past_ + new).attention.max(axis=1) / together_
        totals = np.bincount(owner, times, minlength=len(loads))
        return [float(t) / load.prompt for t, load in zip(totals, loads, strict=True)]

    def _admitted(self, point: Point) -> int:
        """Sequences of a group for which the KV cache has room, at least one; all where not even the weights fit."""
        load = self.load_of_group(point)
        tokens = round(load.prompt + self.engine.output_reserved * load.output)
        free = self.memory * self.engine.memory_fraction - max(weight_bytes(self.decode.graph))
        if free <= 0:
            return max(1, load.clients)  # it was served all the same: the estimate of the weights is too high
        return max(1, int(free // cache_bytes(self.decode.graph, self.decode.groups, tokens)))


def disaggregated(
    prefill: ServingModel, decode: ServingModel, points: Sequence[Point], prefill_workers: int, decode_workers: int
) -> list[Latencies]:
    """Latencies where prompts and decodes run on workers of their own.

    A decode worker's steps hold no prompts: the time per token is the step of its share of the sequences. A prompt
    worker's clients come back after the decode of their request.
    """
    shares = [replace(p, load=replace(p.load, clients=-(-p.load.clients // decode_workers))) for p in points]
    steps = [decode.hosted(t, p).decode[-1] for t, p in zip(decode.tables(shares), shares, strict=True)]
    loads = [
        replace(
            p,
            load=replace(
                p.load,
                clients=-(-p.load.clients // prefill_workers),
                output=1,
                pause=(p.load.output - 1) * step,
            ),
        )
        for p, step in zip(points, steps, strict=True)
    ]
    found = prefill.latencies(loads)
    return [replace(latency, tpot=step, longest_gap=step) for latency, step in zip(found, steps, strict=True)]


def cache_bytes(graph: Graph, batch: int, tokens: int) -> float:
    """Bytes of KV cache on the fullest rank: ``batch`` sequences of ``tokens`` tokens, sliding layers their window."""
    stages = np.zeros(len(graph.stages))
    for block, node in graph.nodes():
        if node.op == "kv_write":
            window = next((n.attrs.get("window") for n in block.nodes if n.op == "attention"), None)
            length = min(tokens, window) if window else tokens
            size = node.outputs[0].type.local_bytes({"batch": batch, "new": length, "context": length}, graph.mesh)
            np.add.at(stages, graph.stages_of(block, node), size)
    return float(stages.max())


def _batches(largest: int) -> Floats:
    """Batches at which decode steps are evaluated: all small ones, then about eight per doubling."""
    fine = np.arange(1, min(largest, _FINE) + 1)
    coarse = np.rint(np.geomspace(_FINE, max(largest, _FINE), 1 + 8 * max(1, int(np.log2(max(1, largest / _FINE))))))
    return np.unique(np.concatenate([fine, coarse[coarse <= largest], [largest]])).astype(np.float64)


def _tokens(largest: int) -> NDArray[np.int64]:
    """Token counts at which steps with prompts are evaluated: tile by tile at first, then about twelve per doubling."""
    fine = np.arange(0, 1025, 64)
    fine[0] = 1
    coarse = np.rint(np.geomspace(1024, max(largest, 1025), 12 * max(1, int(np.log2(max(2, largest / 1024))))))
    return np.unique(np.concatenate([fine, coarse])).astype(np.int64)
