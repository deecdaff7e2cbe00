"""Reading tables of a knowledge pack: every key known, every value of its kind, all faults told at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ..diagnostics import Diagnostic
from ._expression import BadExpression, Expression, Kind, parse_expression
from ._toml import Toml

Path = tuple[str, ...]


class Reader:
    """Checks values of one file and collects what is wrong.

    Attributes:
        toml: The file.
        found: Diagnostics so far.
    """

    def __init__(self, toml: Toml) -> None:
        self.toml = toml
        self.found: list[Diagnostic] = []

    def wrong(self, path: Path, message: str, expected: str, help_: str | None = None) -> None:
        """Report a value that its key cannot have (PD042)."""
        fix = help_ or f"write {expected}" if expected.startswith("`") else help_ or "`docs/packs.md` lists all keys"
        self.found.append(Diagnostic("PD042", message, self.toml.span(*path), expected, fix))

    def keys(self, path: Path, table: Mapping[str, Any], known: frozenset[str]) -> Iterator[str]:
        """The known keys of a table; the others are reported (PD041)."""
        for key in table:
            if key in known:
                yield key
                continue
            near = get_close_matches(key, known, n=2, cutoff=0.5)
            where = f" in `[{'.'.join(path)}]`" if path else ""
            help_ = f"did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else "remove it"
            expected = f"one of {', '.join(sorted(known))}"
            span = self.toml.span(*path, key)
            self.found.append(Diagnostic("PD041", f"unknown key `{key[:60]}`{where}", span, expected, help_))

    def table(self, path: Path) -> dict[str, Any]:
        """The table at ``path``, empty where there is none."""
        data: Any = self.toml.data
        for part in path:
            data = data.get(part, {})
        if not isinstance(data, dict):
            self.wrong(path, f"`{path[-1]}` is no table", f"`[{'.'.join(path)}]`")
            return {}
        return data

    def number(self, path: Path, value: Any, *, least: float, most: float | None = None) -> float | None:
        """A number above ``least``, at most ``most``."""
        bounds = f"a number above {least:g}" + (f" and at most {most:g}" if most is not None else "")
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not least < value < float("inf") or (most is not None and value > most):
            self.wrong(path, f"`{path[-1]} = {_shown(value)}`", bounds)
            return None
        return float(value)

    def count(self, path: Path, value: Any) -> int | None:
        """A whole number from 1 to a million."""
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000:
            self.wrong(path, f"`{path[-1]} = {_shown(value)}`", "a whole number from 1 to 1,000,000")
            return None
        return value

    def text(self, path: Path, value: Any) -> str | None:
        """A text."""
        if not isinstance(value, str) or not value.strip():
            self.wrong(path, f"`{path[-1]} = {_shown(value)}`", f'`{path[-1]} = "..."`')
            return None
        return value

    def expression(self, path: Path, value: Any, known: frozenset[str], kind: Kind) -> Expression | None:
        """An expression; a broken one is reported (PD043)."""
        if isinstance(value, int) and not isinstance(value, bool) and kind == "number":
            value = str(value)
        if (text := self.text(path, value)) is None:
            return None
        span = self.toml.span(*path)
        try:
            return parse_expression(text, known, kind, self.toml.inside(span, text))
        except BadExpression as error:
            place = self.toml.inside(span, text, error.column, error.end)
            help_ = "`docs/packs.md` lists names and operators"
            self.found.append(Diagnostic("PD043", str(error), place, error.expected, help_))
            return None


def _shown(value: Any) -> str:
    return repr(value)[:60]
