"""Tokens to statements, with the LALR machine brought back to a statement's beginning after every error."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from lark import Token, UnexpectedToken

from ._dot_actions import GraphText, Statements
from ._dot_model import Place
from ._dot_report import Report
from ._dot_scan import HEAD, Scanner, dot_grammar

__all__ = ["GraphParser"]

_MAX_DEPTH = 100
"""Subgraphs inside one another; drawings have less than ten."""
_MAX_STATEMENT_ERRORS = 20_000
_STATEMENT = re.compile(
    r'(?m)^[^\S\n]*(?:[A-Za-z_]\w{0,200}|"[^"\n]{0,200}")[^\S\n]*(?:->|\[[^\S\n]*\w{1,40}[^\S\n]*=)'
)
_MAX_TOKENS = 1_500_000
"""Some 100,000 nodes and edges with labels."""
_SHOWN = 40


class GraphParser:
    """Reads one graph. After :meth:`read`, ``end`` is the offset behind it."""

    def __init__(self, scanner: Scanner, report: Report, start: int) -> None:
        self.text = scanner.text
        self.report = report
        self.end = len(self.text)
        self.tokens = scanner.tokens(start)
        self.queue: deque[Token] = deque()
        self.state = dot_grammar().parse_interactive("").parser_state
        self.braces: list[Token] = []
        self.errors = self.taken = 0
        self._next_head = self._next_statement = -1

    def read(self) -> GraphText:
        """The graph, as far as its text goes."""
        while True:
            token = self._take()
            if token.type == "$END" or self._exhausted():
                return self._cut_off(token)
            if token.type == "RBRACE" and len(self.braces) == 1 and self._goes_on(token):
                self.report.add(
                    "PD701", "early end", _place(token), "`}` closes the graph, yet statements follow", "remove it"
                )
                continue
            if token.type in ("NAME", "STRING", "NUMERAL", "HTML") and self._begins_statement(token):
                self._close_list(token)
            if not self._feed(token):
                self._recover(token)
            elif token.type == "RBRACE" and not self.braces:
                self.end = token.end_pos or 0
                return self._finish(token)

    def _exhausted(self) -> bool:
        return self.taken > _MAX_TOKENS or self.errors > _MAX_STATEMENT_ERRORS or len(self.braces) > _MAX_DEPTH

    # tokens

    def _take(self) -> Token:
        self.taken += 1
        return self.queue.popleft() if self.queue else next(self.tokens)

    def _peek(self) -> Token:
        if not self.queue:
            self.queue.append(next(self.tokens))
        return self.queue[0]

    @staticmethod
    def _begins_line(token: Token) -> bool:
        return token.line == 1  # the scanner says so

    # the machine

    @property
    def _choices(self) -> Mapping[str, Any]:
        choices: Mapping[str, Any] = self.state.parse_conf.parse_table.states[self.state.position]
        return choices

    def _feed(self, token: Token) -> bool:
        if token.type == "UNKNOWN":
            return False
        try:
            self.state.feed_token(token, is_end=token.type == "$END")
        except UnexpectedToken:
            return False
        if token.type == "LBRACE":
            self.braces.append(token)
        elif token.type == "RBRACE":
            self.braces.pop()
        return True

    def _insert(self, kind: str, text: str, near: Token) -> bool:
        at = near.start_pos or 0
        return self._feed(Token(kind, text, at, end_pos=at))

    def _in_list(self) -> bool:
        """Whether an attribute list is open."""
        for value in reversed(self.state.value_stack):
            if isinstance(value, Statements) or (isinstance(value, Token) and value.type in ("LBRACE", "RSQB")):
                return False
            if isinstance(value, Token) and value.type == "LSQB":
                return True
        return False

    # damage

    def _begins_statement(self, token: Token) -> bool:
        """Whether a name inside an attribute list is really the next line's node: its bracket was never closed."""
        return self._in_list() and self._begins_line(token) and self._peek().type in ("EDGEOP", "LSQB")

    def _close_list(self, token: Token) -> None:
        if "RSQB" not in self._choices:
            self._insert("STRING", "", token)
        if self._insert("RSQB", "]", token):
            self.report.add(
                "PD701", "open list", _place(token), "an attribute list without its `]`", "add `]` before this line"
            )

    def _recover(self, token: Token) -> None:
        self.errors += 1
        if not self.braces:
            self.report.add(
                "PD701",
                "head",
                _place(token),
                f"unexpected {_shown(token)} in the head of the graph",
                "put the graph's name in quotes",
            )
            if token.type == "RBRACE":
                self.queue.appendleft(Token("LBRACE", "{", token.start_pos, end_pos=token.start_pos))
            return
        if self._in_list():
            self._recover_list(token)
            return
        self._unexpected(token)
        again = self._begins_line(token) or token.type in ("RBRACE", "LBRACE")
        moved = self._to_boundary(token)
        if again and moved and token.type != "UNKNOWN":
            self.queue.appendleft(token)
            return
        self._skip_statement()

    def _recover_list(self, token: Token) -> None:
        if "RSQB" not in self._choices and token.type != "UNKNOWN":
            self.report.add(
                "PD701",
                "no value",
                _place(token),
                f"an attribute without its value before {_shown(token)}",
                "write `name=value`",
            )
            self._insert("STRING", "", token)
            self.queue.appendleft(token)
        elif token.type in ("LBRACE", "RBRACE", "LSQB", "EDGEOP", "SUBGRAPH", "NODE", "EDGE", "GRAPH"):
            self._close_list(token)
            self.queue.appendleft(token)
        else:
            self.report.add(
                "PD701",
                "list",
                _place(token),
                f"unexpected {_shown(token)} in an attribute list",
                "put values in quotes that hold more than letters and digits",
            )

    def _unexpected(self, token: Token) -> None:
        before = self.text[max(0, (token.start_pos or 0) - 80) : token.start_pos].rsplit("\n", 1)[-1]
        help_ = 'write DOT statements: `a -> b;`, `a [label="..."];`'
        if token.type == "COMMA" and "=" in before:
            help_ = f'put the list in quotes: `{before.strip()[:40].split("=")[0]}="..."`'
        self.report.add("PD701", "statement", _place(token), f"unexpected {_shown(token)}", help_)

    def _to_boundary(self, token: Token) -> bool:
        """Finish the statement as it stands, or give it up. False where none was open."""
        values, states = self.state.value_stack, self.state.state_stack
        if isinstance(values[-1], Statements) or (isinstance(values[-1], Token) and values[-1].type == "LBRACE"):
            return False
        if "SEMI" in self._choices and self._insert("SEMI", ";", token):
            return True
        while not isinstance(values[-1], Statements) and not (
            isinstance(values[-1], Token) and values[-1].type == "LBRACE"
        ):
            values.pop()
            states.pop()
        return True

    def _skip_statement(self) -> None:
        """Drop tokens up to the next statement: after a `;`, at a brace, or at the beginning of a line."""
        while True:
            token = self._peek()
            if token.type in ("$END", "LBRACE", "RBRACE") or self._begins_line(token):
                return
            self._take()
            if token.type == "SEMI":
                return

    def _goes_on(self, brace: Token) -> bool:
        """Whether statements follow the brace that closes the graph, before any other graph begins."""
        at = brace.end_pos or 0
        if self._next_head < at:
            head = HEAD.search(self.text, at)
            self._next_head = head.start() if head else len(self.text)
        if self._next_statement < at:
            statement = _STATEMENT.search(self.text, at)
            self._next_statement = statement.start() if statement else len(self.text) + 1
        return self._next_statement < self._next_head

    def _cut_off(self, token: Token) -> GraphText:
        """The end of the text, or of our patience, inside the graph."""
        if token.type != "$END":
            self.report.add(
                "PD706", "limit", _place(token), "reading stopped here: too long, too many errors or too deep subgraphs"
            )
        elif self.braces:
            open_ = self.braces[-1]
            missing = len(self.braces)
            text = f"the text ends before {missing} closing brace{'s' if missing > 1 else ''}"
            self.report.add(
                "PD703", "cut off", _place(open_), text, "add `}` at the end, and what is missing before it"
            )
        if not self.braces:
            self._insert("LBRACE", "{", token)
        if self._in_list():
            if "RSQB" not in self._choices:
                self._insert("STRING", "", token)
            self._insert("RSQB", "]", token)
        while self.braces:
            self._to_boundary(token)
            self._insert("RBRACE", "}", token)
        return self._finish(token)

    def _finish(self, token: Token) -> GraphText:
        end = Token.new_borrow_pos("$END", "", token)
        graph = self.state.feed_token(end, is_end=True)
        assert isinstance(graph, GraphText)
        return graph


def _place(token: Token) -> Place:
    return (token.start_pos or 0, token.end_pos or 0)


def _shown(token: Token) -> str:
    text = str(token).strip().splitlines()
    return f"`{text[0][:_SHOWN]}`" if text and text[0] else f"{token.type.lower()}"
