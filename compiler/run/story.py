"""What a strategy must come out with: the undistributed model's run over some prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..spec import Spec
from .reference import Reference
from .report import TOLERANCE
from .weights import Checkpoint, Weights

MARGIN = 1e-6
"""Distance between the best and the next best logit (or expert) below which another seed is drawn.

What is below the tolerance is too small as well.
"""

_SEEDS = 50


class Oracle(Protocol):
    """Another implementation of the model, with weights of its own, that says what the logits must be."""

    @property
    def weights(self) -> Weights:
        """Its weights, under the operators' names."""
        ...

    @property
    def tolerance(self) -> float:
        """Largest absolute difference of a logit that its arithmetic explains."""
        ...

    def greedy(self, prompts: np.ndarray, steps: int) -> np.ndarray:
        """Logits [1 + steps, batch, vocab] after the prompts [batch, prompt] and after each further best token."""
        ...


@dataclass(frozen=True)
class Story:
    """What the undistributed model does with some prompts.

    Attributes:
        seed: Seed of weights and prompts.
        checkpoint: Weights.
        prompts: [batch, prompt].
        logits: [1 + steps, batch, vocab]: after the prompt, then after every decode step.
        ids: [1 + steps, batch]: tokens chosen.
        cache: KV cache after the prompt, by layer.
        top_margin: See :class:`~paradag.compiler.run.report.Verification`.
        router_margin: See :class:`~paradag.compiler.run.report.Verification`.
        tolerance: Largest absolute difference of a logit that is rounding.
    """

    seed: int
    checkpoint: Weights
    prompts: np.ndarray
    logits: np.ndarray
    ids: np.ndarray
    cache: dict[int, np.ndarray]
    top_margin: float
    router_margin: float
    tolerance: float


def tell(spec: Spec, steps: int, seed: int, oracle: Oracle | None = None) -> Story:
    """The undistributed run, with the first seed whose decisions are clear (or the clearest of many).

    Args:
        spec: Model, workload and phases.
        steps: Decode steps.
        seed: First seed of random weights and prompts.
        oracle: Who says what the logits must be, and has the weights; default the reference, with random weights.
    """
    best: Story | None = None
    for number in range(seed, seed + _SEEDS):
        story = _attempt(spec, steps, number, oracle)
        if best is None or min(story.top_margin, story.router_margin) > min(best.top_margin, best.router_margin):
            best = story
        if min(best.top_margin, best.router_margin) >= max(MARGIN, best.tolerance):
            break
    assert best is not None
    return best


def _attempt(spec: Spec, steps: int, seed: int, oracle: Oracle | None) -> Story:
    model = spec.model
    checkpoint = oracle.weights if oracle else Checkpoint(model, seed)
    prompts = np.random.default_rng([seed, 1]).integers(model.vocab, size=(batch_of(spec), spec.workload.input))
    steps = steps if spec.strategy("decode") else 0
    reference = Reference(model, checkpoint)
    rows = [reference.forward(prompts)]
    cache = dict(reference.cache)
    for _ in range(steps):
        rows.append(reference.forward(rows[-1].argmax(axis=-1)[:, None]))
    logits = oracle.greedy(prompts, steps) if oracle else np.stack(rows)
    top = np.sort(logits, axis=-1)
    margin = float((top[..., -1] - top[..., -2]).min()) if model.vocab > 1 else np.inf
    return Story(
        seed=seed,
        checkpoint=checkpoint,
        prompts=prompts,
        logits=logits,
        ids=logits.argmax(axis=-1),
        cache=cache,
        top_margin=margin,
        router_margin=reference.router_margin,
        tolerance=oracle.tolerance if oracle else TOLERANCE,
    )


def batch_of(spec: Spec) -> int:
    """Sequences that a replica runs: the most of any phase."""
    batch = spec.workload.batch or 1
    return max(-(-batch // s.degree("dp")) for s in spec.strategies)
