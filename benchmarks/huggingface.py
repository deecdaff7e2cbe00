"""Lowered DAGs against models of ``transformers``: every case of ``tests/hf``, in float32 and in float64.

    python -m paradag.benchmarks.huggingface [--models NAME ...] [--write docs/reliability.md]

Needs the extra ``paradag[verify]``; downloads nothing. Prints two Markdown tables of the largest difference of a logit,
prefill / cached decode. ``--write`` puts them between the marks of the file's section. Exit code 1 where a model's
logits or greedy tokens do not come out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from paradag.benchmarks.mutations import write_between
from paradag.compiler.run.report import Verification
from paradag.compiler.verification import execute
from paradag.tests.hf.cases import COMBINATIONS, DENSE_EXTRAS, MODELS, MOE_EXTRAS, STEPS, Case, cases, oracle, spec_of

BEGIN, END = "<!-- hugging face: begin -->", "<!-- hugging face: end -->"

PRECISIONS = ("float32", "float64")

Results = dict[tuple[str, str, Case], Verification]
"""By precision, model and case."""


def run(models: Sequence[str]) -> Results:
    """Execute all legal cases.

    Raises:
        ValueError: a case is not legal.
    """
    results: Results = {}
    for precision in PRECISIONS:
        for model in models:
            judge = oracle(model, precision)
            for case in cases(model):
                spec, errors = spec_of(case, judge.spec)
                if errors:
                    raise ValueError(f"{model}, {case.name}: {errors[0].message}")
                found = results[precision, model, case] = execute(spec, steps=STEPS, oracle=judge)
                if not found.equal:
                    print(f"{precision} {model} {case.name}: NOT EQUAL", file=sys.stderr, flush=True)
            print(f"{precision} {model}: done", file=sys.stderr, flush=True)
    return results


def tables(results: Results, models: Sequence[str], seconds: float) -> str:
    """The Markdown text."""
    import torch
    import transformers

    equal = sum(v.equal for v in results.values())
    ranks = sum(p.ranks for v in results.values() for p in v.phases.values())
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    lines = [
        f"{len(results)} executions, {equal} equal ({versions}; {ranks:,} virtual ranks; {seconds:.0f} s).",
    ]
    for precision in PRECISIONS:
        judges = [oracle(m, precision) for m in models]
        worst = max(p.max_error for key, v in results.items() if key[0] == precision for p in v.phases.values())
        lines += [
            "",
            f"### {precision}",
            "",
            f"Both sides in {precision}; accepted up to {judges[0].tolerance:.0e}, largest {worst:.1e}.",
            "",
            "| | " + " | ".join(models) + " |",
            "|---|" + "---:|" * len(models),
        ]
        for case in (*COMBINATIONS, *DENSE_EXTRAS, *MOE_EXTRAS):
            cells = [_cell(results.get((precision, m, case))) for m in models]
            lines.append(f"| {_title(case)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _title(case: Case) -> str:
    return case.name if case in COMBINATIONS else f"{case.name}: `{case.prefill}`, `{case.decode}`"


def _cell(found: Verification | None) -> str:
    if found is None:
        return "no experts"
    errors = " / ".join(f"{found.phases[p].max_error:.0e}" for p in ("prefill", "decode"))
    return errors if found.equal else f"**{errors}**"


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="NAME")
    parser.add_argument("--write", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    began = time.perf_counter()
    results = run(arguments.models)
    text = tables(results, arguments.models, time.perf_counter() - began)
    print(text)
    if arguments.write:
        write_between(arguments.write, BEGIN, END, text)
    return 0 if all(v.equal for v in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
