"""Text to statements: an LALR parser over ``strat.lark`` that reports an error and reads on.

The lexemes of :mod:`._scan` get their terminal from the parser's state (:mod:`._machine`). At a lexeme that the
state cannot take, :class:`_Parser` repairs where the intention is plain (a misspelt key, a missing quote), or drops
the statement and resumes at the next key or closing brace. Errors are bounded, and every step moves forward.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lark import Token

from ..compiler.diagnostics import Diagnostic, Span
from ._findings import Findings
from ._machine import Machine
from ._scan import MAX_LEXEMES, Lexeme, scan
from ._syntax import File, statements, token_span
from ._words import CHOICES, TERMINALS, join, nearest, quoted, usage

__all__ = ["Parsed", "parse"]

_SUBSTITUTES = {"→": ("ARROW", "->"), "≤": ("AT_MOST", "<="), "<": ("AT_MOST", "<="), "≥": ("AT_LEAST", ">=")}
_SUBSTITUTES[">"] = _SUBSTITUTES["≥"]
_SIGNS = {
    "=": "key and value stand side by side: remove the `=`",
    ":": "key and value stand side by side: remove the `:`",
    ",": "separate values by spaces: remove the `,`",
    ";": "statements need no separator: remove the `;`",
}
_QUOTES = "\"'\u201c\u201d\u201e\u2018\u2019«»"


@dataclass(frozen=True)
class Parsed:
    """What could be read, and the keys of dropped statements (their absence is no further error)."""

    statements: File
    damaged: frozenset[str]


def parse(text: str, file: str, findings: Findings) -> Parsed:
    """Parse a whole file, its errors going to ``findings``.

    Raises:
        TooManyErrors: With ``findings`` full.
    """
    return _Parser(text, file, findings).run()


class _Parser(Machine):
    def __init__(self, text: str, file: str, findings: Findings) -> None:
        super().__init__(scan(text))
        self.file = file
        self.findings = findings
        self.damaged: set[str] = set()

    def run(self) -> Parsed:
        if len(self.lexemes) <= MAX_LEXEMES:
            return Parsed(statements(self._tree()), frozenset(self.damaged))
        self._report(
            "PD002",
            f"more than {MAX_LEXEMES:,} words and signs",
            self.lexemes[-1].span(self.file),
            "the description of one model, cluster, workload and strategy",
            "check that this is the file you meant",
        )
        return Parsed([], frozenset())

    def _tree(self) -> Any:
        while self.lexeme.kind != "$END":
            if self.lexeme.kind == "STRING":
                self._check_escapes()
            if self.take(self.lexeme):
                self.index += 1
            else:
                self._recover()
        if "$END" not in self.choices:
            self._unclosed_at_end()
        return self.lark.feed_token(Token("$END", ""))

    # --- errors

    def _report(self, code: str, message: str, span: Span, expected: str | None = None, fix: str | None = None) -> None:
        self.findings.add(Diagnostic(code, message, span, expected, fix))

    def _report_unexpected(self, fix: str | None = None, expected: str | None = None) -> None:
        """The general syntax error: what was found, what would have fitted, how the statement is written."""
        blocks, key = self.open_blocks()
        found = "end of file" if self.lexeme.kind == "$END" else f"`{_clip(self.lexeme.text)}`"
        after = f" after `{_clip(self.lexemes[self.index - 1].text)}`" if self.index else ""
        if self.at_boundary:
            expected = expected or self._expected_keys()
            key = key or (blocks[-1] if blocks else None)
        else:
            expected = expected or self._expected_values(str(key) if key else "")
        self._report(
            "PD010",
            f"unexpected {found}{after}",
            self.lexeme.span(self.file),
            expected,
            fix or (usage(str(key)) if key else None),
        )

    def _expected_values(self, key: str) -> str:
        names = dict(TERMINALS)
        if key in CHOICES:
            names["NAME"] = quoted(CHOICES[key])
        elif not key:
            names["NAME"] = "a term such as `tp 4`"  # only behind an arrow
        elif key == "accelerator":
            names["NAME"] = "a catalogue name"
        return join(sorted(names.get(c) or f"`{self._word(c)}`" for c in self.choices if c.isupper()))

    def _expected_keys(self) -> str:
        block = self.block()
        keys = join(f"`{k}`" for k in self.grammar.keys_of(block))
        if block is None:
            return f"a block: {keys}"
        chain = "a chain such as `pp 2 -> tp 4`, " if block == "strategy" else ""
        return f"{chain}{keys}, or `}}`"

    def _word(self, terminal: str) -> str:
        return next((word for word, name in self.grammar.keywords.items() if name == terminal), terminal)

    def _check_escapes(self) -> None:
        try:
            json.loads(self.lexeme.text, strict=False)
        except ValueError:
            self._report(
                "PD010",
                "malformed escape in a string",
                self.lexeme.span(self.file),
                'JSON escapes: `\\"`, `\\\\`, `\\n`, `\\u00e9`',
                "write a backslash as `\\\\`",
            )
            self.lexemes[self.index] = Lexeme("STRING", '"?"', self.lexeme.line, self.lexeme.column)

    # --- recovery

    def _recover(self) -> None:
        """Report the lexeme that does not fit, then repair or skip so that reading goes on behind it."""
        repairs = (self._repair_sign, self._repair_string, self._repair_brace, self._repair_head, self._repair_key)
        if not any(repair() for repair in repairs):
            self._report_unexpected()
            self._skip_statement()

    def _repair_sign(self) -> bool:
        lexeme = self.lexeme
        if lexeme.kind == "RBRACE" and not self.open_blocks()[0] and self.at_boundary:
            self._report(
                "PD010", "`}` without its `{`", lexeme.span(self.file), self._expected_keys(), "remove the `}`"
            )
            self.index += 1
            return True
        if lexeme.kind != "junk":
            return False
        if lexeme.text in _SIGNS:
            self._report_unexpected(_SIGNS[lexeme.text])
            while self.lexeme.kind == "junk" and self.lexeme.text in _SIGNS:
                self.index += 1
            return True
        kind, text = _SUBSTITUTES.get(lexeme.text, ("", ""))
        if kind not in self.choices:
            return False
        self._report_unexpected(f"write `{text}`", expected=f"`{text}`")
        self.push(self.token(kind, lexeme, text))
        self.index += 1
        return True

    def _repair_string(self) -> bool:
        """Strings without quotes, in wrong quotes, without an end, or where a bare name belongs."""
        lexeme, choices = self.lexeme, self.choices
        if lexeme.kind == "STRING" and "NAME" in choices and "STRING" not in choices and not self.at_boundary:
            bare = json.loads(lexeme.text, strict=False)
            self._report_unexpected("write the name without quotes")
            self.push(self.token("NAME", lexeme, bare))
            self.index += 1
            return True
        if "STRING" not in choices or lexeme.kind not in ("word", "open", "curly"):
            return False
        inner = lexeme.text.strip(_QUOTES)
        opens = lexeme.kind == "open" and inner.rstrip().endswith("{")
        inner = inner.rstrip("{ \t") if opens else inner
        fixes = {
            "word": "put the name in quotes",
            "open": 'close the string with `"`',
            "curly": "use straight double quotes",
        }
        self._report_unexpected(f"{fixes[lexeme.kind]}: `{json.dumps(_clip(inner), ensure_ascii=False)}`")
        if lexeme.kind == "open":  # whatever else the line held is lost in the string
            self.damaged.add(str(self.open_blocks()[1]))
        self.push(self.token("STRING", lexeme, json.dumps(inner)))
        if opens:
            self.push(self.token("LBRACE", lexeme, "{"))
        self.index += 1
        return True

    def _repair_brace(self) -> bool:
        """A `{` or `}` left out: the lexeme would fit inside the block to open, or outside the open one."""
        lexeme = self.lexeme
        blocks, key = self.open_blocks()
        block = "term" if blocks and blocks[-1] == "strategy" else str(key)
        inside = self.grammar.keys.get(block, ()) if key and "LBRACE" in self.choices else ()
        if lexeme.kind == "word" and lexeme.text in inside:
            span = lexeme.span(self.file)
            self._report("PD010", f"`{key}` has no `{{` before `{lexeme.text}`", span, "`{`", "add the missing `{`")
            self.push(self.token("LBRACE", lexeme, "{"))
            return True
        if not blocks or not self.at_boundary:
            return False
        if self.heads_block(self.index):
            return self._close_before(len(blocks))
        if lexeme.kind == "ARROW" and blocks[-1] != "strategy" and blocks[0] == "strategy":
            return self._close_before(1)
        for count, outer in enumerate([*map(str, reversed(blocks[:-1])), None], 1):
            dedented = lexeme.column <= (blocks[-count].column or 1) and self.begins_line(self.index)
            if dedented and outer is not None and lexeme.text in self.grammar.keys_of(outer):
                return self._close_before(count)
        return False

    def _close_before(self, count: int) -> bool:
        """Report that the innermost block lacks its `}` before the present lexeme, and close ``count`` blocks."""
        message = f"block `{self.block()}` is not closed before `{self.lexeme.text}`"
        self._report("PD010", message, self.lexeme.span(self.file), "`}`", "add the missing `}`")
        self._close_blocks(count)
        return True

    def _repair_head(self) -> bool:
        """A block whose head lacks a value or has a word too many, so that its inside is still read."""
        choices = self.choices
        if self.lexeme.kind == "LBRACE" and not self.at_boundary:
            for kind, text in (("STRING", '""'), ("NAME", ""), ("NUMBER", "1")):
                if kind in choices:
                    key = self.open_blocks()[1]
                    self._report_unexpected()
                    self.damaged.add(str(key))
                    self.push(self.token(kind, self.lexeme, text))
                    if not self.take(self.lexeme):
                        self._skip_statement()
                    else:
                        self.index += 1
                    return True
        if "LBRACE" in choices and self.ahead().kind == "LBRACE" and not self.at_boundary:
            self._report_unexpected()
            self.index += 1
            return True
        return False

    def _repair_key(self) -> bool:
        """A word where a key belongs: a misspelt key, or an unknown one."""
        word = self.lexeme
        if word.kind != "word" or not self.at_boundary:
            return False
        block = self.block()
        keys = self.grammar.keys_of(block)
        close = nearest(word.text, keys)
        where = f" in `{block}`" if block else ""
        fix = f"did you mean `{close[0]}`?" if close else "remove it"
        if not close and (homes := [b for b, known in self.grammar.keys.items() if word.text in known]):
            fix = f"`{word.text}` belongs in {join(f'`{b}`' for b in homes)}"
        self._report(
            "PD011",
            f"unknown {'key' if block else 'block'} `{_clip(word.text)}`{where}",
            word.span(self.file),
            join(f"`{k}`" for k in keys),
            fix,
        )
        if block is None:  # a wrong guess here would drag a whole block along
            close = nearest(word.text, keys, cutoff=0.8)
        if close and self.push(self.token(self.grammar.keywords[close[0]], word, close[0])):
            self.index += 1
            return True
        self.damaged.add(word.text)
        self._skip_statement(begun=True)
        return True

    def _skip_statement(self, *, begun: bool = False) -> None:
        """Drop the unfinished statement and move to the next key of this block, to its end, or to the next block."""
        _, key = self.open_blocks()
        before = self.index
        state = self.lark.parser_state
        popped = False
        while not self.at_boundary:
            state.state_stack.pop()
            state.value_stack.pop()
            popped = True
        if popped and key is not None:
            self.damaged.add(str(key))
        if begun:
            self.index += 1
        keys, depth = self.grammar.keys_of(self.block()), 0
        while (lexeme := self.lexeme).kind != "$END":
            if lexeme.kind == "word" and (self.heads_block(self.index) or (depth == 0 and self._starts(lexeme, keys))):
                break
            if lexeme.kind == "RBRACE":
                if depth == 0:
                    break
                depth -= 1
            depth += lexeme.kind == "LBRACE"
            self.index += 1
        if not popped and self.index == before:
            self.index += 1

    def _starts(self, word: Lexeme, keys: tuple[str, ...]) -> bool:
        return self.begins_line(self.index) or word.text in keys

    def _close_blocks(self, count: int) -> None:
        for _ in range(count):
            self.push(self.token("RBRACE", self.lexeme, "}"))

    def _unclosed_at_end(self) -> None:
        if not self.at_boundary:
            self._report_unexpected()
            self._skip_statement()
        elif blocks := self.open_blocks()[0]:
            key = blocks[-1]
            self._report(
                "PD010",
                f"block `{key}` is not closed",
                token_span(key, self.file),
                "`}` before the end of the file",
                "add a `}`",
            )
        self._close_blocks(len(self.open_blocks()[0]))


def _clip(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
