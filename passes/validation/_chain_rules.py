"""Rules on the chain as written: names, order, options."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import pairwise

from ...compiler.spec import ChainTerm
from ._case import Case, Finding

ORDER = ("dp", "pp", "sp", "ep", "tp")
"""The legal nesting, outermost first."""

_OPTIONS = {"layers": "pp", "etp": "ep", "redundant": "ep"}


def unknown_dimension(case: Case) -> Iterator[Finding]:
    """Only DP, PP, SP, EP and TP exist."""
    for index, term in enumerate(case.strategy.chain):
        if term.name not in ORDER:
            close = get_close_matches(term.name.lower(), ORDER, n=2, cutoff=0.4)
            fix = f"did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else f"remove `{_shown(term)}`"
            yield Finding(
                f"unknown parallel dimension `{term.name}`",
                _at(index, term),
                "one of `dp`, `pp`, `sp`, `ep`, `tp`",
                fix,
            )


def inverted_nesting(case: Case) -> Iterator[Finding]:
    """Dimensions nest as DP, PP, SP, EP, TP, outermost first."""
    known = [(i, t) for i, t in enumerate(case.strategy.chain) if t.name in ORDER]
    ordered = sorted((t for _, t in known), key=lambda t: ORDER.index(t.name))
    fix = f"write `{' -> '.join(_shown(t) for t in ordered)}`"
    for (_, outer), (index, inner) in pairwise(known):
        if ORDER.index(inner.name) < ORDER.index(outer.name):
            yield Finding(
                f"`{inner.name}` inside `{outer.name}`", _at(index, inner), "the order dp -> pp -> sp -> ep -> tp", fix
            )


def given_twice(case: Case) -> Iterator[Finding]:
    """Each dimension stands once in the chain."""
    first: dict[str, ChainTerm] = {}
    for index, term in enumerate(case.strategy.chain):
        known = term.name in first
        first.setdefault(term.name, term)
        if known:
            yield Finding(
                f"`{term.name}` given twice",
                _at(index, term),
                "each dimension at most once",
                f"keep one of `{_shown(first[term.name])}` and `{_shown(term)}`",
            )


def sp_in_decode(case: Case) -> Iterator[Finding]:
    """A decode step has one token per sequence, so SP is for prefill."""
    for index, term in enumerate(case.strategy.chain):
        if term.name == "sp" and case.phase == "decode" and term.degree != 1:
            yield Finding(
                f"`{_shown(term)}` is left out of decode: a decode step has one token per sequence",
                _at(index, term),
                "sequence parallelism in prefill only",
                f"remove `{_shown(term)}` and give its ranks to `tp` or, with `ranks`, to attention DP",
            )


def nothing_to_split(case: Case) -> Iterator[Finding]:
    """EP needs experts, and the Megatron kind of SP a TP group."""
    s, model = case.strategy, case.model
    ep, sp = s.term("ep"), s.term("sp")
    if ep is not None and not case.moe_layers:
        options = [f"etp {ep.etp}"] if (ep.etp or 1) > 1 else []
        options += [f"redundant {ep.redundant}"] if ep.redundant else []
        if options or (ep.degree or 1) > 1:
            asked = f"ep {ep.degree} {{ {' '.join(options)} }}" if options else f"ep {ep.degree}"
            yield Finding(
                f"`{asked}` on a dense model: {model.name} has no experts",
                ("ep",),
                "expert parallelism on a model with a mixture of experts",
                f"remove `{asked}`",
            )
    if sp is not None and sp.degree is None and sp.kind == "tp" and s.degree("tp") == 1 and case.phase == "prefill":
        yield Finding("`sp tp` without a TP group to cut tokens over", ("sp",), "`tp` of 2 or more", "remove `sp tp`")


def misplaced_option(case: Case) -> Iterator[Finding]:
    """An option stands in the braces of its own dimension."""
    for index, term in enumerate(case.strategy.chain):
        for option, owner in _OPTIONS.items():
            if getattr(term, option) and term.name != owner and term.name in ORDER:
                yield Finding(
                    f"`{option}` is no option of `{term.name}`",
                    (f"{term.name}.{option}", *_at(index, term)),
                    f"`{option}` in the braces of `{owner}`",
                    f"remove it, or move it to `{owner}`",
                )


def unknown_option(case: Case) -> Iterator[Finding]:
    """Degrees are given, and kinds are known."""
    for index, term in enumerate(case.strategy.chain):
        if term.name not in ORDER:
            continue
        at = _at(index, term)
        megatron = term.name == "sp" and term.kind == "tp" and term.degree is None
        if term.degree is None and not megatron:
            yield Finding(
                f"`{term.name}` has no degree", at, f"a number, as in `{term.name} 2`", f"write `{term.name} 2`"
            )
        elif term.kind is not None and term.name != "sp":
            yield Finding(f"`{term.name}` has no kinds", at, "`kind` on `sp` only", f"remove `kind {term.kind}`")
        elif term.kind not in {None, "allgather", "ring", "ulysses"} and not megatron:
            fix = "write `sp tp` for the kind without own ranks" if term.kind == "tp" else "write `kind allgather`"
            yield Finding(
                f"unknown kind `{term.kind}` of sequence parallelism", at, "`allgather`, `ring` or `ulysses`", fix
            )


def _at(index: int, term: ChainTerm) -> tuple[str, ...]:
    return (f"chain.{index}", term.name)


def _shown(term: ChainTerm) -> str:
    return f"{term.name} {term.kind or 'tp' if term.degree is None else term.degree}"
