"""Fit the host constants of `compiler/spec/engines.toml` on measured end-to-end rows of the H100.

Two constants are those of all engines (the way of a request to the queue); the others belong to one engine each, see
`FITTED`. Every second unflagged row of `e2e_h100.csv` is fitted, the others tell how good the fit is. Nothing else is
fitted on end-to-end rows. The search starts at the catalogue's figures: after new kernel figures, run it, write what it
prints into `engines.toml`, then `python benchmarks/accuracy.py --write`.

    python -m paradag.benchmarks.fit_engines [--data CSV] [--engine NAME]...
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path

from paradag.benchmarks.accuracy import ROOT
from paradag.benchmarks.served import serving_model
from paradag.benchmarks.served_rows import Row, Setup, read_rows
from paradag.compiler.cost.serving import StepTable, simulate
from paradag.compiler.spec.engines import Engine, engine
from paradag.passes.analysis.serving import Point, ServingModel

SHARED = ("request_s", "tokenize_s")
FITTED: Mapping[str, tuple[str, ...]] = {
    "vllm": ("step_s", "sequence_s"),
    "vllm_sync": ("step_s", "sequence_s"),
    "sglang": ("step_s", "sequence_s"),
    "trtllm": ("step_s", "sequence_s", "issue_s"),
}
"""Constants of each engine. TensorRT-LLM and SGLang run steps with prompts kernel by kernel: `issue_s` is fitted on the
many rows of the first and taken for both. vLLM compiles the layers between attentions: it keeps the measured rate of
eager kernels (class `launch` of the calibration)."""
STEPS = {
    "step_s": 2.5e-4, "sequence_s": 8e-6, "issue_s": 1e-5, "request_s": 2e-3, "tokenize_s": 1e-6
}  # fmt: skip
"""First steps of the search, seconds."""
ROUNDS = 5

Case = tuple[Row, ServingModel, StepTable]
Loss = Callable[[Mapping[str, float]], float]


def main() -> None:
    """Fit and print the constants, with the median errors on both halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(os.environ.get("PARADAG_REFERENCE", ROOT.parent / "shared" / "reference"))
    parser.add_argument("--data", type=Path, default=folder / "e2e_h100.csv", metavar="CSV")
    parser.add_argument("--engine", action="append", choices=FITTED, help="fit the constants of these engines only")
    arguments = parser.parse_args()
    rows = [r for r in read_rows(arguments.data) if r.setup and r.point and not r.flags]
    cases = {name: _cases([r for r in rows if r.setup and r.setup.engine == name]) for name in FITTED}
    cases = {name: found for name, found in cases.items() if found}
    shared: dict[str, float] = {}
    if not arguments.engine:
        every = [(engine(name), half[::2]) for name, half in cases.items()]
        start = {constant: getattr(every[0][0], constant) for constant in SHARED}
        shared = _fit(start, lambda v: statistics.mean(_loss([(replace(e, **v), c) for e, c in every])))
        print(*(f"{constant} = {value:.3g}" for constant, value in shared.items()), sep="\n", flush=True)
    for name in arguments.engine or cases:
        _fit_engine(replace(engine(name), **shared), cases[name])


def _fit_engine(base: Engine, cases: Sequence[Case]) -> None:
    start = {constant: getattr(base, constant) for constant in FITTED[base.name]}
    values = _fit(start, lambda v: statistics.mean(_loss([(replace(base, **v), cases[::2])])))
    print(f"\n[{base.name}]", *(f"{constant} = {value:.3g}" for constant, value in values.items()), sep="\n")
    found = replace(base, **values)
    for metric, index in (("TPOT", 0), ("TTFT", 1)):
        halves = (statistics.median(e[index] for e in _errors(found, half)) for half in (cases[::2], cases[1::2]))
        print(f"# {len(cases)} rows, median error of {metric} fitted and held out:", *(f"{h:.1%}" for h in halves))


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


def _loss(trials: Sequence[tuple[Engine, Sequence[Case]]]) -> list[float]:
    """Of every case the error of TPOT and half that of TTFT, which scatters more."""
    return [tpot + ttft / 2 for candidate, cases in trials for tpot, ttft in _errors(candidate, cases)]


def _errors(candidate: Engine, cases: Sequence[Case]) -> list[tuple[float, float]]:
    """Relative errors of TPOT and TTFT, as absolute logarithms of predicted over measured."""
    errors = []
    for row, served, table in cases:
        point: Point | None = row.point
        assert point is not None
        trial = ServingModel(served.prefill, served.decode, candidate)
        found = simulate(trial.hosted(table, point), trial.scheduling(point), trial.load_of_group(point))
        seconds = ((found.tpot, "tpot_ms"), (found.ttft, "ttft_ms"))
        tpot, ttft = (abs(log(s * 1e3 / row.measured[metric])) for s, metric in seconds)
        errors.append((tpot, ttft))
    return errors


def _fit(start: Mapping[str, float], loss: Loss) -> dict[str, float]:
    """Pattern search: one constant at a time, steps halved where neither direction helps."""
    values, steps = dict(start), {constant: STEPS[constant] for constant in start}
    best = loss(values)
    for _ in range(ROUNDS):
        for constant in start:
            values, best, better = _walk(loss, values, constant, steps[constant], best)
            if not better:
                steps[constant] /= 2
    return values


def _walk(
    loss: Loss, values: dict[str, float], constant: str, step: float, best: float
) -> tuple[dict[str, float], float, bool]:
    for change in (step, -step):
        trial = {**values, constant: max(0.0, values[constant] + change)}
        reached = loss(trial)
        if reached < best:
            return trial, reached, True
    return values, best, False


if __name__ == "__main__":
    main()
