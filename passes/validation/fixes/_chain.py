"""Repairs of the chain as written: names, order, options that mean nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .._case import Case
from .._chain_rules import ORDER
from .._law_rules import AXES
from ._steps import Candidate, Kind, drop_repeated, drop_term, rename, set_options, set_term, sort_chain, together

_OWNERS = {"layers": "pp", "etp": "ep", "redundant": "ep"}
_EMPTY = {"layers": (), "etp": None, "redundant": 0}


def unknown_dimension(case: Case) -> Iterator[Candidate]:
    """A near spelling of one dimension and no other: letters doubled, exchanged or capital (`tpp`, `pt`, `TP`)."""
    for name in dict.fromkeys(t.name for t in case.strategy.chain if t.name not in ORDER):
        close = [known for known in ORDER if _is_near(name.lower(), known)]
        if len(close) == 1:
            yield Candidate(Kind.INSERT, rename(name, close[0]))


def _is_near(word: str, known: str) -> bool:
    doubled = "".join(f"{letter}+" for letter in known)
    return word == known[::-1] or re.fullmatch(doubled, word) is not None


def inverted_nesting(case: Case) -> Iterator[Candidate]:
    """The same terms in the one legal order."""
    if all(t.name in ORDER for t in case.strategy.chain):
        yield Candidate(Kind.INSERT, sort_chain)


def given_twice(case: Case) -> Iterator[Candidate]:
    """A repeated term goes; two that contradict one another are for their author to decide."""
    if len(drop_repeated(case.strategy).chain) < len(case.strategy.chain):
        yield Candidate(Kind.INSERT, drop_repeated)


def sp_in_decode(case: Case) -> Iterator[Candidate]:
    """It is left out anyway."""
    yield Candidate(Kind.INSERT, drop_term("sp"))


def nothing_to_split(case: Case) -> Iterator[Candidate]:
    """A term that splits nothing goes."""
    if not case.moe_layers and case.strategy.term("ep"):
        yield Candidate(Kind.CHANGE, drop_term("ep"))
    sp = case.strategy.term("sp")
    if sp is not None and sp.degree is None:
        yield Candidate(Kind.CHANGE, drop_term("sp"))


def misplaced_option(case: Case) -> Iterator[Candidate]:
    """The option moves to the dimension that it belongs to, where that has none; else it goes."""
    for term in case.strategy.chain:
        for option, owner in _OWNERS.items():
            value = getattr(term, option)
            if not value or term.name == owner:
                continue
            gone = set_term(term.name, **{option: _EMPTY[option]})
            home = case.strategy.term(owner)
            if home is not None and not getattr(home, option):
                yield Candidate(Kind.INSERT, together(gone, set_term(owner, **{option: value})))
            yield Candidate(Kind.INSERT, gone)


def unknown_option(case: Case) -> Iterator[Candidate]:
    """An unknown kind goes; a ``placement`` is completed and freed of what is no axis, or goes."""
    for term in case.strategy.chain:
        if term.kind is not None and term.degree is not None:
            yield Candidate(Kind.INSERT, set_term(term.name, kind=None))
    order = case.strategy.placement
    if order:
        named = [a for a in dict.fromkeys(order) if a in AXES]
        absent = [a for a in AXES if a not in named and case.degrees.fits() and getattr(case.degrees, a) > 1]
        if named:
            yield Candidate(Kind.INSERT, set_options(placement=(*absent, *named)))
        yield Candidate(Kind.INSERT, set_options(placement=()))
