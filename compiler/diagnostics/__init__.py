"""What paradag says about bad input: one shape, one renderer, codes in one table."""

from ._codes import CODES, CodeInfo
from ._diagnostic import Diagnostic, DiagnosticError, Fix, InternalError, Outcome, Severity, Span
from ._render import render_diagnostic, render_diagnostics

__all__ = [
    "CODES",
    "CodeInfo",
    "Diagnostic",
    "DiagnosticError",
    "Fix",
    "InternalError",
    "Outcome",
    "Severity",
    "Span",
    "render_diagnostic",
    "render_diagnostics",
]
