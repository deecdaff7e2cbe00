"""What the builders share: a place for findings, and typed reading of the statements of one block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lark import Token
from pydantic import BaseModel, ValidationError

from ..compiler.diagnostics import Diagnostic, Severity, Span
from ..compiler.spec import Assumption
from ._findings import Findings
from ._syntax import Quantity, Statement, token_span
from ._units import COUNT, ONE, SHARE, Measure, exact, whole
from ._words import ALIASES, CHOICES, USAGE, nearest, quoted, usage

__all__ = ["Block", "Context"]

_Spec = TypeVar("_Spec", bound=BaseModel)

_BITS = {"Gb": "GB", "Mb": "MB", "Kb": "KB", "Tb": "TB", "Gbps": "Gb/s", "GBps": "GB/s", "Mbps": "Mb/s", "TBps": "TB/s"}


class Context:
    """Findings of one file: diagnostics, places of fields, assumptions."""

    def __init__(self, file: str, diagnostics: Findings, damaged: Iterable[str] = ()) -> None:
        self.file = file
        self.damaged = frozenset(damaged)
        self.diagnostics = diagnostics
        self.sources: dict[str, Span] = {}
        self.assumptions: list[Assumption] = []

    def report(
        self,
        code: str,
        message: str,
        span: Span | None,
        expected: str | None = None,
        fix: str | None = None,
        severity: Severity | None = None,
    ) -> None:
        self.diagnostics.add(Diagnostic(code, message, span, expected, fix, severity))

    def assume(self, name: str, value: str, why: str) -> None:
        self.assumptions.append(Assumption(name, value, why))

    @property
    def failed(self) -> bool:
        return self.diagnostics.errors > 0

    def find(self, path: str) -> Span | None:
        """The span of ``path`` or of the nearest field around it."""
        while path not in self.sources and "." in path:
            path = path.rpartition(".")[0]
        return self.sources.get(path)

    def missing(self, key: str, block: str, span: Span | None, fix: str | None = None) -> None:
        """A key that must be there is not; silent where its statement was dropped for an error of its own."""
        if key not in self.damaged:
            what = f"`{block}`" if block in USAGE else block
            self.report("PD013", f"{what} has no `{key}`", span, f"`{key}`", fix or usage(key))

    def validate(self, kind: type[_Spec], data: Mapping[str, Any], path: str) -> _Spec | None:
        """``data`` as a spec class; what is out of its range becomes a diagnostic at the field's place.

        Missing fields give None without a word: builders report them in the language's terms.
        """
        try:
            return kind.model_validate(data)
        except ValidationError as error:
            for issue in error.errors(include_url=False, include_context=True, include_input=True):
                if issue["type"] != "missing":
                    self._out_of_range(issue["loc"], issue.get("ctx", {}), issue["msg"], issue["input"], path)
            return None

    def _out_of_range(
        self, loc: Sequence[int | str], bounds: Mapping[str, Any], text: str, value: object, path: str
    ) -> None:
        field = ".".join([path, *(str(part) for part in loc)])
        signs = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
        limits = [f"{signs[name]} {bound:,}" for name, bound in bounds.items() if name in signs]
        name = next((str(part) for part in reversed(loc) if isinstance(part, str) and part != "count"), path)
        name = path.rpartition(".")[2] if name == "degree" else name
        shown = "it is too large" if isinstance(value, int) and abs(value) >= 10**18 else f"{value!r}"
        self.report(
            "PD015", f"`{name}` is out of range: {shown}", self.find(field), " and ".join(limits) or text, usage(name)
        )


class Block:
    """The statements of one block, by key, with typed readers that report and return None on bad values."""

    def __init__(self, context: Context, head: Statement, path: str, name: str | None = None) -> None:
        self.context = context
        self.path = path
        self.name = name or str(head.key)
        self.head = head.span(context.file)
        context.sources.setdefault(path, self.head)
        self._by_key: dict[tuple[str, ...], Statement] = {}
        self.chains = [statement for statement in head.block or () if statement.is_chain]
        for statement in head.block or ():
            if not statement.is_chain:
                self._add(statement)

    def _add(self, statement: Statement) -> None:
        identity: tuple[str, ...] = (str(statement.key),)
        if statement.key in ("link", "require", "compute"):
            identity += tuple(str(t) for t in statement.tokens("NAME")[:1])
        first = self._by_key.setdefault(identity, statement)
        if first is not statement:
            self.context.report(
                "PD012",
                f"`{' '.join(identity)}` given twice in `{self.name}`, first on line {first.key.line}",
                self.span(statement),
                "each key once",
                f"keep one of lines {first.key.line} and {statement.key.line}",
            )

    def span(self, statement: Statement) -> Span:
        return statement.span(self.context.file)

    def place(self, field: str, statement: Statement) -> None:
        """Remember that ``field`` of this block is written by ``statement``."""
        self.context.sources[f"{self.path}.{field}"] = self.span(statement)

    def all(self, key: str) -> list[Statement]:
        return [s for (name, *_), s in self._by_key.items() if name == key]

    def get(self, key: str) -> Statement | None:
        return next(iter(self.all(key)), None)

    def require(self, *keys: str, given: Mapping[str, Any] | None = None) -> None:
        """Report each of ``keys`` that neither a statement nor ``given`` provides."""
        for key in keys:
            if not self.all(key) and (given is None or given.get(key) is None):
                self.context.missing(key, self.name, self.head)

    # --- typed values

    def read_counts(self, target: dict[str, Any], *keys: str, measure: Measure = COUNT) -> None:
        for key in keys:
            statement = self.get(key)
            if statement is not None:
                self._store(target, key, statement, self.integer(statement, measure))

    def read_measure(self, target: dict[str, Any], key: str, measure: Measure) -> None:
        statement = self.get(key)
        if statement is not None and statement.quantities():
            self._store(target, key, statement, self.number(statement, statement.quantities()[0], measure))

    def read_choices(self, target: dict[str, Any], *keys: str) -> None:
        for key in keys:
            statement = self.get(key)
            if statement is not None:
                self._store(target, key, statement, self.choice(statement))

    def read_flags(self, target: dict[str, Any], *keys: str) -> None:
        for key in keys:
            statement = self.get(key)
            if statement is not None:
                word = self.choice(statement)
                self._store(target, key, statement, None if word is None else word == "true")

    def _store(self, target: dict[str, Any], field: str, statement: Statement, value: object) -> None:
        self.place(field, statement)
        if value is not None:
            target[field] = value

    def integer(self, statement: Statement, measure: Measure = COUNT) -> int | None:
        """The whole number of a one-value statement."""
        quantity = statement.quantities()[0]
        if not self._unit_fits(statement, quantity, measure):
            return None
        return self.whole(statement, quantity.number)

    def whole(self, statement: Statement, number: Token) -> int | None:
        value = whole(str(number))
        if value is None:
            self.context.report(
                "PD015",
                f"`{number}` is not a whole number",
                token_span(number, self.context.file),
                "a whole number",
                usage(str(statement.key)),
            )
        return value

    def number(self, statement: Statement, quantity: Quantity, measure: Measure) -> float | None:
        """A finite number in the measure's base unit."""
        if not self._unit_fits(statement, quantity, measure):
            return None
        factor = measure.units[str(quantity.unit)] if quantity.unit else ONE
        value = exact(str(quantity.number), factor)
        if abs(value) == float("inf"):
            self.context.report(
                "PD015",
                f"`{statement.key}` is out of range",
                token_span(quantity.number, self.context.file),
                "a number that a computer can hold",
                usage(str(statement.key)),
            )
            return None
        return value

    def share(self, statement: Statement) -> float | None:
        """The share after ``at``, between 0 and 1."""
        assert statement.efficiency is not None
        value = self.number(statement, statement.efficiency, SHARE)
        if value is None or 0 < value <= 1:
            return value
        self.context.report(
            "PD015",
            f"the share after `at` is out of range: {statement.efficiency.number}%",
            token_span(statement.efficiency.number, self.context.file),
            "more than 0% and at most 100%",
            "give the share of the peak that is really reached, for example `at 60%`",
        )
        return None

    def choice(self, statement: Statement, options: Sequence[str] | None = None) -> str | None:
        """The name that a statement gives, one of those known."""
        options = CHOICES[str(statement.key)] if options is None else options
        token = next(iter(statement.tokens("NAME")), None)
        if not token:
            return None  # a head without its name, reported by the parser
        if token in options:
            return str(token)
        self.unknown_name(token, str(statement.key), options)
        return None

    def unknown_name(self, token: Token, key: str, options: Sequence[str]) -> None:
        alias = ALIASES.get(token.lower())
        close = [alias] if alias and alias in options else nearest(token, options, 3)
        fix = f"did you mean {quoted(close)}?" if close else usage(key)
        shown = quoted(options if len(options) <= 12 else [*close, *options[: 12 - len(close)], "..."])
        self.context.report(
            "PD016", f"unknown value `{token[:40]}` of `{key}`", token_span(token, self.context.file), shown, fix
        )

    def _unit_fits(self, statement: Statement, quantity: Quantity, measure: Measure) -> bool:
        unit = quantity.unit
        if unit in measure.units or (unit is None and (measure.optional or not measure.units)):
            return True
        span = token_span(unit or quantity.number, self.context.file)
        expected = measure.expected
        if unit is None:
            self.context.report("PD014", f"`{statement.key}` has no unit", span, expected, usage(str(statement.key)))
            return False
        self.context.report(
            "PD014", f"`{unit}` is no unit of `{statement.key}`", span, expected, _unit_fix(str(unit), measure)
        )
        return False


def _unit_fix(unit: str, measure: Measure) -> str | None:
    if not measure.units:
        return f"remove `{unit}`"
    if _BITS.get(unit) in measure.units:
        return f"write `{_BITS[unit]}`" + ("; `b` is a bit, `B` a byte of 8 bits" if "b" in unit else "")
    same = next((u for u in measure.units if u.lower() == unit.lower()), None)
    if same:
        return f"did you mean `{same}`? Units are case-sensitive"
    if f"{unit}/s" in measure.units:
        return f"write `{unit}/s`: this is a rate"
    if unit.removesuffix("/s") in measure.units:
        return f"write `{unit.removesuffix('/s')}`: this is no rate"
    close = nearest(unit, tuple(measure.units))
    return f"did you mean `{close[0]}`?" if close else f"write {quoted(measure.canonical)}"
