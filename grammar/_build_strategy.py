"""The ``strategy`` blocks: chain and options as written; whether names and order make sense is judged later."""

from __future__ import annotations

from typing import Any

from ..compiler.spec import ChainTerm, StrategySpec
from ..compiler.spec.model import MAX_LAYERS
from ..compiler.spec.strategy import Phase
from ._context import Block, Context
from ._findings import Findings
from ._syntax import Statement
from ._tables import grammar
from ._units import TOKENS
from ._words import DIMENSIONS, nearest, quoted

__all__ = ["build_strategies"]

_PHASES: tuple[Phase, ...] = ("prefill", "decode")


def build_strategies(context: Context, heads: list[Statement]) -> tuple[StrategySpec, ...]:
    """The strategies of the file, prefill first; a block without a phase serves both."""
    found: dict[Phase, StrategySpec] = {}
    lines: dict[Phase, int] = {}
    for head in heads:
        for phase in _phases(context, head):
            if phase in lines:
                context.report(
                    "PD012",
                    f"strategy for {phase} given twice, first on line {lines[phase]}",
                    head.span(context.file),
                    "one strategy for each phase",
                    "a block without a phase serves both: name the phase of each block, or remove one",
                )
                continue
            lines[phase] = head.key.line or 1
            strategy = _strategy(context, head, phase, both=not head.values)
            if strategy is not None:
                found[phase] = strategy
    return tuple(found[phase] for phase in _PHASES if phase in found)


def _phases(context: Context, head: Statement) -> tuple[Phase, ...]:
    names = head.tokens("NAME")
    if not names:
        return _PHASES
    known = tuple(phase for phase in _PHASES if phase == names[0])
    if not known:
        Block(context, head, "strategy").unknown_name(names[0], "strategy", _PHASES)
    return known


def _strategy(context: Context, head: Statement, phase: Phase, *, both: bool) -> StrategySpec | None:
    path = f"strategy.{phase}"
    # Both phases read the same text: findings of the second reading would repeat the first's.
    own = Context(context.file, Findings(), context.damaged)
    own.sources = context.sources
    block = Block(own, head, path, "strategy")
    fields: dict[str, Any] = {"phase": phase}
    block.read_counts(fields, "ranks", "microbatches")
    block.read_counts(fields, "chunk", measure=TOKENS)
    block.read_choices(fields, "pools")
    if (placement := block.get("placement")) is not None:
        block.place("placement", placement)
        fields["placement"] = tuple(str(t) for t in placement.tokens("AXIS"))
    fields["chain"] = _chain(block, path)
    if both and phase == "decode":
        _drop_sp(own, fields, path)
    strategy = own.validate(StrategySpec, fields, path)
    if not both or phase == "prefill" or not own.failed:
        context.diagnostics += own.diagnostics
    return strategy


def _chain(block: Block, path: str) -> tuple[ChainTerm, ...]:
    context = block.context
    terms: list[ChainTerm] = []
    for number, chain in enumerate(block.chains):
        first = (chain.block or [chain])[0]
        if _is_misspelt_option(first, alone=len(chain.block or ()) == 1):
            options = grammar().keys["strategy"]
            context.report(
                "PD011",
                f"unknown key `{first.key}` in `strategy`",
                block.span(first),
                quoted(options),
                f"did you mean `{nearest(first.key, options)[0]}`?",
            )
            continue
        if number and terms:
            context.report(
                "PD010",
                f"a second chain begins with `{first.key}`",
                block.span(first),
                "one chain of terms joined by `->`",
                f"join them: `... -> {first.key} ...`",
            )
        for statement in chain.block or ():
            term = _term(block, statement, f"{path}.{statement.key}", f"{path}.chain.{len(terms)}")
            if term is not None:
                terms.append(term)
    return tuple(terms)


def _is_misspelt_option(first: Statement, *, alone: bool) -> bool:
    """`microbatch 8` parses as a chain of one term; a lone unknown name close to an option is that option."""
    return alone and first.key not in DIMENSIONS and bool(nearest(first.key, grammar().keys["strategy"], cutoff=0.75))


def _term(block: Block, statement: Statement, path: str, indexed: str) -> ChainTerm | None:
    context = block.context
    inner = Block(context, statement, path, str(statement.key))
    context.sources[indexed] = inner.head
    fields: dict[str, Any] = {"name": str(statement.key)}
    if numbers := statement.tokens("NUMBER"):
        fields["degree"] = inner.whole(statement, numbers[0])
    if names := statement.tokens("NAME"):
        fields["kind"] = str(names[0])
    inner.read_counts(fields, "etp", "redundant")
    if (layers := inner.get("layers")) is not None:
        inner.place("layers", layers)
        counts = [inner.whole(layers, token) for token in layers.tokens("NUMBER")]
        if any(count is not None and not 0 <= count <= MAX_LAYERS for count in counts):
            context.report(
                "PD015", "a stage's number of layers is out of range", inner.span(layers), f"0 to {MAX_LAYERS:,} layers"
            )
        fields["layers"] = tuple(count for count in counts if count is not None)
    return context.validate(ChainTerm, {k: v for k, v in fields.items() if v is not None}, path)


def _drop_sp(context: Context, fields: dict[str, Any], path: str) -> None:
    for term in fields["chain"]:
        if term.name == "sp":
            shown = "sp tp" if term.degree is None else f"sp {term.degree}"
            context.report(
                "PD204",
                f"`{shown}` is left out of decode: a decode step has one token per sequence",
                context.sources.get(f"{path}.sp"),
                None,
                "write a block for each phase to say so yourself",
            )
    fields["chain"] = tuple(term for term in fields["chain"] if term.name != "sp")
