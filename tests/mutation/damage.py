"""Kinds of damage: what is done at a random place of something legal, and what must be said about it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from paradag.compiler.ir.graph import Phase

T = TypeVar("T")


class NoPlace(Exception):
    """The subject has no place for this damage."""


@dataclass(frozen=True)
class Damage(Generic[T]):
    """A kind of damage.

    Attributes:
        name: What is done, in the words of the field.
        codes: Rules of which at least one must be found.
        apply: Damages a subject at a place that the random generator picks; raises :class:`NoPlace`.
        repaired: Whether a repair must give back the same meaning; else the damage must be rejected.
        phases: Phases in which it can be done.
        must: What the random strategy must have, see ``small_specs``.
    """

    name: str
    codes: frozenset[str]
    apply: Callable[[T, random.Random], T]
    repaired: bool = False
    phases: tuple[Phase, ...] = ("prefill", "decode")
    must: frozenset[str] = frozenset()


def pick(rng: random.Random, places: list[T]) -> T:
    """One of the places.

    Raises:
        NoPlace: there is none.
    """
    if not places:
        raise NoPlace
    return rng.choice(places)
