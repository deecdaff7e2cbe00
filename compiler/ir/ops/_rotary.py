"""The arithmetic of rotary embedding, from the attributes of a ``rotary`` node."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor, log, pi
from typing import Any

import numpy as np

from ...spec.rotary import ROTARY_THETA, Llama3Spec, YarnSpec
from ._base import Array

__all__ = ["frequencies", "rotate"]


def frequencies(attrs: Mapping[str, Any]) -> Array:
    """Radians per token of each of the ``rotary / 2`` pairs, scaled as ``scaling`` says."""
    width: int = attrs["rotary"]
    theta: float = attrs.get("theta", ROTARY_THETA)
    plain: Array = theta ** (-np.arange(0, width, 2) / width)
    kind = attrs.get("scaling")
    if kind is None:
        return plain
    stretched: Array = plain / attrs["factor"]
    if kind == "linear":
        return stretched
    share = _yarn_share(attrs, width, theta) if kind == "yarn" else _llama3_share(attrs, plain)
    scaled: Array = plain * (1 - share) + stretched * share
    return scaled


def _yarn_share(attrs: Mapping[str, Any], width: int, theta: float) -> Array:
    """How far each pair is stretched, 0 to 1: a ramp over the pairs between ``beta_fast`` and ``beta_slow`` turns."""

    def pair_that_turns(times: float) -> float:
        return width * log(attrs["original"] / (times * 2 * pi)) / (2 * log(theta))

    low = pair_that_turns(attrs.get("beta_fast", _default(YarnSpec, "beta_fast")))
    high = pair_that_turns(attrs.get("beta_slow", _default(YarnSpec, "beta_slow")))
    if attrs.get("truncate", _default(YarnSpec, "truncate")):
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    share: Array = np.clip((np.arange(width // 2) - low) / (high - low), 0.0, 1.0)
    return share


def _llama3_share(attrs: Mapping[str, Any], plain: Array) -> Array:
    """How far each pair is stretched, 0 to 1: linear in the turns within the original length."""
    low = attrs.get("low_freq", _default(Llama3Spec, "low_freq"))
    high = attrs.get("high_freq", _default(Llama3Spec, "high_freq"))
    turns = attrs["original"] * plain / (2 * pi)
    share: Array = np.clip((high - turns) / (high - low), 0.0, 1.0)
    return share


def _default(kind: type[YarnSpec] | type[Llama3Spec], name: str) -> Any:
    return kind.model_fields[name].default


def rotate(x: Array, angle: Array, attrs: Mapping[str, Any]) -> Array:
    """Turn the last ``rotary`` features of ``x``, the first with ``leading``.

    Args:
        x: ``[batch, seq, (heads,) features]``.
        angle: ``[seq, rotary / 2]``.
        attrs: Of the node: ``rotary``, ``leading``, ``style``, ``amplitude``.
    """
    width = attrs["rotary"]
    shape = (1, angle.shape[0], *([1] * (x.ndim - 3)), angle.shape[1])
    amplitude = attrs.get("amplitude", 1.0)
    cos, sin = (amplitude * wave(angle).reshape(shape) for wave in (np.cos, np.sin))
    start = 0 if attrs.get("leading") else x.shape[-1] - width
    before, turned, after = np.split(x, [start, start + width], axis=-1)
    if attrs.get("style", "half") == "half":
        a, b = np.split(turned, 2, axis=-1)
        turned = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    return np.concatenate([before, turned, after], axis=-1)
