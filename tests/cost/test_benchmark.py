"""``benchmarks/calibrate.py`` gives the figures that are shipped, again and again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from paradag.compiler.cost.records import render_fits
from paradag.compiler.spec.inheritance import parse_calibration, shipped

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "calibrate.py"


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibrate_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["all_gather", "mla_decode"])
def test_the_shipped_figures_are_those_of_the_tables(kind: str) -> None:
    module = benchmark()
    if not (module.REFERENCE / "kernels").is_dir():
        pytest.skip(f"no measured kernels in {module.REFERENCE}: set PARADAG_REFERENCE")
    table = next(t for t in module.tables("h200_sxm") if t.kind == kind)
    fit = module.calibrate(table).fit
    text = render_fits({"h200_sxm": {table.engine: {(kind, table.variant): fit}}}, {})
    found = parse_calibration(text, "again").fits["h200_sxm"][table.engine][kind, table.variant]
    assert found == shipped().fits["h200_sxm"][table.engine][kind, table.variant]
