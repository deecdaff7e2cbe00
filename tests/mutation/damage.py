"""Kinds of damage: what is done at a random place of something legal, and what must be said about it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from paradag.compiler.ir.graph import Phase

T = TypeVar("T")

Seen = Literal["always", "sometimes", "as work", "never"]
"""What an execution behind the verifier's back must make of a damaged graph.

``always``: it stops, gives other numbers, or moves bytes that are not charged. ``as work``: that, or the right numbers
with more or less work than the legal graph. ``sometimes``: that, or nothing at places where the damage changes nothing.
``never``: at no place, since no number depends on it.
"""

SEEN: dict[str, Seen] = {word: word for word in get_args(Seen)}


class NoPlace(Exception):
    """The subject has no place for this damage."""


@dataclass(frozen=True)
class Damage(Generic[T]):
    """A kind of damage.

    Attributes:
        name: What is done, in the words of the field.
        codes: Rules of which at least one must be found.
        apply: Damages a subject at a place that the random generator picks; raises :class:`NoPlace`.
        repaired: Whether a repair must give back the same meaning; else the damage must be rejected. Of a strategy:
            whether a fix can make it legal.
        phases: Phases in which it can be done.
        must: What the random strategy must have, see ``small_specs``.
        seen: What must come of it when it is executed.
        unseen: Where the execution gives the right numbers all the same, and why; empty where it never does.
    """

    name: str
    codes: frozenset[str]
    apply: Callable[[T, random.Random], T]
    repaired: bool = False
    phases: tuple[Phase, ...] = ("prefill", "decode")
    must: frozenset[str] = frozenset()
    seen: Seen = "always"
    unseen: str = ""


def pick(rng: random.Random, places: list[T]) -> T:
    """One of the places.

    Raises:
        NoPlace: there is none.
    """
    if not places:
        raise NoPlace
    return rng.choice(places)
