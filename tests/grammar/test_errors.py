"""What users see: each ``errors/NAME.strat`` against ``NAME.err``.

``PARADAG_UPDATE_GOLDENS=1`` rewrites the ``.err`` files; read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paradag.compiler.diagnostics import DiagnosticError, render_diagnostics
from paradag.grammar import load_text

ERRORS = Path(__file__).parent / "errors"
CASES = sorted(ERRORS.glob("*.strat"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_rendered_errors(case: Path) -> None:
    with pytest.raises(DiagnosticError) as caught:
        load_text(case.read_text(encoding="utf-8"), case.name, ERRORS)
    error = caught.value
    rendered = render_diagnostics(error.diagnostics, error.texts) + "\n"
    golden = case.with_suffix(".err")
    if os.environ.get("PARADAG_UPDATE_GOLDENS"):
        golden.write_text(rendered, encoding="utf-8")
    assert rendered == golden.read_text(encoding="utf-8")
    assert all(d.span and (d.expected or d.help) for d in error.diagnostics)


def test_goldens_and_cases_pair_up() -> None:
    assert len(CASES) >= 15
    assert {p.stem for p in ERRORS.glob("*.err")} == {p.stem for p in CASES}
