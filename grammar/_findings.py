"""Diagnostics of one file as they are found, with an end: nobody reads the hundred-and-first."""

from __future__ import annotations

from ..compiler.diagnostics import Diagnostic

__all__ = ["MAX_ERRORS", "Findings", "TooManyErrors"]

MAX_ERRORS = 100


class TooManyErrors(Exception):
    """Raised by :meth:`Findings.add` at the last error that is reported."""


class Findings(list[Diagnostic]):
    """A list of diagnostics that takes at most :data:`MAX_ERRORS` errors."""

    def add(self, diagnostic: Diagnostic) -> None:
        """Append; at the limit append PD017 too and raise :class:`TooManyErrors`."""
        self.append(diagnostic)
        if len(self) >= MAX_ERRORS and self.errors >= MAX_ERRORS:
            message = f"{MAX_ERRORS} errors: reading stopped here"
            self.append(Diagnostic("PD017", message, diagnostic.span, None, "repair the first ones"))
            raise TooManyErrors

    @property
    def errors(self) -> int:
        return sum(diagnostic.is_error for diagnostic in self)
