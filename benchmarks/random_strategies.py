"""Proof by execution at large: random legal strategies, lowered, run on virtual ranks and compared with their models.

Each example draws a model (kinds of attention, dense or MoE, shared experts, windows, biases, sinks), degrees,
micro-batches and chunks for both phases, runs prefill and decode steps in float64, and compares logits (1e-10) and
tokens.

    python -m paradag.benchmarks.random_strategies [--examples N] [--seed N]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import hypothesis
from hypothesis import HealthCheck, given, settings

from paradag.compiler.run.shrink import shrink
from paradag.compiler.spec import Spec
from paradag.compiler.verification import execute
from paradag.passes.validation import stage_layers
from paradag.tests.strategies import small_specs


def main() -> None:
    """Run the examples and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    worst = 0.0

    @hypothesis.seed(arguments.seed)
    @settings(max_examples=arguments.examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(small_specs())
    def run(spec: Spec) -> None:
        nonlocal worst
        # the models are small already; shrinking drops data parallelism, whose replicas compute alike
        small, _ = shrink(spec, {s.phase: stage_layers(spec, s.phase) for s in spec.strategies})
        result = execute(small, steps=4)
        counts["run"] += 1
        counts["equal"] += result.equal
        counts["ranks"] += sum(p.ranks for p in result.phases.values())
        worst = max(worst, *(p.max_error for p in result.phases.values()))
        assert result.equal, spec

    began = time.perf_counter()
    run()
    print(
        f"{counts['run']:,} strategies run, {counts['equal']:,} equal to their models; largest error {worst:.1e}; "
        f"{counts['ranks']:,} virtual ranks; {time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
