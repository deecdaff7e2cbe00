"""What a strategy must come out with: the undistributed model's run over some prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..spec import Spec
from .reference import Reference
from .weights import Checkpoint

MARGIN = 1e-6
"""Distance between the best and the next best logit (or expert) below which another seed is drawn."""

_SEEDS = 50


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
    """

    seed: int
    checkpoint: Checkpoint
    prompts: np.ndarray
    logits: np.ndarray
    ids: np.ndarray
    cache: dict[int, np.ndarray]
    top_margin: float
    router_margin: float


def tell(spec: Spec, steps: int, seed: int) -> Story:
    """The reference's run, with the first seed whose decisions are clear (or the clearest of many)."""
    best: Story | None = None
    for number in range(seed, seed + _SEEDS):
        story = _attempt(spec, steps, number)
        if best is None or min(story.top_margin, story.router_margin) > min(best.top_margin, best.router_margin):
            best = story
        if min(best.top_margin, best.router_margin) >= MARGIN:
            break
    assert best is not None
    return best


def _attempt(spec: Spec, steps: int, seed: int) -> Story:
    model = spec.model
    checkpoint = Checkpoint(model, seed)
    prompts = np.random.default_rng([seed, 1]).integers(model.vocab, size=(batch_of(spec), spec.workload.input))
    reference = Reference(model, checkpoint)
    logits = [reference.forward(prompts)]
    cache = dict(reference.cache)
    ids = [logits[0].argmax(axis=-1)]
    for _ in range(steps if spec.strategy("decode") else 0):
        logits.append(reference.forward(ids[-1][:, None]))
        ids.append(logits[-1].argmax(axis=-1))
    top = np.sort(np.stack(logits), axis=-1)
    margin = float((top[..., -1] - top[..., -2]).min()) if model.vocab > 1 else np.inf
    return Story(seed, checkpoint, prompts, np.stack(logits), np.stack(ids), cache, margin, reference.router_margin)


def batch_of(spec: Spec) -> int:
    """Sequences that a replica runs: the most of any phase."""
    batch = spec.workload.batch or 1
    return max(-(-batch // s.degree("dp")) for s in spec.strategies)
