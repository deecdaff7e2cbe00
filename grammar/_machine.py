"""The LALR machine over lexemes: which terminal a lexeme is in the present state, and feeding it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lark import Token, UnexpectedToken

from ..compiler.spec import DTYPES
from ._scan import Lexeme
from ._tables import TOP_LEVEL, grammar
from ._units import ALL_UNITS
from ._words import nearest

__all__ = ["Machine"]

_FOLDED_UNITS = frozenset(unit.lower() for unit in ALL_UNITS)


class Machine:
    """Lark's parser state and a cursor over the lexemes of a file."""

    def __init__(self, lexemes: list[Lexeme]) -> None:
        self.grammar = grammar()
        self.lexemes = lexemes
        self.index = 0
        self.lark = self.grammar.lark.parse_interactive()

    @property
    def lexeme(self) -> Lexeme:
        return self.lexemes[self.index]

    def ahead(self, count: int = 1) -> Lexeme:
        return self.lexemes[min(self.index + count, len(self.lexemes) - 1)]

    @property
    def choices(self) -> Mapping[str, Any]:
        choices: Mapping[str, Any] = self.lark.choices()  # type: ignore[no-untyped-call]
        return choices

    @property
    def at_boundary(self) -> bool:
        """Whether a statement may begin or its block end here."""
        return "RBRACE" in self.choices or "$END" in self.choices

    def open_blocks(self) -> tuple[list[Token], Token | None]:
        """Keys of the open blocks, and the key of the unfinished statement."""
        blocks: list[Token] = []
        key: Token | None = None
        for value in self.lark.parser_state.value_stack:
            if not isinstance(value, Token) or value.type == "ARROW":
                continue
            if value.type == "LBRACE":
                blocks.append(key or value)
                key = None
            elif value.type == "RBRACE":
                blocks.pop()
                key = None
            else:
                key = key or value
        return blocks, key

    def block(self) -> str | None:
        blocks, _ = self.open_blocks()
        return str(blocks[-1]) if blocks else None

    def token(self, kind: str, lexeme: Lexeme, text: str | None = None) -> Token:
        return Token(
            kind,
            lexeme.text if text is None else text,
            line=lexeme.line,
            column=lexeme.column,
            end_line=lexeme.line,
            end_column=lexeme.end_column,
        )

    def take(self, lexeme: Lexeme) -> bool:
        """Feed ``lexeme`` as what it is here; False where it does not fit."""
        # LALR lookahead sets are a superset of what a state takes. A refused token has triggered the reductions that
        # were due, and then the choices are exact: hence a second try.
        if self.heads_block(self.index) and self.open_blocks()[0]:
            return False  # the block before it was left open, whatever else the word could be there
        if "LBRACE" in self.choices and lexeme.text in self.grammar.keys["term"] and self.block() == "strategy":
            return False  # `pp 2 layers 3 3`: not a chain that begins with `layers`
        for _ in range(2):
            kind = self._terminal(lexeme)
            if kind is None:
                return False
            if self.push(self.token(kind, lexeme)):
                return True
        return False

    def push(self, token: Token) -> bool:
        """Feed ``token``; False where the state refuses it, with all reductions done that it was a lookahead of."""
        try:
            self.lark.feed_token(token)
        except UnexpectedToken:
            return False
        return True

    def _terminal(self, lexeme: Lexeme) -> str | None:
        """The terminal that ``lexeme`` is in this state, or None."""
        choices = self.choices
        if lexeme.kind not in ("word", "unit"):
            return lexeme.kind if lexeme.kind in choices else None
        keyword = self.grammar.keywords.get(lexeme.text)
        if keyword in choices:
            return keyword
        if "UNIT" in choices and (lexeme.kind == "unit" or self._is_unit(lexeme)):
            return "UNIT"
        if lexeme.kind == "unit":
            return None
        if "AXIS" in choices and self.ahead().kind not in ("NUMBER", "ARROW"):
            return "AXIS"
        return "NAME" if "NAME" in choices else None

    def _is_unit(self, word: Lexeme) -> bool:
        """Whether a word after a number is meant as its unit: a known one in any case, or a lone word but no key."""
        if word.text.lower() in _FOLDED_UNITS:
            return True
        if word.text in DTYPES or word.line != self.lexemes[self.index - 1].line:
            return False
        if self.ahead().kind in ("NUMBER", "STRING", "LBRACE", "ARROW"):
            return False
        block = self.block()
        return block != "strategy" and not nearest(word.text, self.grammar.keys_of(block), cutoff=0.75)

    def heads_block(self, index: int) -> bool:
        """Whether a block begins here: `model`, `cluster` ... at the start of a line, and what follows such a head.

        No sound chain has that form, be its terms called `model` or `strategy`.
        """
        if self.lexemes[index].text not in TOP_LEVEL or not self.begins_line(index):
            return False
        following = [lexeme.kind for lexeme in self.lexemes[index + 1 : index + 3]]
        return following[0] in ("STRING", "LBRACE") or following in (["word", "STRING"], ["word", "LBRACE"])

    def begins_line(self, index: int) -> bool:
        return index == 0 or self.lexemes[index - 1].line < self.lexemes[index].line
