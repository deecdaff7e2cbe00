"""paradag: a compiler for parallel strategies of LLM inference.

``import paradag`` gives :func:`load`, :func:`compile`, :func:`check`, :func:`fix`, :func:`plan`, :func:`verify` and
:class:`Pass`; everything heavier is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "paradag.compiler.driver",
    "compile": "paradag.compiler.driver",
    "check": "paradag.compiler.driver",
    "fix": "paradag.compiler.driver",
    "plan": "paradag.compiler.driver",
    "verify": "paradag.compiler.verification",
    "Pass": "paradag.passes.manager",
    "DiagnosticError": "paradag.compiler.diagnostics",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'paradag' has no attribute {name!r}")
