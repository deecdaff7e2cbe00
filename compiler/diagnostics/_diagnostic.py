"""The data of a diagnostic. This package imports nothing else of paradag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ._codes import CODES


class Severity(StrEnum):
    """How bad it is. Only errors change the exit code."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Outcome(StrEnum):
    """What became of a run, as section "auto-fix" of the design names it."""

    VALID = "VALID"
    FIXED = "FIXED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, order=True)
class Span:
    """A place in a source file. Lines and columns count from 1; ``end_column`` is exclusive."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True)
class Diagnostic:
    """One finding: what is wrong, where, what was expected and how to repair it.

    ``code`` must stand in :data:`CODES`; its default severity is taken from there.
    """

    code: str
    message: str
    span: Span | None = None
    expected: str | None = None
    help: str | None = None
    severity: Severity | None = None

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise InternalError(f"diagnostic code {self.code!r} is not registered")
        if self.severity is None:
            object.__setattr__(self, "severity", Severity(CODES[self.code].severity))

    @property
    def is_error(self) -> bool:
        return self.severity is Severity.ERROR


@dataclass(frozen=True)
class Fix:
    """A repair that was made: by which rule, and the text before and after."""

    rule: str
    before: str
    after: str


class DiagnosticError(Exception):
    """Raised where a computation cannot go on; carries every diagnostic known by then.

    ``texts`` maps file names to their text, as far as read, so that the places can be shown.
    """

    def __init__(self, diagnostics: Iterable[Diagnostic], texts: Mapping[str, str] | None = None) -> None:
        self.diagnostics = tuple(diagnostics)
        self.texts = dict(texts or {})
        super().__init__("; ".join(f"{d.code}: {d.message}" for d in self.diagnostics))


class InternalError(Exception):
    """A fault of paradag itself, never of its input."""
