"""Reading input files under limits: size, encoding, kind of file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from ..compiler.diagnostics import Diagnostic, DiagnosticError, Span

__all__ = ["INPUT_CODES", "MAX_BYTES", "read_source"]

MAX_BYTES = 4 * 2**20
"""Largest input file in bytes. A spec is some hundred lines; this leaves room for long comments."""

INPUT_CODES = frozenset({"PD001", "PD002", "PD003"})
"""Codes of files that cannot be read as text at all: a usage error (exit code 2), not an error in the text."""


def read_source(path: Path, *, name: str | None = None, span: Span | None = None) -> str:
    """The text of ``path``.

    Args:
        path: The file.
        name: How messages call it; by default the path as given.
        span: The place that asks for the file, where another file does.

    Raises:
        DiagnosticError: PD001 (missing, unreadable, or no regular file), PD002 (too large), PD003 (not UTF-8 text).
    """
    shown = name or str(path)

    def fail(code: str, message: str, expected: str, fix: str) -> DiagnosticError:
        where = span or Span(shown, 1, 1, 1, 1)
        return DiagnosticError([Diagnostic(code, message, where, expected, fix)])

    try:
        # Opened without blocking, so that a FIFO without a writer cannot hang the compiler.
        with open(
            os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
        ) as handle:
            info = os.fstat(handle.fileno())
            if not stat.S_ISREG(info.st_mode):
                kind = "a directory" if stat.S_ISDIR(info.st_mode) else "not a regular file"
                raise fail("PD001", f"`{shown}` is {kind}", "a text file", "give the path of one file")
            size = info.st_size
            data = handle.read(MAX_BYTES + 1) if size <= MAX_BYTES else b""
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "malformed path"
        raise fail(
            "PD001", f"cannot read `{shown}`: {reason}", "a readable text file", "check the path and its permissions"
        ) from error
    if max(size, len(data)) > MAX_BYTES:
        raise fail(
            "PD002",
            f"`{shown}` has {max(size, len(data)):,} bytes",
            f"at most {MAX_BYTES:,} bytes",
            "check that this is the file you meant",
        )
    return _decode(data, fail_text=lambda what: fail("PD003", f"`{shown}` {what}", "UTF-8 text", "save it as UTF-8"))


def _decode(data: bytes, fail_text: Callable[[str], DiagnosticError]) -> str:
    if b"\0" in data:
        raise fail_text(f"holds a NUL byte at offset {data.index(0)}: it is a binary file or not UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fail_text(f"is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}") from error
