"""Fit the host constants of `compiler/spec/engines.toml` on measured end-to-end rows of the H100.

Two constants for each engine whose host is not hidden: seconds per decode step and per sequence in it. Every second
unflagged row of `e2e_h100.csv` is fitted, the others tell how good the fit is. Nothing else is fitted on end-to-end
rows.

    python -m paradag.benchmarks.fit_engines [--data CSV]
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path

from paradag.benchmarks.accuracy import ROOT, Row, Setup, read_rows, serving_model
from paradag.compiler.cost.serving import StepTable, simulate
from paradag.compiler.spec.engines import Engine, engine
from paradag.passes.analysis.serving import Point, ServingModel

ENGINES = ("vllm", "vllm_sync", "sglang", "trtllm")
FIRST = {"step_s": 5e-4, "sequence_s": 2e-5}
"""Constants and the first steps of their search, seconds."""

Case = tuple[Row, ServingModel, StepTable]


def main() -> None:
    """Fit each engine and print its constants with the median errors of TPOT on both halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(os.environ.get("PARADAG_REFERENCE", ROOT.parent / "shared" / "reference"))
    parser.add_argument("--data", type=Path, default=folder / "e2e_h100.csv", metavar="CSV")
    arguments = parser.parse_args()
    rows = [r for r in read_rows(arguments.data) if r.setup and r.point and not r.flags]
    for name in ENGINES:
        cases = _cases([r for r in rows if r.setup and r.setup.engine == name])
        found = _fit(engine(name), cases[::2])
        halves = " ".join(f"{statistics.median(_errors(found, half)):.1%}" for half in (cases[::2], cases[1::2]))
        figures = " ".join(f"{constant} = {getattr(found, constant):.3g}" for constant in FIRST)
        print(f"{name}: {figures}; {len(cases)} rows, median error of TPOT fitted and held out: {halves}")


def _cases(rows: Sequence[Row]) -> list[Case]:
    """The rows with their models and their step tables, host side left out."""
    models: dict[Setup, ServingModel] = {}
    cases = []
    for row in rows:
        assert row.setup is not None and row.point is not None
        if row.setup not in models:
            models[row.setup] = serving_model(row.setup, row.setup.prefill)
        served = models[row.setup]
        cases.append((row, served, served.tables([row.point])[0]))
    return cases


def _errors(candidate: Engine, cases: Sequence[Case]) -> list[float]:
    """Relative errors of TPOT, as absolute logarithms of predicted over measured."""
    errors = []
    for row, served, table in cases:
        point: Point | None = row.point
        assert point is not None
        trial = ServingModel(served.prefill, served.decode, candidate)
        latency = simulate(trial.hosted(table, point), trial.scheduling(point), trial.load_of_group(point))
        errors.append(abs(log(latency.tpot * 1e3 / row.measured["tpot_ms"])))
    return errors


def _fit(start: Engine, cases: Sequence[Case]) -> Engine:
    """Pattern search from zero: one constant at a time, steps halved where neither direction helps."""

    def loss(values: Mapping[str, float]) -> float:
        return statistics.mean(_errors(replace(start, **values), cases))

    values, steps = dict.fromkeys(FIRST, 0.0), dict(FIRST)
    best = loss(values)
    for _ in range(8):
        moved = False
        for constant, step in steps.items():
            values, best, better = _walk(loss, values, constant, step, best)
            moved |= better
        if not moved:
            steps = {constant: step / 2 for constant, step in steps.items()}
    return replace(start, **values)


def _walk(
    loss: Callable[[Mapping[str, float]], float], values: dict[str, float], constant: str, step: float, best: float
) -> tuple[dict[str, float], float, bool]:
    for change in (step, -step):
        trial = {**values, constant: max(0.0, values[constant] + change)}
        reached = loss(trial)
        if reached < best:
            return trial, reached, True
    return values, best, False


if __name__ == "__main__":
    main()
