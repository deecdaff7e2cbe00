"""Rotary embedding of the reference model: pair by pair, as complex numbers. Shares nothing with the kernels."""

from __future__ import annotations

from math import ceil, exp, floor, log, pi

import numpy as np

from ..spec import LinearSpec, Llama3Spec, RotarySpec, YarnSpec


def turn(x: np.ndarray, positions: np.ndarray, rotary: RotarySpec) -> np.ndarray:
    """All features of ``x`` turned by their positions.

    Args:
        x: [batch, seq, width].
        positions: [seq].
        rotary: Base, style and scaling.
    """
    width = x.shape[-1]
    speeds = [_speed(pair, width, rotary) for pair in range(width // 2)]
    rotation = _amplitude(rotary) * np.exp(1j * np.outer(positions, speeds))
    out = np.empty_like(x)
    for pair in range(width // 2):
        one, other = (pair, pair + width // 2) if rotary.style == "half" else (2 * pair, 2 * pair + 1)
        turned = (x[..., one] + 1j * x[..., other]) * rotation[:, pair]
        out[..., one], out[..., other] = turned.real, turned.imag
    return out


def _speed(pair: int, width: int, rotary: RotarySpec) -> float:
    """Radians per token of a pair."""
    speed = exp(-2 * pair / width * log(rotary.theta))
    stretch = rotary.scaling
    if stretch is None:
        return speed
    slow = speed / stretch.factor
    if isinstance(stretch, LinearSpec):
        return slow
    keep = _kept_by_llama3(speed, stretch) if isinstance(stretch, Llama3Spec) else _kept_by_yarn(pair, width, rotary)
    return keep * speed + (1 - keep) * slow


def _kept_by_llama3(speed: float, stretch: Llama3Spec) -> float:
    """1 for wavelengths that fit the training length often enough, 0 for those that hardly fit once."""
    wavelength = 2 * pi / speed
    if wavelength < stretch.original / stretch.high_freq:
        return 1.0
    if wavelength > stretch.original / stretch.low_freq:
        return 0.0
    return (stretch.original / wavelength - stretch.low_freq) / (stretch.high_freq - stretch.low_freq)


def _kept_by_yarn(pair: int, width: int, rotary: RotarySpec) -> float:
    """1 up to the pair that turns ``beta_fast`` times in the training length, 0 from that of ``beta_slow`` turns on."""
    stretch = rotary.scaling
    assert isinstance(stretch, YarnSpec)
    first, last = (
        width / 2 * (log(stretch.original) - log(2 * pi * turns)) / log(rotary.theta)
        for turns in (stretch.beta_fast, stretch.beta_slow)
    )
    if stretch.truncate:
        first, last = floor(first), ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    way = (pair - first) / (last - first or 0.001)
    return 1 - min(max(way, 0.0), 1.0)


def _amplitude(rotary: RotarySpec) -> float:
    stretch = rotary.scaling
    if not isinstance(stretch, YarnSpec):
        return 1.0
    if stretch.attention_factor is not None:
        return stretch.attention_factor
    above, below = 1.0, 0.0
    if stretch.mscale is not None and stretch.mscale_all_dim is not None:
        above, below = stretch.mscale, stretch.mscale_all_dim
    return (1 + 0.1 * above * log(stretch.factor)) / (1 + 0.1 * below * log(stretch.factor))
