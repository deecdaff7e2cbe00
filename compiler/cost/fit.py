"""Fitting a parameter set to measured latencies: robust least squares on the logarithm of the ratio.

Parameters are positive, so they are fitted as logarithms, inside bounds that keep them physical. The loss of
``log(predicted / measured)`` is Huber's, close to the mean absolute percentage error, and grows more slowly still for
large errors: rows that no parameters explain do not rule, what counts is the median. A weak pull
towards the starting values decides what the rows leave open. Everything is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..spec.calibration import Parameters, Residual

Floats = NDArray[np.float64]
P = TypeVar("P", bound=Parameters)

_HUBER = 0.05
"""Errors below this share count squared, larger ones linearly."""
_FAR = 0.3
"""Errors above this share count by their logarithm: such rows ran another kernel, or were disturbed."""
_PULL = 1e-3
"""Weight of the starting values, per row."""
_STEP = 1e-4
_ITERATIONS = 60


def fit(
    predict: Callable[[P], Floats],
    measured: Floats,
    starts: Sequence[P],
    bounds: Mapping[str, tuple[float, float]],
    grid: Mapping[str, Sequence[float]] | None = None,
) -> P:
    """The parameters whose predictions come closest to what was measured.

    Args:
        predict: Seconds of every row under given parameters.
        measured: Seconds of every row, positive.
        starts: Where to begin; the best of all ends wins, the first of equals.
        bounds: Fields to fit and where they may lie; others keep their values.
        grid: Fields that take one of a few values (tile sizes); tried one field after another.
    """
    names = tuple(bounds)
    low, high = (np.log([bounds[n][i] for n in names]) for i in (0, 1))
    best, least = starts[0], np.inf
    for start in starts:
        found, loss = _descend(predict, measured, start, names, low, high)
        if loss < least * (1 - 1e-9):
            best, least = found, loss
    for name, values in (grid or {}).items():
        for value in values:
            if value != getattr(best, name):
                found, loss = _descend(predict, measured, replace(best, **{name: value}), names, low, high)
                if loss < least * (1 - 1e-9):
                    best, least = found, loss
    return best


def _descend(
    predict: Callable[[P], Floats], measured: Floats, base: P, names: tuple[str, ...], low: Floats, high: Floats
) -> tuple[P, float]:
    """Levenberg-Marquardt with Huber weights, steps clipped to the bounds."""
    origin = np.clip(np.log(np.maximum([getattr(base, n) for n in names], np.exp(low))), low, high)
    pull = _PULL * len(measured)

    def at(point: Floats) -> P:
        return replace(base, **dict(zip(names, np.exp(point).tolist(), strict=True)))

    def errors(point: Floats) -> Floats:
        result: Floats = np.log(np.maximum(predict(at(point)), 1e-12) / measured)
        return result

    def loss(error: Floats, point: Floats) -> float:
        size = np.abs(error)
        near = np.minimum(size, _FAR)
        huber = np.where(near < _HUBER, near**2 / (2 * _HUBER), near - _HUBER / 2)
        beyond = _FAR * np.log(np.maximum(size / _FAR, 1.0))
        return float((huber + beyond).sum() + pull * ((point - origin) ** 2).sum() / 2)

    point, damping = origin, 1e-2
    error = errors(point)
    now = loss(error, point)
    for _ in range(_ITERATIONS):
        slopes = np.stack([(errors(point + _STEP * unit) - error) / _STEP for unit in np.eye(len(names))], axis=1)
        size = np.abs(error)
        weighted = slopes / (np.maximum(size, _HUBER) * np.maximum(size / _FAR, 1.0))[:, None]
        matrix = weighted.T @ slopes + pull * np.eye(len(names))
        gradient = weighted.T @ error + pull * (point - origin)
        for _attempt in range(8):
            step = np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), gradient)
            trial = np.clip(point - np.clip(step, -0.7, 0.7), low, high)
            tried = errors(trial)
            then = loss(tried, trial)
            if then < now:
                break
            damping *= 4
        else:
            break
        small = now - then < 1e-5 * now
        point, error, now, damping = trial, tried, then, max(damping / 5, 1e-6)
        if small:
            break
    return at(point), now


def residual(predicted: Floats, measured: Floats) -> Residual:
    """How far predictions are off, as shares of what was measured."""
    error = predicted / measured - 1
    return Residual(
        len(measured), float(np.median(np.abs(error))), float(np.mean(np.abs(error))), float(np.median(error))
    )


def first_half(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Which rows to fit on: half of them, by a checksum of their text, the same on every run."""
    return np.array([crc32(",".join(str(v) for v in row.values()).encode()) & 1 == 0 for row in rows], dtype=bool)
