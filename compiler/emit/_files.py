"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..diagnostics import Diagnostic, DiagnosticError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the body ends well, and vanishes when it does not.

    Raises:
        DiagnosticError: PD601, the place cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    except OSError as error:
        raise DiagnosticError([_not_writable(path, error)]) from error
    finally:
        with suppress(OSError):
            draft.unlink()


def _not_writable(path: Path, error: OSError) -> Diagnostic:
    return Diagnostic(
        "PD601",
        f"cannot write {path}: {error.strerror or error}",
        expected="a folder that exists, is writable and has room",
        help="give another folder with -o",
    )
