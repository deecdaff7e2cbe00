"""The grammar, loaded once, and what the parser reads off it: keywords, and the keys of each block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lark import Lark
from lark.lexer import PatternStr

__all__ = ["TOP_LEVEL", "Grammar", "grammar"]

TOP_LEVEL = ("model", "cluster", "workload", "strategy")


@dataclass(frozen=True)
class Grammar:
    """``strat.lark`` and its vocabulary."""

    lark: Lark
    keywords: dict[str, str]
    """Keyword to terminal."""
    keys: dict[str, tuple[str, ...]]
    """Block to the keys that its statements may begin with, as the grammar's ``*_item`` rules say."""

    def keys_of(self, block: str | None) -> tuple[str, ...]:
        """Keys of the block that ``block`` opens; None is the file itself, any other name a chain term."""
        return TOP_LEVEL if block is None else self.keys.get(block, self.keys["term"])


@cache
def grammar() -> Grammar:
    """The language, from ``strat.lark`` beside this file."""
    lark = Lark(
        files(__package__).joinpath("strat.lark").read_text(encoding="utf-8"),
        parser="lalr",
        lexer="contextual",
        keep_all_tokens=True,
        maybe_placeholders=False,
    )
    words = {
        terminal.name: terminal.pattern.value
        for terminal in lark.terminals
        if isinstance(terminal.pattern, PatternStr) and terminal.pattern.value.isidentifier()
    }
    keys: dict[str, list[str]] = {}
    for rule in lark.rules:
        block, _, suffix = str(rule.origin.name).rpartition("_")
        if suffix == "item" and rule.expansion[0].name in words:
            found = keys.setdefault(block, [])
            if (word := words[rule.expansion[0].name]) not in found:
                found.append(word)
    return Grammar(
        lark, {word: name for name, word in words.items()}, {block: tuple(found) for block, found in keys.items()}
    )
