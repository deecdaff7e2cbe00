"""From step times to serving metrics: continuous batching as engines run it.

An engine runs steps. A step carries one token of every sequence that decodes, prompt tokens up to a budget, or both
(a mixed step). :func:`simulate` plays the schedule of one replica under a closed-loop benchmark and jumps over runs of
equal steps; the closed forms below it are the steady state of the same schedule and take arrays. Times are seconds;
docs/metrics.md holds the definitions.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..ir.types import Number

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StepTable:
    """Durations of the steps of one attention-DP group at the mean context of a run.

    Attributes:
        decode: [batch + 1] seconds of a step of so many decoding sequences and no prompt (entry 0 unused).
        prompt_tokens: [n] ascending token counts at which ``body`` is given.
        body: [n] seconds of the nodes that work on new tokens, prompt and decode together, in a step with prompts.
        decode_attention: [batch + 1] seconds that so many decoding sequences add to such a step: attention and head.
        prompt_attention: Seconds of a prompt's attention, per prompt token.
        floor: Least seconds of a step with prompts: the host launches its kernels one by one.
        fill: Seconds that a prompt's last chunk needs beyond its turn: the trip through the later pipeline stages.
    """

    decode: Sequence[float]
    prompt_tokens: Floats
    body: Floats
    decode_attention: Sequence[float]
    prompt_attention: float
    floor: float = 0.0
    fill: float = 0.0

    def mixed(self, prompt: int, decodes: int) -> float:
        """Seconds of a step with ``prompt`` prompt tokens and ``decodes`` decoding sequences."""
        device = float(np.interp(prompt + decodes, self.prompt_tokens, self.body))
        device += self.prompt_attention * prompt + self.decode_attention[decodes]
        return max(device, self.floor)


@dataclass(frozen=True)
class Scheduling:
    """How an engine fills a step.

    Attributes:
        policy: ``mixed``: prompt chunks share steps with decodes, decodes first. ``prefill_first``: while a prompt
            waits, steps carry prompts only and decodes stand still.
        budget: Tokens of a step at most (prompt and decode tokens of a mixed step; prompt tokens otherwise).
        chunked: Whether a prompt may be cut at the budget; else it runs whole, alone if need be.
        sequences: Sequences that may decode at the same time.
        lag: Steps after its own with whose end a token is handed over: 1 where the host looks at the results of a step
            only after it has launched the next and that has run (overlapped scheduling).
    """

    policy: Literal["mixed", "prefill_first"]
    budget: int
    chunked: bool = True
    sequences: int = 1 << 30
    lag: int = 0


@dataclass(frozen=True)
class ClosedLoop:
    """A benchmark: ``clients`` that each send the next request when the one before is answered.

    Attributes:
        clients: Requests in flight; all first ones are sent at once.
        prompt: Prompt tokens.
        output: Generated tokens.
        generations: Requests of each client.
        shortest: Lengths are uniform between this share of the given ones and all of them.
        transit: Seconds between a request's sending and the engine's queue that requests spend side by side.
        tokenize: Seconds per prompt token of the server's front end, which takes one request at a time.
        pause: Seconds between an answer and the client's next request. They count towards no latency.
    """

    clients: int
    prompt: int
    output: int
    generations: int = 10
    shortest: float = 1.0
    transit: float = 0.0
    tokenize: float = 0.0
    pause: float = 0.0

    def lengths(self) -> tuple[list[int], list[int]]:
        """Prompt and output tokens of every request, the same in every run."""
        count = self.clients * self.generations
        if self.shortest >= 1:
            return [self.prompt] * count, [self.output] * count
        shares = np.random.default_rng(1).uniform(self.shortest, 1.0, (2, count))
        nominal = np.array([[self.prompt], [self.output]])
        prompts, outputs = np.maximum(1, np.rint(nominal * shares)).astype(int).tolist()
        return prompts, outputs


@dataclass(frozen=True)
class Latencies:
    """Means over the requests of a run, seconds.

    Attributes:
        ttft: Time to the first token: ``queue + prefill``.
        queue: From a request's sending to the start of the first step that holds tokens of it.
        prefill: From there to its first token.
        tpot: Time per output token after the first.
        stall: Part of ``tpot`` above the step of a pure decode batch: what other requests' prompts cost a token.
        longest_gap: Longest time between two tokens of a decoding sequence.
    """

    ttft: float
    queue: float
    prefill: float
    tpot: float
    stall: float
    longest_gap: float


def simulate(table: StepTable, scheduling: Scheduling, load: ClosedLoop) -> Latencies:
    """Mean latencies of the requests of a closed-loop benchmark on one replica (or attention-DP group).

    First come, first served. A prompt's last chunk gives its first token; from the next step on it decodes.
    """
    run = _Run(table, scheduling, load)
    run.play()
    sent, start, first, end = (np.array(x) for x in (run.sent_at, run.start, run.first, run.end))
    outputs = np.array(run.outputs)
    several = outputs > 1
    tpot = float(((end - first)[several] / (outputs[several] - 1)).mean()) if several.any() else 0.0
    steady = table.decode[min(load.clients, scheduling.sequences, len(table.decode) - 1)]
    return Latencies(
        ttft=float((first - sent).mean()),
        queue=float((start - sent).mean()),
        prefill=float((first - start).mean()),
        tpot=tpot,
        stall=max(0.0, tpot - steady) if tpot else 0.0,
        longest_gap=run.longest_gap,
    )


class _Run:
    """State of one simulated run. Requests are numbered in the order in which they are sent."""

    def __init__(self, table: StepTable, scheduling: Scheduling, load: ClosedLoop) -> None:
        self.table, self.scheduling, self.load = table, scheduling, load
        self.prompts, self.outputs = load.lengths()
        self.clock = 0.0
        self.launched = 0  # steps of any kind
        self.decoded = 0  # steps in which sequences decode
        self.sent_at, self.start, self.first, self.end = ([0.0] * len(self.prompts) for _ in range(4))
        self.sent = self.done = 0
        self.front = 0.0  # when the front end has handed the last request on
        self.coming: list[tuple[float, int]] = []
        for _ in range(min(load.clients, len(self.prompts))):
            self._send(0.0)
        self.queue: deque[int] = deque()
        self.left = list(self.prompts)
        self.decoding: list[tuple[int, int]] = []  # (value of `decoded` after the last token, request)
        self.lagging: list[tuple[int, int, bool]] = []  # (value of `launched`, request, whether it is the last token)
        self.stalled = self.longest_gap = 0.0
        self.seconds: dict[tuple[int, int], float] = {}

    def play(self) -> None:
        """Run until every request is answered."""
        while self.done < len(self.prompts):
            while self.coming and self.coming[0][0] <= self.clock:
                self.queue.append(heapq.heappop(self.coming)[1])
            taken = self._prompt_tokens()
            if taken:
                self._prompt_step(taken)
            elif self.decoding:
                self._decode_steps()
            else:
                self.clock = max(self.clock, self.coming[0][0])
            self._hand_over()

    def _send(self, now: float) -> None:
        """A client sends the next request: it passes the front end, then goes its way to the queue."""
        request = self.sent
        self.sent_at[request] = now
        self.front = max(self.front, now) + self.load.tokenize * self.prompts[request]
        heapq.heappush(self.coming, (self.front + self.load.transit, request))
        self.sent += 1

    def _prompt_tokens(self) -> list[tuple[int, int]]:
        """(request, tokens) of the prompts that the next step takes."""
        scheduling, decodes = self.scheduling, len(self.decoding)
        room = scheduling.budget - (decodes if scheduling.policy == "mixed" else 0)
        places = scheduling.sequences - decodes
        taken: list[tuple[int, int]] = []
        for request in self.queue:
            left = self.left[request]
            if len(taken) >= places or room <= 0 or (left > room and taken and not scheduling.chunked):
                break
            taken.append((request, min(left, room) if scheduling.chunked else left))
            room -= taken[-1][1]
        return taken

    def _prompt_step(self, taken: list[tuple[int, int]]) -> None:
        mixed = self.scheduling.policy == "mixed"
        key = sum(tokens for _, tokens in taken), len(self.decoding) if mixed else 0
        if key not in self.seconds:
            self.seconds[key] = self.table.mixed(*key)
        begun, self.clock = self.clock, self.clock + self.seconds[key]
        self.launched += 1
        self.stalled += self.seconds[key] if self.decoding else 0.0
        if mixed:
            self.decoded += 1
            self._token_gap()
        for request, tokens in taken:
            if self.left[request] == self.prompts[request]:
                self.start[request] = begun
            self.left[request] -= tokens
            if not self.left[request]:
                self.queue.popleft()
                heapq.heappush(self.lagging, (self.launched + self.scheduling.lag, request, False))
                heapq.heappush(self.decoding, (self.decoded + self.outputs[request] - 1, request))

    def _decode_steps(self) -> None:
        """Equal steps up to the next end of a sequence, arrival or handing over."""
        seconds = self.table.decode[len(self.decoding)]
        steps = self.decoding[0][0] - self.decoded
        if self.coming:
            steps = min(steps, max(1, int(np.ceil((self.coming[0][0] - self.clock) / seconds))))
        if self.lagging:
            steps = min(steps, max(1, self.lagging[0][0] - self.launched))
        self.decoded += steps
        self.launched += steps
        self.clock += steps * seconds
        self.stalled += seconds
        self._token_gap()

    def _token_gap(self) -> None:
        """Sequences have got a token: since the one before, at most ``stalled`` seconds have gone by."""
        if self.decoding:
            self.longest_gap = max(self.longest_gap, self.stalled)
        self.stalled = 0.0

    def _hand_over(self) -> None:
        """First and last tokens whose time has come; with nothing left to run, all of them."""
        while self.decoding and self.decoding[0][0] <= self.decoded:
            request = heapq.heappop(self.decoding)[1]
            heapq.heappush(self.lagging, (self.launched + self.scheduling.lag, request, True))
        idle = not self.queue and not self.decoding
        while self.lagging and (idle or self.lagging[0][0] <= self.launched):
            _, request, last = heapq.heappop(self.lagging)
            if last:
                self._answer(request)
            else:
                self.first[request] = self.clock + self.table.fill

    def _answer(self, request: int) -> None:
        self.end[request] = max(self.clock, self.first[request])
        self.done += 1
        if self.sent < len(self.prompts):
            self._send(self.clock + self.load.pause)


def steady_tpot(decode_step: Number, prompt_step: Number, clients: Number, output: Number) -> Number:
    """Time per output token of a steady continuous batch: ``decode_step + prompt_step * clients / output``.

    In the ``output`` steps of a request every other request's prompt is run once.

    Args:
        decode_step: Seconds of a step of ``clients`` sequences.
        prompt_step: Seconds that one prompt adds to the steps that hold it.
        clients: Sequences in flight.
        output: Tokens that each generates.
    """
    return decode_step + prompt_step * clients / output


def burst_ttft(prompt_step: Number, clients: Number, together: Number) -> Number:
    """Mean time to the first token of ``clients`` requests that arrive at once, ``together`` of which fit a step.

    ``prompt_step * (clients + together) / 2``: group i is done when ``i * together`` prompts have run.
    """
    return prompt_step * (clients + np.minimum(together, clients)) / 2


def arrival_wait(service: Number, rate: Number) -> Number:
    """Mean wait of Poisson arrivals at ``rate`` per second before a server of fixed ``service`` seconds.

    ``rho * service / (2 (1 - rho))``, infinite where ``rho = rate * service >= 1``. Source: Pollaczek-Khinchine
    formula for M/D/1.
    """
    load = np.asarray(rate * service, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        wait = load * service / (2 * (1 - load))
    return np.where(load < 1, wait, np.inf)


def settled_wait(service: Number, rate: Number) -> Number:
    """:func:`arrival_wait` where the queue has a mean; 0 where more arrive than are served."""
    wait = arrival_wait(service, rate)
    return np.where(np.isfinite(wait), wait, 0.0)


def step_wait(interval: Number, microbatches: Number) -> Number:
    """Mean seconds that a prompt waits for the decode step that runs: half of one micro-batch's turn.

    Args:
        interval: Seconds between successive steps of a micro-batch.
        microbatches: Micro-batches that take turns in it.
    """
    return interval / (2 * microbatches)
