"""Rotary embedding of a Hugging Face config: today's ``rope_parameters``, or the flat keys of older files.

Which of the two wins, and what is taken where neither says anything, is as in ``transformers``
(``modeling_rope_utils.py`` and the configuration class of each model type).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ._hf_fields import Fields

__all__ = ["Numerics", "read_rotary"]


@dataclass(frozen=True)
class Numerics:
    """What the ``transformers`` class of a model type assumes where the config is silent.

    Attributes:
        theta: Base of the wavelengths.
        eps: ``rms_norm_eps``.
        style: How features are paired.
        partial: Share of a head's features that turn; None where the class turns all whatever the config says.
        scaling: Scaling where the config has no rotary parameters at all.
    """

    theta: float = 10_000.0
    eps: float = 1e-6
    style: str = "half"
    partial: float | None = None
    scaling: Mapping[str, Any] | None = None


def read_rotary(c: Fields, numerics: Numerics, head_dim: int) -> dict[str, Any]:
    """The fields of a :class:`~paradag.compiler.spec.RotarySpec`.

    Args:
        c: The config.
        numerics: What its class assumes.
        head_dim: Features of a head.
    """
    own = _parameters(c)
    holder = own if own is not None and "rope_theta" in own else c
    rotary: dict[str, Any] = {"theta": holder.number("rope_theta", numerics.theta), "style": numerics.style}
    width = _width(c, own, numerics, head_dim)
    if width != head_dim:
        rotary["dim"] = width
    scaling = numerics.scaling if own is None else _scaling(c, own)
    if scaling is not None:
        rotary["scaling"] = dict(scaling)
    return rotary


def _parameters(c: Fields) -> Fields | None:
    """The object of rotary parameters, the old one first; None where the config has none that says anything."""
    for key in ("rope_scaling", "rope_parameters"):
        own = c.object(key)
        if own is None or not list(own):
            continue
        if "full_attention" in own or "sliding_attention" in own:
            raise c.unsupported(key, "a rotary embedding for each kind of layer")
        return own
    return None


def _width(c: Fields, own: Fields | None, numerics: Numerics, head_dim: int) -> int:
    """Features that turn."""
    holder = own if own is not None and "partial_rotary_factor" in own else c
    share = numerics.partial
    if "partial_rotary_factor" in holder:
        share = holder.number("partial_rotary_factor", 1.0)
    elif numerics.partial is not None and "rotary_dim" in c:
        return int(c.count("rotary_dim"))
    if share is None or share == 1:
        return head_dim
    if numerics.partial is None:
        raise holder.unsupported("partial_rotary_factor", "turning a part of each head in this model type")
    return int(head_dim * share)


def _scaling(c: Fields, own: Fields) -> dict[str, Any] | None:
    key = "rope_type" if "rope_type" in own else "type"
    kind = own.text(key, "default")
    if kind in _READERS:
        return _READERS[kind](c, own)
    if kind == "dynamic":
        length = c.count("max_position_embeddings", None)
        up_to = "the longest context" if length is None else f"{length} tokens"
        c.assume("rotary.scaling", "none", f"`dynamic` scaling changes nothing up to {up_to}")
    elif kind != "default":
        raise own.unsupported(key, f"rotary scaling `{kind[:40]}`")
    return None


def _yarn(c: Fields, own: Fields) -> dict[str, Any]:
    original = _original(c, own)
    # Without a factor it is the growth of the longest context.
    factor = own.number("factor") if "factor" in own else c.count("max_position_embeddings") / original
    scaling = {"kind": "yarn", "factor": factor, "original": original, "truncate": own.flag("truncate", True)}
    for key in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"):
        if key in own and not own.is_zero(key):  # zero counts as absent
            scaling[key] = own.number(key, 1.0)
    return scaling


def _llama3(c: Fields, own: Fields) -> dict[str, Any]:
    keys = {"factor": "factor", "low_freq": "low_freq_factor", "high_freq": "high_freq_factor"}
    numbers = {ours: own.number(theirs) for ours, theirs in keys.items()}
    if numbers["high_freq"] <= numbers["low_freq"]:
        raise own.bad("high_freq_factor", "more than `low_freq_factor`")
    return {"kind": "llama3", "original": _original(c, own), **numbers}


def _linear(c: Fields, own: Fields) -> dict[str, Any]:
    return {"kind": "linear", "factor": own.number("factor")}


def _original(c: Fields, own: Fields) -> int:
    """Length of the training before the stretch; the longest context where nothing else is said."""
    key = "original_max_position_embeddings"
    if key not in c and key not in own:
        return int(c.count("max_position_embeddings"))
    return int((c if key in c else own).count(key))


_READERS: dict[str, Callable[[Fields, Fields], dict[str, Any]]] = {"yarn": _yarn, "llama3": _llama3, "linear": _linear}
