"""Drawings on disk: the DOT source always, the SVG where Graphviz is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ...passes.analysis import PhaseAnalysis
from ..diagnostics import Diagnostic
from ._files import replacing
from .dot import check_drawing, render_dot

LAYOUT_SECONDS = 120.0
"""Time that Graphviz gets for one drawing; the largest allowed one takes seconds."""

_INSTALL = (
    "install Graphviz: `apt install graphviz` (Debian, Ubuntu), `dnf install graphviz` (Fedora), "
    "`brew install graphviz` (macOS), `winget install graphviz` (Windows) or `conda install graphviz`; then run again, "
    "or `dot -Tsvg -O FILE.dot`"
)


def write_dot(
    analysis: PhaseAnalysis, path: Path, expand: frozenset[str] = frozenset()
) -> tuple[str, tuple[Diagnostic, ...]]:
    """Write the DOT source of a phase.

    Returns:
        The source, and PD603 as a warning where the drawing is large.

    Raises:
        DiagnosticError: PD603, too many nodes; PD601, the file cannot be written.
        ValueError: ``expand`` names something that cannot be unfolded.
    """
    source = render_dot(analysis, expand)
    with replacing(path) as file:
        file.write(source.encode())
    found = check_drawing(analysis, expand)
    return source, () if found is None else (found,)


def render_svg(source: str, path: Path, *, seconds: float = LAYOUT_SECONDS) -> Diagnostic | None:
    """Lay a DOT source out with Graphviz and write the SVG.

    Graphviz runs as a child that is killed when it takes too long.

    Args:
        source: DOT source.
        path: SVG file.
        seconds: Time limit.

    Returns:
        Nothing where the file is written; else PD602 (no ``dot`` on the path) or PD604 (it failed, or took too long),
        and an older file of that name is left as it is.

    Raises:
        DiagnosticError: PD601, the file cannot be written.
    """
    program = shutil.which("dot")
    if program is None:
        return Diagnostic("PD602", f"{path.name} is not drawn: there is no `dot` program on the path", help=_INSTALL)
    try:
        done = subprocess.run(
            [program, "-Tsvg"], input=source.encode(), capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return _failed(path, f"Graphviz took more than {seconds:g} s")
    except OSError as error:
        return _failed(path, f"`{program}` does not start: {error.strerror or error}")
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return _failed(path, said[-1] if said else f"`dot` ended with status {done.returncode}")
    with replacing(path) as file:
        file.write(done.stdout)
    return None


def _failed(path: Path, why: str) -> Diagnostic:
    return Diagnostic(
        "PD604",
        f"{path.name} is not drawn: {why}",
        help="the DOT source is written and can be drawn elsewhere; a smaller --expand makes a smaller drawing",
    )
